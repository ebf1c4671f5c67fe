"""Sources on both sides of a split: clips cut from one video must be either seen or tested.

Official splits go by source within a class, so a (class, source) on two sides is a defect. HMDB51
cuts clips of different classes from one film and does split those; that is counted apart.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from ndavid.data.manifest import ClipRecord, Manifest

Source = TypeVar("Source")

# UCF101 numbers its groups anew in every class: g01 of two classes are two sources.
_NUMBERED = re.compile(r"g\d+")


@dataclass(frozen=True)
class Leak:
    """A source that lies on several sides of a fold (counted from 1), with its clips on each."""

    fold: int
    class_name: str
    group: str
    counts: tuple[tuple[str, int], ...]

    def __str__(self) -> str:
        sides = ", ".join(f"{count} in {side}" for side, count in self.counts)
        return f"fold {self.fold}: {self.class_name} {self.group}: {sides}"


def leaked_groups(manifest: Manifest) -> tuple[Leak, ...]:
    """Every (class, group) whose clips lie on more than one side of a fold."""
    leaks = []
    for fold in range(1, manifest.num_folds + 1):
        sides = _sides(manifest.records, fold, lambda record: (record.label, record.group))
        for (label, group), counts in sorted(sides.items()):
            name = manifest.classes[label] if label >= 0 else "(unlabelled)"
            leaks.append(Leak(fold, name, group, tuple(sorted(counts.items()))))
    return tuple(leaks)


def sources_shared_by_classes(manifest: Manifest, fold: int) -> tuple[str, ...]:
    """Sources with clips on several sides of a fold once classes are not told apart."""
    named = [record for record in manifest.records if not _NUMBERED.fullmatch(record.group)]
    return tuple(sorted(_sides(named, fold, lambda record: record.group)))


def _sides(
    records: Iterable[ClipRecord], fold: int, source_of: Callable[[ClipRecord], Source]
) -> dict[Source, Counter[str]]:
    """Source -> clips on each side, for the sources on more than one."""
    counts: dict[Source, Counter[str]] = defaultdict(Counter)
    for record in records:
        side = record.splits[fold - 1]
        if side and record.group:
            counts[source_of(record)][side] += 1
    return {source: sides for source, sides in counts.items() if len(sides) > 1}
