"""Training scripts as real processes: started, watched by their metrics, killed, compared."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from forked import Forked, Ranks

from ndavid.engine import checkpoint

TIMINGS = {"time", "samples_per_s", "seconds_data", "seconds_compute"}


@dataclass
class Job:
    """A running script."""

    process: subprocess.Popen[str] | Forked | Ranks
    output: Path

    def wait_for_step(self, step: int, seconds: float = 120.0) -> None:
        """Returns once the run has recorded ``step``, which needs ``log_every`` 1."""
        until = time.monotonic() + seconds
        while last_step(self.output) < step:
            if self.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(f"no step {step}: {self.finish()}")
            time.sleep(0.002)

    def ranks(self) -> list[psutil.Process]:
        """The training processes, by rank: the script itself, or torchrun's children."""
        if isinstance(self.process, Ranks):
            return [psutil.Process(rank.pid) for rank in self.process.ranks]
        top = psutil.Process(self.process.pid)
        found = [p for p in top.children() if "RANK" in p.environ()]
        return sorted(found, key=lambda p: int(p.environ()["RANK"])) or [top]

    def kill(self) -> None:
        """SIGKILL to everything at once: nobody is told, nobody cleans up."""
        tops = [psutil.Process(self.process.pid)]
        if isinstance(self.process, Ranks):
            tops = self.ranks()
        for process in [*(p for top in tops for p in top.children(recursive=True)), *tops]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.communicate()

    def finish(self) -> tuple[int, str]:
        """Exit code and everything printed on stderr."""
        _, errors = self.process.communicate(timeout=180)
        return self.process.returncode, errors


def start(
    script: Path,
    arguments: Sequence[str],
    output: Path,
    *,
    ranks: int = 1,
    torchrun: bool = False,
) -> Job:
    """Starts a script that takes ``--run.output``, on several ranks if asked.

    ``torchrun`` starts them as a user does: for tests of what the launcher does when one fails.
    """
    words = [f"--run.output={output}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if torchrun:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}"]
        process = subprocess.Popen(
            [sys.executable, *launcher, str(script), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        return Job(process, output)
    if ranks == 1:
        return Job(Forked(script, words, cwd=Path.cwd(), env=environment), output)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started = [
        Forked(
            script,
            words,
            cwd=Path.cwd(),
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(ranks)
    ]
    return Job(Ranks(started), output)


def run(script: Path, arguments: Sequence[str], output: Path, *, ranks: int = 1) -> None:
    """Runs a script to its end, which must be a good one."""
    code, errors = start(script, arguments, output, ranks=ranks).finish()
    assert code == 0, errors


def kill_at(job: Job, step: int) -> None:
    """SIGKILL as soon as ``step`` is recorded."""
    job.wait_for_step(step)
    job.kill()
    assert job.process.returncode == -signal.SIGKILL


def records(output: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says; a half-written last line is left out."""
    file = output / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    return [{k: v for k, v in record.items() if k not in TIMINGS} for record in whole]


def last_step(output: Path) -> int:
    """The last step recorded, 0 for none."""
    return max((record["step"] for record in records(output)), default=0)


def assert_same_run(a: Path, b: Path) -> None:
    """Both ended in the same bits: weights, their average, buffers, optimizers, records."""
    first, second = checkpoint.load(a), checkpoint.load(b)
    assert first.step == second.step
    assert first.digest == second.digest
    assert_equal(first.ema, second.ema)
    assert_equal(first.state, second.state)
    assert records(a) == records(b)


def assert_equal(a: Any, b: Any) -> None:
    """Equality of nested containers with tensors in them."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_equal(x, y)
    else:
        assert a == b
