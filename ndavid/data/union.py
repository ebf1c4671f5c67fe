"""Several prepared datasets as one, for pretraining on all of them.

The union's fold k is made of one fold of each part: a part keeps one fold throughout (J-HMDB's
split 2), or gives its fold k (UCF101's three). Files stay where they are.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """A dataset of a union.

    Attributes:
        name: tells its classes from those of the others, where two have one of the same name.
        manifest: its clips.
        fold: the fold that it gives to every fold of the union, from 1; None gives each its own.
    """

    name: str
    manifest: Manifest
    fold: int | None = None


def unite(parts: Sequence[Part]) -> Manifest:
    """One manifest of all the parts' clips; classes are those of the first part, the second, ...

    Its root is the deepest folder that holds all of their roots.

    Raises:
        ConfigError: fewer than two parts, two of one name, a fold that a part lacks, or parts
            without a fixed fold that have different numbers of folds.
    """
    names = [part.name for part in parts]
    if len(parts) < 2 or len(set(names)) < len(names):
        raise ConfigError(f"a union needs two datasets or more, of different names; got {names}")
    folds = _num_folds(parts)
    shared = _classes_of_several(parts)
    root = Path(os.path.commonpath([part.manifest.root.resolve() for part in parts]))
    classes: list[str] = []
    records: list[ClipRecord] = []
    for part in parts:
        records += _records(part, root, first_label=len(classes), folds=folds)
        classes += [f"{part.name}/{c}" if c in shared else c for c in part.manifest.classes]
    return Manifest(root, tuple(classes), tuple(records))


def _num_folds(parts: Sequence[Part]) -> int:
    for part in parts:
        if part.fold is not None and not 1 <= part.fold <= part.manifest.num_folds:
            raise ConfigError(
                f"{part.name}: no fold {part.fold}; it has folds 1 to {part.manifest.num_folds}"
            )
    free = {part.name: part.manifest.num_folds for part in parts if part.fold is None}
    if len(set(free.values())) > 1:
        raise ConfigError(
            f"these datasets have different numbers of folds, {free}: fix the fold of some"
        )
    return next(iter(free.values()), 1)


def _classes_of_several(parts: Sequence[Part]) -> set[str]:
    counts = Counter(name for part in parts for name in part.manifest.classes)
    return {name for name, count in counts.items() if count > 1}


def _records(part: Part, root: Path, *, first_label: int, folds: int) -> list[ClipRecord]:
    place = part.manifest.root.resolve().relative_to(root)
    return [
        replace(
            record,
            path=(place / record.path).as_posix(),
            label=record.label + first_label if record.label >= 0 else -1,
            splits=(record.splits[part.fold - 1],) * folds if part.fold else record.splits,
        )
        for record in part.manifest.records
    ]
