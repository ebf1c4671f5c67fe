"""What a folder holds already, so that nobody's work is written over by another kind of work."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from ndavid.errors import printable

# Whole sections of keys differ between two kinds of runs; between two versions of one, a key or so.
_MOST_KEYS_GONE = 3

# What a folder is, by what only this kind has, in the order in which they are looked for: of a
# study the folders of its trainings, or its report.
_MARKS = (
    ("*/*/seed[0-9]*", "a study"),
    ("differences.json", "a study"),
    ("manifest.csv", "a prepared dataset"),
    ("[0-9]*.tar", "shards"),
    ("encoder.pt2", "an exported encoder"),
)


def kind_of(folder: Path) -> str:
    """What a folder holds, in words, such as "a training run"; empty if it is none of ours."""
    for pattern, kind in _MARKS:
        if any(folder.glob(pattern)):
            return kind
    if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir():
        return "a training run"
    if (folder / "result.json").is_file():
        return "an evaluation's result"
    return ""


def refusal(folder: Path, wanted: str, way_out: str) -> str:
    """Why ``wanted``, as `kind_of` names it, must not be written to a folder; empty: it may."""
    found = kind_of(folder)
    if not found or found == wanted:
        return ""
    return f"{printable(str(folder))} holds {found}, not {wanted}: {way_out}"


def foreign_files(folder: Path, names: Iterable[str], way_out: str) -> str:
    """Why files of ``names`` must not be written to a folder that is none of ours; empty: all may.

    Somebody's own ``config.yaml`` would be gone.
    """
    there = [name for name in names if (folder / name).exists()]
    if not there:
        return ""
    verb = "is" if len(there) == 1 else "are"
    return f"{printable(str(folder))}: {', '.join(there)} there {verb} not ours: {way_out}"


def of_another_kind(before: Collection[str], now: Collection[str]) -> list[str]:
    """Two dotted keys of a run that this one has not, if they are another kind's.

    Empty for two runs of one kind, whatever their versions.
    """
    gone = sorted(set(before) - set(now))
    return gone[:2] if len(gone) > _MOST_KEYS_GONE else []
