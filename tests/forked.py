"""Scripts as real processes that start at once: forked off a server that has imported torch.

A fresh Python takes seconds to import torch and what the scripts need, and the tests start some two
hundred of them. Here each is still a process of its own, with its own session, signals, files,
environment and exit code; only the imports are shared. The server is multiprocessing's, which is
clean: no test ever ran in it.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.connection
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

PRELOADED = [
    "ndavid.engine.loop",
    "ndavid.evaluation.finetune",
    "ndavid.evaluation.linear",
    "ndavid.evaluation.report",
    "ndavid.methods.dpc",
    "ndavid.methods.gan",
    "ndavid.methods.moco",
]
_CONTEXT = multiprocessing.get_context("forkserver")
# Whoever asks first reads an exit code from a pipe, which gives it once: a second thread that asks
# at the same moment is told 255. Starting a process asks after all the others.
_READING = threading.Lock()


class Forked:
    """A script that runs, with what tests use of `subprocess.Popen`."""

    def __init__(
        self, script: Path, arguments: Sequence[str], *, cwd: Path, env: Mapping[str, str]
    ) -> None:
        _CONTEXT.set_forkserver_preload(PRELOADED)
        self.args = [sys.executable, str(script), *arguments]
        folder = Path(tempfile.mkdtemp(prefix="forked-"))
        self._texts = folder / "stdout", folder / "stderr"
        self._process = _CONTEXT.Process(
            target=_run,
            args=(str(script), list(arguments), str(cwd), dict(env), *map(str, self._texts)),
        )
        with _READING:
            self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        with _READING:
            return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        self._process.kill()

    def wait(self, timeout: float | None = None) -> int:
        multiprocessing.connection.wait([self._process.sentinel], timeout)
        code = self.returncode
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """(stdout, stderr), once it has ended."""
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        output, errors = (
            path.read_text(errors="replace") if path.exists() else "" for path in self._texts
        )
        return output, errors


class Ranks:
    """The ranks of one run, started as torchrun would; the first that fails ends the others."""

    def __init__(self, ranks: Sequence[Forked]) -> None:
        self.ranks = ranks
        self.pid = ranks[0].pid
        self._watch = threading.Thread(target=self._end_together, daemon=True)
        self._watch.start()

    def _end_together(self) -> None:
        while (codes := [rank.poll() for rank in self.ranks]).count(None):
            if any(code for code in codes):
                time.sleep(2.0)  # the others may be about to say what they have to say
                self.kill()
            time.sleep(0.02)

    @property
    def returncode(self) -> int | None:
        codes = [rank.returncode for rank in self.ranks]
        return None if None in codes else next((code for code in codes if code), 0)

    def poll(self) -> int | None:
        return self.returncode

    def kill(self) -> None:
        for rank in self.ranks:
            rank.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        texts = [rank.communicate(timeout) for rank in self.ranks]
        return "".join(output for output, _ in texts), "".join(errors for _, errors in texts)


def call(
    script: Path, *arguments: str, cwd: Path, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """What `subprocess.run` of the script gives, its output captured as text."""
    process = Forked(script, arguments, cwd=cwd, env=os.environ)
    output, errors = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.wait(), output, errors)


def _run(
    script: str, arguments: list[str], cwd: str, env: dict[str, str], output: str, errors: str
) -> None:
    """In the child: becomes the script."""
    os.setsid()
    for path, number in ((output, 1), (errors, 2)):
        file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    # A script's own workers start as in any script, not off another server.
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", "1")))
    sys.argv = [script, *arguments]
    # As Python does for a script: its own folder comes first.
    sys.path.insert(0, os.path.dirname(script))
    # What the server's imports left registered is not for this process to undo.
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
