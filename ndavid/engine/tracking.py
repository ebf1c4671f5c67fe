"""Where numbers go: metrics.jsonl and TensorBoard always, other trackers by name, a progress bar.

Only rank 0 writes. A resumed run drops the records after the step it resumes from, so that
metrics.jsonl ends equal to that of a run that was never interrupted, timings aside.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ndavid.config import nearest
from ndavid.errors import ConfigError, printable_lines
from ndavid.files import write_whole_text
from ndavid.progress import SECONDS_BETWEEN_LINES

METRICS_FILE = "metrics.jsonl"
NOT_METRICS = ("step", "epoch", "time")
ALWAYS_ON = ("jsonl", "tensorboard")
# Measured now and then; the progress line shows the newest.
SHOWN_VALIDATION = ("val/knn_top1", "val/top1")


def other_trackers(names: Sequence[str]) -> list[str]:
    """The named trackers beside those that are always on.

    Raises:
        ConfigError: a name that accelerate does not know, or one whose package is not installed.
    """
    known = [member.value for member in LoggerType if member is not LoggerType.ALL]
    installed = [getattr(tracker, "value", tracker) for tracker in get_available_trackers()]
    wanted = [name for name in names if name not in ALWAYS_ON]
    for name in wanted:
        if name not in known:
            raise ConfigError(f"trackers: unknown tracker '{name}'{nearest(name, known)}")
        if name not in installed:
            raise ConfigError(f"trackers: '{name}' is not installed: pip install {name}")
    return wanted


class Tracker:
    """Writes records of one run; silent on every rank but the first.

    Args:
        run_dir: the run's folder.
        start: the step the run begins or resumes at; later records are dropped.
        total: the step it ends at.
        is_main: whether this is rank 0.
        accelerator: carries the other trackers.
        config: flat config values for those trackers.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        start: int,
        total: int,
        is_main: bool,
        accelerator: Accelerator,
        config: Mapping[str, Any],
    ) -> None:
        self._is_main = is_main
        self._accelerator = accelerator
        self._total = total
        self._last_line = -math.inf
        self.last: dict[str, float] = {}
        self._newest: dict[str, float] = {}
        if accelerator.log_with:
            accelerator.init_trackers(run_dir.name, config=dict(config))
        if not is_main:
            return
        self.last = truncate(run_dir / METRICS_FILE, start)
        self._file: TextIO = (run_dir / METRICS_FILE).open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir / "tensorboard"), purge_step=start + 1)
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def log(
        self, step: int, epoch: int, values: Mapping[str, float], *, at: float | None = None
    ) -> None:
        """Writes one record: plain names are training metrics, ``val/...`` validation's.

        Args:
            step: optimizer steps done.
            epoch: counted from 0.
            values: numbers by name.
            at: seconds since 1970; now when None.
        """
        if not self._is_main:
            return
        at = time.time() if at is None else at
        values = {name: float(value) for name, value in values.items()}
        record = {"step": step, "epoch": epoch, **values, "time": round(at, 3)}
        self._file.write(json.dumps({k: _finite(v) for k, v in record.items()}) + "\n")
        self._file.flush()
        for name, value in values.items():
            tag = name if "/" in name else f"train/{name}"
            self._board.add_scalar(tag, value, step, walltime=at)
        if self._accelerator.log_with:
            self._accelerator.log(values, step=step)
        if "loss" in values:
            self.last = values
        self._newest |= {name: values[name] for name in SHOWN_VALIDATION if name in values}

    def show(self, step: int, name: str, picture: Tensor) -> None:
        """Puts a picture, uint8 (3, H, W), into TensorBoard."""
        if self._is_main:
            self._board.add_image(name, picture, step)

    def advance(self, step: int, values: Mapping[str, float] | None = None) -> None:
        """Moves the bar to ``step``; with values, shows loss, samples a second and time left.

        Beside them stands the newest of ``SHOWN_VALIDATION``, if there is one.
        """
        if not self._is_main:
            return
        if self._bar is not None:
            if values is not None:
                numbers = {name: values[name] for name in ("loss", "samples_per_s")} | self._newest
                shown = {name: f"{value:.4g}" for name, value in numbers.items()}
                self._bar.set_postfix(shown, refresh=False)
            self._bar.update(step - self._bar.n)
        elif values is not None and self._line_due(step):
            per_step = values["seconds_data"] + values["seconds_compute"]
            left = time.strftime("%H:%M:%S", time.gmtime(per_step * (self._total - step)))
            self.say(
                f"step {step}/{self._total}  loss {values['loss']:.4f}  "
                + "".join(f"{name} {value:.4f}  " for name, value in self._newest.items())
                + f"{values['samples_per_s']:.1f} samples/s  left {left}"
            )

    def say(self, message: str) -> None:
        """Prints one line on rank 0, above the bar."""
        if self._is_main:
            say(message)

    def close(self) -> None:
        """Flushes and closes everything."""
        for tracker in getattr(self._accelerator, "trackers", []):
            tracker.finish()
        if not self._is_main:
            return
        if self._bar is not None:
            self._bar.close()
        for writer in (self._file, self._board):
            # A full disk has been reported by then; a second report would hide the first.
            with contextlib.suppress(OSError):
                writer.close()

    def _line_due(self, step: int) -> bool:
        now = time.monotonic()
        due = now - self._last_line >= SECONDS_BETWEEN_LINES or step == self._total
        if due:
            self._last_line = now
        return due


def say(message: str) -> None:
    """Prints lines on stderr, above a progress bar if there is one; no name commands a terminal."""
    tqdm.write(printable_lines(message), file=sys.stderr)
    sys.stderr.flush()


def truncate(file: Path, step: int) -> dict[str, float]:
    """Drops the records after ``step`` and a half-written last line; returns the last with a loss.

    The file is replaced in one move, so that a kill in between loses nothing.
    """
    kept, last = [], {}
    lines = file.read_text(encoding="utf-8-sig").splitlines() if file.exists() else []
    for line in lines:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] > step:
            continue
        kept.append(line + "\n")
        if "loss" in record:
            last = record
    write_whole_text(file, "".join(kept))
    return {k: math.nan if v is None else v for k, v in last.items() if k not in NOT_METRICS}


def _finite(value: float) -> float | None:
    """JSON has no NaN: a metric without a value is null."""
    return value if math.isfinite(value) else None
