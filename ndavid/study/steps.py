"""Runs one step in a process of its own, a fork of one that has already imported what all need.

Importing torch takes longer than many a measurement; a fork takes no time, and a step that fails,
leaks or is killed still harms no other. A finished step leaves ``step.json`` with its command and
the digest of its config: found again, it is not repeated; found with others, it is an error,
because results of two settings must not be mixed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import runpy
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

from ndavid.engine.environment import git_commit
from ndavid.errors import ConfigError, DataError
from ndavid.files import file_sha256, write_whole_text
from ndavid.study.plan import Step

RECORD = "step.json"
LOG = "step.log"

# What recipes and evaluators import, directly or not.
PRELOADED = ("ndavid.study.warm",)
_SECONDS_TO_SAVE = 60.0


@dataclass(frozen=True)
class Ended:
    """How a step ended.

    Attributes:
        step: Which.
        code: Of its process; negative: the signal that killed it.
        seconds: Wall time of its process.
        repeated: It had been done before, and nothing was run.
    """

    step: Step
    code: int
    seconds: float
    repeated: bool = False

    def reason(self) -> str:
        """Why it failed: the signal, or the exit code and the last line that it wrote."""
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        line = _last_line(self.step)
        return f"exit code {self.code}" + (f": {line}" if line else "")


def record_of(step: Step) -> dict[str, Any] | None:
    """What a finished step left, None for one that has not finished.

    Raises:
        ConfigError: It finished with another command, or its config was another one then.
        DataError: The record cannot be read.
    """
    path = step.folder / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8-sig"))
        command = list(record["command"])
        float(record["seconds"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise DataError(path, f"not the record of a step ({error!r}); remove it") from error
    if command != step.command:
        raise ConfigError(
            f"{step.folder} was made with another command ({_difference(command, step.command)}): "
            "give the study another output, or remove that folder"
        )
    then = record.get("config_sha256")
    # A record of before they held it is believed; so is one whose config is not here any more.
    if then and Path(step.config).is_file() and then != file_sha256(step.config):
        raise ConfigError(
            f"{step.folder} was made with another content of {step.config}: give the study another "
            "output, put the file back, or remove that folder"
        )
    return dict(record)


class StepRunner:
    """Starts steps in forks of one warm process; `stop` ends those that run.

    Args:
        threads: Threads of a step on the CPU.
        gpus: Names of GPUs, as CUDA_VISIBLE_DEVICES has them, dealt to the slots in turn; none:
            steps see what this process sees.
    """

    def __init__(self, *, threads: int, gpus: Sequence[str] = ()) -> None:
        # Read when torch is imported, which the warm process does.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        self.threads = threads
        self.gpus = list(gpus)
        self.git = git_commit()  # now: the warm process imports the code once
        self.context: ForkServerContext = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(list(PRELOADED))
        self.stopping = False
        self._running: set[ForkServerProcess] = set()
        self._changed = threading.Condition()

    def __call__(self, step: Step, slot: int) -> Ended:
        """Runs a step to its end, or takes it as done.

        Args:
            step: What to run.
            slot: Number of the place among those that run at once, which decides the GPU.

        Raises:
            ConfigError, DataError: As `record_of`.
        """
        if record_of(step) is not None:
            return Ended(step, 0, 0.0, repeated=True)
        step.folder.mkdir(parents=True, exist_ok=True)
        started = time.monotonic()
        # As it is read, not as somebody left it by the time the step ends.
        digest = file_sha256(step.config) if step.config else None
        gpu = self.gpus[slot % len(self.gpus)] if self.gpus else None
        arguments = (step.command, str(step.folder / LOG), self.threads, gpu)
        process = self.context.Process(target=_run_script, args=arguments)
        with self._tracked(process) as running:
            if not running:
                return Ended(step, -signal.SIGTERM, 0.0)
            # Starting a process polls all others. Of two threads that poll one the second finds
            # its exit code read, and takes that for 255: so they take turns.
            wait([process.sentinel])
            with self._changed:
                process.join()
        seconds = time.monotonic() - started
        code = process.exitcode if process.exitcode is not None else 1
        if code == 0:
            _write_record(step, seconds, digest, self.git)
        return Ended(step, code, seconds)

    def stop(self) -> None:
        """Starts no more, asks the running steps to save and leave, and kills those that don't."""
        with self._changed:
            self.stopping = True
            for process in self._running:
                process.terminate()
            self._changed.wait_for(lambda: not self._running, timeout=_SECONDS_TO_SAVE)
            for process in self._running:
                process.kill()

    def kill(self) -> None:
        """Starts no more and kills the running steps, which go on from what they saved before."""
        with self._changed:
            self.stopping = True
            for process in self._running:
                process.kill()

    @contextlib.contextmanager
    def _tracked(self, process: ForkServerProcess) -> Iterator[bool]:
        """Starts a process unless all are being stopped, and tells whether it did."""
        with self._changed:
            # A step that starts while `stop` looks at the others would run on unseen.
            running = not self.stopping
            if running:
                with _sigterm_blocked():
                    process.start()
                self._running.add(process)
        try:
            yield running
        finally:
            with self._changed:
                self._running.discard(process)
                self._changed.notify_all()


@contextlib.contextmanager
def _sigterm_blocked() -> Iterator[None]:
    """For the first start, which also starts the warm process: that inherits this.

    A job's end is often told to all its processes, and without the warm one nobody would know how
    the steps end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_script(command: list[str], log: str, threads: int, gpu: str | None) -> None:
    """In the fork: becomes ``python script arguments`` with its words going to a file."""
    os.setsid()  # Ctrl-C is the study's, which sends SIGTERM
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    _leave_with_parent()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    _wait_for_earlier(log)
    print(f"$ python {shlex.join(command)}", flush=True)
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    import torch

    torch.set_num_threads(threads)
    sys.argv = list(command)
    sys.path.insert(0, str(Path(command[0]).resolve().parent))
    runpy.run_path(command[0], run_name="__main__")


def _wait_for_earlier(log: str) -> None:
    """Waits until the step's process of a study that was killed has saved and gone.

    Two in one folder would overwrite each other's checkpoints.
    """
    # Opened anew, since programs that the step starts share its output and may outlive it; and
    # not closed, since the lock is held as long as it is open.
    lock = os.open(log, os.O_WRONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for the process of an earlier start to end", flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)


def _leave_with_parent() -> None:
    """Ends this process in good order when the study is killed: nobody would record its end."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_SECONDS_TO_SAVE)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()


def _write_record(
    step: Step, seconds: float, digest: str | None, git: dict[str, Any] | None
) -> None:
    record = {
        "command": step.command,
        "config_sha256": digest,
        "git": git,
        "seconds": round(seconds, 1),
        "finished": time.time(),
    }
    write_whole_text(step.folder / RECORD, json.dumps(record, indent=2) + "\n")


def _last_line(step: Step) -> str:
    try:
        lines = (step.folder / LOG).read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _difference(old: Sequence[str], new: Sequence[str]) -> str:
    """The first option that differs, for a message."""
    if old[:1] != new[:1]:
        return f"{old[:1]}, now {new[:1]}"
    before, now = (dict(zip(words[1::2], words[2::2], strict=False)) for words in (old, new))
    for key, value in now.items():
        if key not in before:
            return f"without {key} {value!r}"
        if before[key] != value:
            return f"{key} {before[key]!r}, now {value!r}"
    gone = [f"{key} {value!r}, now without" for key, value in before.items() if key not in now]
    return gone[0] if gone else "in another order"
