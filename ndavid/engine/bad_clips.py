"""The ledgers of clips that could not be decoded, or only with damage: each named once, counted."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable
from pathlib import Path

from ndavid.errors import TrainingError, printable
from ndavid.files import whole_text

FILE_NAME = "bad_clips.csv"
DAMAGED_FILE_NAME = "damaged_clips.csv"

# The name of a sample in a shard: the shard's URL (perhaps with a query, or a command's last
# words), a slash, and the sample's path.
_IN_SHARD = re.compile(r".*?([^/\s'\"=]+\.tar)(?![\w.])[^/]*/(.+)", re.DOTALL)


def identity(path: str) -> str:
    """What of a clip's path stays where shards are moved: the shard's file name, and the rest."""
    found = _IN_SHARD.fullmatch(path)
    return f"{found[1]}/{found[2]}" if found else path


class ClipLedger:
    """Some clips of a run and what is wrong with them, the same on every rank.

    Args:
        file_name: of the list in the run's folder.
    """

    def __init__(self, file_name: str) -> None:
        self.file_name = file_name
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

    def write(self, run_dir: Path) -> None:
        """Writes the list (path, reason, first step); no file when there is none."""
        file = run_dir / self.file_name
        if not self.found:
            file.unlink(missing_ok=True)
            return
        with whole_text(file) as handle:
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


class BadClips(ClipLedger):
    """Bad clips of a run, in ``bad_clips.csv``.

    Args:
        num_samples: length of the dataset.
        max_fraction: the share of it that may be bad.
    """

    def __init__(self, num_samples: int, max_fraction: float) -> None:
        super().__init__(FILE_NAME)
        self.num_samples = num_samples
        self.max_fraction = max_fraction

    def check(self) -> None:
        """Raises TrainingError when more than the allowed share is bad."""
        if len(self.found) > self.max_fraction * self.num_samples:
            path, reason, _ = next(iter(self.found.values()))
            raise TrainingError(
                f"{len(self.found)} of {self.num_samples} clips cannot be used, more than "
                f"max_bad_fraction {self.max_fraction:g} allows; all are in {self.file_name}, "
                f"the first is {path}: {reason}"
            )
