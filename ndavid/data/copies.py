"""Test videos that are byte copies of training videos, whatever they are called."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from ndavid.data.file_digests import DigestKind, file_facts, size_of
from ndavid.data.manifest import ClipRecord
from ndavid.errors import DataError


def copies_across(
    train: Sequence[ClipRecord], test: Sequence[ClipRecord], root: Path
) -> tuple[tuple[str, str], ...]:
    """(test path, training path) of each test video whose bytes are those of a training video.

    Only files of equal size are looked at, first at both ends, and to the last byte where those
    are alike. Files that cannot be read are copies of nothing.
    """
    sizes = {record.path: _size(record, root) for record in (*train, *test)}
    shared = {sizes[r.path] for r in train} & {sizes[r.path] for r in test} - {-1, 0}
    some = [[r for r in part if sizes[r.path] in shared] for part in (train, test)]
    for kind in ("ends", "sha256"):
        digests = [_by_digest(part, root, kind) for part in some]
        alike = digests[0].keys() & digests[1].keys()
        some = [[r for digest in alike for r in part[digest]] for part in digests]
    return tuple(
        sorted(
            (record.path, digests[0][digest][0].path)
            for digest in alike
            for record in digests[1][digest]
        )
    )


def _by_digest(
    records: Sequence[ClipRecord], root: Path, kind: DigestKind
) -> dict[str, list[ClipRecord]]:
    found: dict[str, list[ClipRecord]] = defaultdict(list)
    for record in records:
        try:
            found[file_facts(root / record.path, kind).digest].append(record)
        except DataError:
            continue
    return found


def _size(record: ClipRecord, root: Path) -> int:
    """Bytes, -1 where there is no file."""
    try:
        return size_of(root / record.path)
    except OSError:
        return -1
