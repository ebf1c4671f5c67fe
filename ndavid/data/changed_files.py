"""Are the files still those that were prepared?

A manifest's facts (frames, size, whether decord can be trusted) hold for the file that `prepare`
read. A row with `bytes` and `digest` says which one that was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ndavid.data.file_digests import content_facts, file_facts, kind_of, size_of
from ndavid.data.manifest import ClipRecord
from ndavid.errors import DataError


def is_recorded(record: ClipRecord) -> bool:
    """Whether a row says which file it is of; rows of older versions do not."""
    return record.num_bytes is not None or bool(record.digest)


def change_of(record: ClipRecord, root: Path) -> str:
    """What differs from the file that was prepared, in words; "" where nothing does.

    Costs one look at the size and two small reads, or all bytes where the row's digest is of all.
    A file that cannot be read is not called changed: who reads it says what is wrong.
    """
    path = root / record.path
    try:
        return _difference(
            record, size_of(path), lambda: file_facts(path, kind_of(record.digest)).digest
        )
    except (OSError, DataError):
        return ""


def change_of_content(record: ClipRecord, content: bytes) -> str:
    """The same as `change_of`, of a file whose bytes are in memory."""
    return _difference(
        record, len(content), lambda: content_facts(content, kind_of(record.digest)).digest
    )


def changed_files(records: Sequence[ClipRecord], root: Path) -> dict[str, str]:
    """What differs, by path, of the records whose file is not the one that was prepared."""
    changes = {record.path: change_of(record, root) for record in records}
    return {path: change for path, change in changes.items() if change}


def _difference(record: ClipRecord, num_bytes: int, digest: Callable[[], str]) -> str:
    if record.num_bytes is not None and num_bytes != record.num_bytes:
        return f"{num_bytes} bytes where there were {record.num_bytes}"
    if record.digest and digest() != record.digest:
        return f"{num_bytes} bytes as before, but other ones"
    return ""
