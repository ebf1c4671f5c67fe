"""What a reader of the numbers must know of the data, before the numbers.

Every evaluator puts it into its Protocol's ``warnings``, which are printed first: what was skipped
or dropped, classes that nothing was trained or tested on, and what training and test share.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from ndavid.data.copies import copies_across
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.sampling import ShortClipReport

_SHOWN = 3

Asked = Literal["class", "neighbours", "motion", "distance", "boxes"]
"""What is asked of an item: its class, its neighbours' class, its order, how far it lies from
training items, where the objects in it are."""

# What becomes of a class without training items, and of one without items that are measured.
_ABSENT: dict[Asked, tuple[str, str]] = {
    "class": ("never guessed right", "no part of accuracy or chance"),
    "neighbours": ("never found", "never asked for"),
    "motion": ("not trained on", "not tested"),
    "distance": ("not among what is known", "not tested"),
    "boxes": ("never found", "no part of AP"),
}


def dropped(report: ShortClipReport, count: int, side: str) -> list[str]:
    """Returns how many of ``count`` videos of one side were too short, where they are dropped."""
    if not report.num_dropped:
        return []
    return [
        f"{report.num_dropped} of {count} {side} videos are no longer than a clip and were dropped "
        "(views.short: drop)."
    ]


def unreadable(bad: Sequence[tuple[str, str]], side: str, unit: str) -> list[str]:
    """Returns how many items of one side were left out because they cannot be read."""
    if not bad:
        return []
    path, reason = bad[0]
    return [
        f"{len(bad)} {side} {unit} could not be read and were left out (on_bad: skip), the first: "
        f"{path}: {reason}."
    ]


def skipped_in_training(count: int, unit: str) -> list[str]:
    """Returns how many training items could not be read while a classifier was trained."""
    if not count:
        return []
    return [f"{count} training {unit} could not be read; others stood in for them."]


def absent_classes(
    classes: Sequence[str], labels: Tensor, side: str, unit: str, asked: Asked = "class"
) -> list[str]:
    """Returns which classes have none of the items that were used, in a sentence.

    Args:
        classes: Names in label order.
        labels: Of the items that were used.
        side: "training", or which ones were measured.
        unit: What the items are.
        asked: What the evaluation asks, which decides what the lack means.
    """
    there = set(labels.tolist())
    absent = [name for label, name in enumerate(classes) if label not in there]
    if not absent:
        return []
    trained, measured = _ABSENT[asked]
    what = trained if side == "training" else measured
    return [
        f"{len(absent)} of {len(classes)} classes have no {side} {unit}, and are {what}: "
        f"{_some(absent)}."
    ]


def shared_videos(
    train: Sequence[ClipRecord], test: Sequence[ClipRecord], manifest: Manifest
) -> list[str]:
    """Returns what both sides of a split share: files of the same bytes, and groups."""
    warnings = []
    if copies := copies_across(train, test, manifest.root):
        tested, known = copies[0]
        warnings.append(
            f"{len(copies)} of {len(test)} test videos are byte copies of training videos, such as "
            f"{tested} of {known}."
        )
    sides = [{(r.label, r.group) for r in part if r.group} for part in (train, test)]
    if groups := sorted(sides[0] & sides[1]):
        names = [f"{manifest.classes[label]} {group}" for label, group in groups]
        held = sum((r.label, r.group) in sides[0] for r in test)
        warnings.append(
            f"{len(groups)} groups lie on both sides of the split, with {held} of {len(test)} test "
            f"videos: {_some(names)}."
        )
    return warnings


def used_though_damaged(
    found: Sequence[tuple[str, str]], records: Sequence[ClipRecord], side: str
) -> list[str]:
    """Returns how many videos of one side were used though some of their frames are damaged.

    Args:
        found: Path of each and what is damaged, as reading them told.
        records: The videos of that side.
        side: Which.
    """
    if not found:
        return []
    path, what = found[0]
    return [
        f"{len(found)} of {len(records)} {side} videos had damaged frames and were used "
        f"(views.damaged: report), the first: {path}: {what}."
    ]


def damaged(records: Sequence[ClipRecord], side: str) -> list[str]:
    """Returns how many videos had damaged frames when they were prepared."""
    count = sum(bool(record.damaged) for record in records)
    if not count:
        return []
    return [f"{count} of {len(records)} {side} videos had damaged frames when they were prepared."]


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
