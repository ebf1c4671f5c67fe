"""The ledger of clips that could not be decoded: named once each, counted, limited."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from ndavid.errors import TrainingError, printable

FILE_NAME = "bad_clips.csv"

# The name of a sample in a shard: the shard's URL (perhaps with a query, or a command's last
# words), a slash, and the sample's path.
_IN_SHARD = re.compile(r".*?([^/\s'\"=]+\.tar)(?![\w.])[^/]*/(.+)", re.DOTALL)


def identity(path: str) -> str:
    """What of a clip's path stays where shards are moved: the shard's file name, and the rest."""
    found = _IN_SHARD.fullmatch(path)
    return f"{found[1]}/{found[2]}" if found else path


class BadClips:
    """Bad clips of a run, the same on every rank.

    Args:
        num_samples: length of the dataset.
        max_fraction: the share of it that may be bad.
    """

    def __init__(self, num_samples: int, max_fraction: float) -> None:
        self.num_samples = num_samples
        self.max_fraction = max_fraction
        self.found: dict[str, tuple[str, str, int]] = {}

    def __len__(self) -> int:
        return len(self.found)

    def add(self, clips: Iterable[tuple[str, str]], step: int) -> list[tuple[str, str]]:
        """Notes (path, reason) pairs met at ``step`` and returns those not met before."""
        new = []
        for path, reason in clips:
            if (key := identity(path)) not in self.found:
                self.found[key] = (path, reason, step)
                new.append((path, reason))
        return new

    def check(self) -> None:
        """Raises TrainingError when more than the allowed share is bad."""
        if len(self.found) > self.max_fraction * self.num_samples:
            path, reason, _ = next(iter(self.found.values()))
            raise TrainingError(
                f"{len(self.found)} of {self.num_samples} clips cannot be used, more than "
                f"max_bad_fraction {self.max_fraction:g} allows; all are in {FILE_NAME}, "
                f"the first is {path}: {reason}"
            )

    def write(self, run_dir: Path) -> None:
        """Writes ``bad_clips.csv`` (path, reason, first step); no file when there is none."""
        file = run_dir / FILE_NAME
        if not self.found:
            file.unlink(missing_ok=True)
            return
        with file.open("w", newline="", encoding="utf-8") as handle:
            writer = csv.writer(handle)
            writer.writerow(["path", "reason", "step"])
            rows = self.found.values()
            writer.writerows((printable(path), printable(why), step) for path, why, step in rows)

    def state(self) -> list[list[str | int]]:
        """For a checkpoint: [path, reason, step] rows."""
        return [list(row) for row in self.found.values()]

    def restore(self, rows: list[list[str | int]]) -> None:
        """Takes back what `state` gave."""
        self.found = {}
        for path, reason, step in rows:
            # Of one clip under two names, the first: older runs told them apart.
            self.found.setdefault(identity(str(path)), (str(path), str(reason), int(step)))
