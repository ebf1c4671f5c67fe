"""Runs a study's steps: preparations first, then the cells, several at once.

A step that fails is told and kept count of; what depends on it is left out, the rest goes on. A
study that was stopped, by a signal or by a failure, goes on when it is started again.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import torch

from ndavid.engine.folder_kind import foreign_files, kind_of, refusal
from ndavid.errors import ConfigError
from ndavid.interruption import command_again
from ndavid.locks import hold
from ndavid.study.config import StudyConfig
from ndavid.study.plan import Cell, Step, cells, preparations
from ndavid.study.steps import LOG, Ended, StepRunner, record_of


@dataclass
class Progress:
    """What has been done so far.

    Attributes:
        total: Steps of the whole study.
        done: Steps that have ended, now or before, well or not.
        failures: Steps that failed, with why.
        started: When, on the monotonic clock, in seconds.
    """

    total: int
    done: int = 0
    failures: list[tuple[Step, str]] = field(default_factory=list)
    started: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, ended: Ended) -> None:
        """Counts a step and prints a line of it."""
        with self._lock:
            self.done += 1
            name = f"[{self.done}/{self.total}] {ended.step.folder}"
            if ended.repeated:
                return
            if ended.code == 0:
                minutes = (time.monotonic() - self.started) / 60
                print(f"{name}: {ended.seconds:.0f} s ({minutes:.0f} min so far)", flush=True)
                return
            self.failures.append((ended.step, ended.reason()))
            log = ended.step.folder / LOG
            print(f"{name}: FAILED: {ended.reason()} (see {log})", flush=True)


def run_steps(config: StudyConfig) -> Progress:
    """Runs all that has not been run before.

    Raises:
        ConfigError: The output holds steps of another study, or another process works in it; a
            script or config that is not there.
        SystemExit: With 128 and the signal's number after SIGINT or SIGTERM, when running steps
            have saved.
    """
    first, grid = preparations(config), cells(config)
    steps = _all_steps(first, grid)
    _check_files(steps)
    gpus = visible_gpus()
    jobs = config.jobs or len(gpus) or max(_cores() // config.threads, 1)
    _check_output(Path(config.output))
    with hold(config.output):
        done = _count_done(steps)  # made with another command: say so before hours of work
        print(f"{len(steps)} steps, {done} done before; {jobs} at once", flush=True)
        runner = StepRunner(threads=config.threads, gpus=gpus)
        progress = Progress(len(steps))
        with _stopped_by_signals(runner):
            if _run_in_turn(first, 0, runner, progress) is None:
                _run_cells(grid, jobs, runner, progress)
    return progress


def _check_output(output: Path) -> None:
    """Refuses a folder of something else, or one whose files the study's report would replace."""
    why = refusal(output, "a study", "choose another output")
    if not why and not kind_of(output):
        why = foreign_files(output, ("results.csv", "tables.md"), "choose another output")
    if why:
        raise ConfigError(why)


def list_steps(config: StudyConfig) -> str:
    """One line a step: whether it is done, and its command.

    Raises:
        ConfigError: As `run_steps`.
    """
    steps = _all_steps(preparations(config), cells(config))
    _check_files(steps)
    lines = [
        f"{'done ' if record_of(step) else 'to do'}  python {shlex.join(step.command)}"
        for step in steps
    ]
    return "\n".join([*lines, f"{len(steps)} steps, {_count_done(steps)} done"])


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by the names that CUDA_VISIBLE_DEVICES has for them."""
    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else [str(index) for index in range(count)]
    return names[:count]


def _cores() -> int:
    """CPU cores that this process may use, which a container may have fewer of than its host."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _all_steps(first: Sequence[Step], grid: Sequence[Cell]) -> list[Step]:
    return [*first, *(step for cell in grid for step in cell.steps)]


def _count_done(steps: Sequence[Step]) -> int:
    return sum(record_of(step) is not None for step in steps)


def _run_cells(grid: Sequence[Cell], jobs: int, runner: StepRunner, progress: Progress) -> None:
    slots: queue.SimpleQueue[int] = queue.SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def run(cell: Cell) -> None:
        slot = slots.get()
        try:
            _run_cell(cell, slot, runner, progress)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        running = [pool.submit(run, cell) for cell in grid]
        try:
            for future in as_completed(running):
                future.result()
        except BaseException:
            # Nothing that a step does raises here: a full disk, or a fault of ours.
            runner.stop()
            raise


def _run_cell(cell: Cell, slot: int, runner: StepRunner, progress: Progress) -> None:
    """The steps of a cell; without its training there is nothing to measure."""
    training = [] if cell.training is None else [cell.training]
    if _run_in_turn(training, slot, runner, progress) is None:
        for measured in cell.measurements:
            _run_in_turn([measured.step], slot, runner, progress)


def _run_in_turn(
    steps: Sequence[Step], slot: int, runner: StepRunner, progress: Progress
) -> Step | None:
    """Runs steps that need each other; returns the one that failed or was stopped, if any."""
    for step in steps:
        ended = runner(step, slot)
        # Stopped on purpose: no failure to tell of.
        if not (ended.code and runner.stopping):
            progress.tell(ended)
        if ended.code:
            return step
    return None


def _check_files(steps: Sequence[Step]) -> None:
    """Scripts and configs are there: else every step would fail, one after the other."""
    for name in {file: None for step in steps for file in (step.script, step.config)}:
        if name and not Path(name).is_file():
            raise ConfigError(f"no file {name} here; run studies from the repository's root")
    for step in steps:
        if not step.script:
            raise ConfigError(f"{step.folder}: no script is given")


@contextlib.contextmanager
def _stopped_by_signals(runner: StepRunner) -> Iterator[None]:
    """SIGINT and SIGTERM let running steps save, then end the study; another SIGINT kills them."""
    received: list[int] = []
    again = command_again()

    def stop(number: int) -> None:
        name = signal.Signals(number).name
        print(f"{name}: running steps save, Ctrl-C leaves at once; to go on: {again}", flush=True)
        runner.stop()

    def handle(number: int, frame: FrameType | None) -> None:
        # Not from here: they wait for processes, and a handler must not.
        if not received:
            received.append(number)
            threading.Thread(target=stop, args=(number,)).start()
        elif number == signal.SIGINT:
            threading.Thread(target=runner.kill).start()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        raise SystemExit(128 + received[0])
