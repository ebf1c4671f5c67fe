"""What `prepare` did and found: the lines that it prints, and the reports that it writes."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import av

from ndavid.data.leaks import Leak, sources_shared_by_classes
from ndavid.data.manifest import Manifest
from ndavid.errors import DataError, printable
from ndavid.files import write_whole_text

SHOWN = 5


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Copies:
    """A listed clip of which there are several files.

    Attributes:
        clip: its path in the lists.
        taken: the file that was taken; "" where nothing tells which of them is the clip.
        left: the files that were not, and why: "" for one that was not needed.
    """

    clip: str
    taken: str
    left: tuple[BadFile, ...]

    def __str__(self) -> str:
        left = ", ".join(b.path + (f" ({b.reason})" if b.reason else "") for b in self.left)
        if not self.taken:
            return f"{self.clip}: could be any of {left}; none was taken"
        return f"{self.clip}: took {self.taken}, not {left}"


@dataclass(frozen=True)
class Preparation:
    """What `prepare` did and found.

    Attributes:
        manifest_path, manifest: what was written.
        bad: files that cannot be used.
        missing: listed clips that have no file.
        unlisted: files that no list names.
        copies: clips with several files.
        absent: classes of the lists that have no usable clip.
        leaks: sources on several sides of a fold.
        notes: what else a person should know, a line each.
        passed_over: how many files were passed over, by suffix.
        num_reused: files that were done before.
        seconds: how long it took.
    """

    manifest_path: Path
    manifest: Manifest
    bad: tuple[BadFile, ...]
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]
    copies: tuple[Copies, ...]
    absent: tuple[str, ...]
    leaks: tuple[Leak, ...]
    notes: tuple[str, ...]
    passed_over: Mapping[str, int]
    num_reused: int
    seconds: float


def summary(preparation: Preparation) -> str:
    """A few lines for a person: counts, splits, lengths, and what is wrong."""
    manifest = preparation.manifest
    lengths = [record.num_frames for record in manifest.records]
    lines = [
        f"{len(lengths)} clips of {len(manifest.classes)} classes -> {preparation.manifest_path} "
        f"({preparation.seconds:.1f} s; {preparation.num_reused} were done before)",
        f"  frames a clip: {min(lengths)} to {max(lengths)}, median {statistics.median(lengths):g}",
    ]
    lines += [f"  {note}" for note in preparation.notes]
    for fold in range(1, manifest.num_folds + 1):
        sides = Counter(record.splits[fold - 1] or "unused" for record in manifest.records)
        parts = ", ".join(
            f"{side} {sides[side]}" for side in ("train", "val", "test", "unused") if sides[side]
        )
        shared = len(sources_shared_by_classes(manifest, fold))
        across = f"; {shared} sources on both sides in different classes" if shared else ""
        lines.append(f"  fold {fold}: {parts}{across}")
    lines += _problem_lines(
        "bad files", "bad_files.csv", [f"{b.path}: {b.reason}" for b in preparation.bad]
    )
    lines += _problem_lines(
        "with several files", "several_files.csv", [str(copies) for copies in preparation.copies]
    )
    damaged = [
        f"{r.path}: {r.damaged} of {r.num_frames} frames" for r in manifest.records if r.damaged
    ]
    lines += _problem_lines("with damaged frames, but usable", "damaged_files.csv", damaged)
    lines += _problem_lines("listed but missing", "missing_files.csv", preparation.missing)
    lines += _problem_lines("there but not listed", "unlisted_files.csv", preparation.unlisted)
    lines += _problem_lines(
        "leaked groups", "leaked_groups.csv", [str(leak) for leak in preparation.leaks]
    )
    return "\n".join(printable(line) for line in lines)


def write_reports(done: Preparation, settings: Mapping[str, object], output: Path) -> None:
    _write_csv(output / "bad_files.csv", ("path", "reason"), ((b.path, b.reason) for b in done.bad))
    several = (
        (copies.clip, copies.taken, left.path, left.reason)
        for copies in done.copies
        for left in copies.left
    )
    _write_csv(output / "several_files.csv", ("clip", "taken", "left", "reason"), several)
    damaged = [(r.path, r.damaged, r.num_frames) for r in done.manifest.records if r.damaged]
    _write_csv(output / "damaged_files.csv", ("path", "damaged_frames", "frames"), damaged)
    _write_csv(output / "missing_files.csv", ("path",), ((path,) for path in done.missing))
    _write_csv(output / "unlisted_files.csv", ("path",), ((path,) for path in done.unlisted))
    sides = ("train", "val", "test")
    rows = (
        (leak.fold, leak.class_name, leak.group, *(dict(leak.counts).get(s, 0) for s in sides))
        for leak in done.leaks
    )
    _write_csv(output / "leaked_groups.csv", ("fold", "class", "group", *sides), rows)
    facts = {
        "settings": dict(settings),
        "clips": len(done.manifest.records),
        "classes": len(done.manifest.classes),
        "classes_without_clips": list(done.absent),
        "folds": done.manifest.num_folds,
        "bad": len(done.bad),
        "damaged": sum(bool(record.damaged) for record in done.manifest.records),
        "several_files": len(done.copies),
        "missing": len(done.missing),
        "unlisted": len(done.unlisted),
        "leaked_groups": len(done.leaks),
        "passed_over": dict(sorted(done.passed_over.items())),
        "pyav": av.__version__,
        "ffmpeg": getattr(av, "ffmpeg_version_info", ""),
    }
    _write_text(output / "prepare.json", json.dumps(facts, indent=2) + "\n")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    # A file's name may hold what a terminal obeys, or bytes that are no text.
    writer.writerows([printable(str(cell)) for cell in row] for row in rows)
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    try:
        write_whole_text(path, text)
    except OSError as error:
        raise DataError(path, f"cannot write it: {error.strerror}") from error


def _problem_lines(title: str, report: str, problems: Sequence[str]) -> list[str]:
    lines = [f"  {title}: {len(problems)}" + (f" (all in {report})" if problems else "")]
    lines += [f"    {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"    ... and {len(problems) - SHOWN} more")
    return lines
