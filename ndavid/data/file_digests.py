"""Which file was it? Sizes and digests, so that a file that was replaced can be told.

Two kinds, each named by how it begins:

    ends:HEX    of the size, the first and the last 64 KiB: two small reads, whatever the size.
                A change in the middle that keeps the size goes unseen.
    sha256:HEX  of all bytes.

Of a folder of frames both are taken over its files, in the order of their names: `ends` of their
names and sizes, `sha256` of their names and bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from ndavid.data.file_tree import is_hidden
from ndavid.errors import DataError
from ndavid.files import sha256_of

DigestKind = Literal["ends", "sha256"]

_END = 64 * 2**10
_ENDS_DIGITS = 32


@dataclass(frozen=True)
class FileFacts:
    """What tells a file from another one: its size in bytes, and a digest."""

    num_bytes: int
    digest: str


def file_facts(path: str | os.PathLike[str], kind: DigestKind = "ends") -> FileFacts:
    """The size and the digest of a file, or of a folder of frames.

    Raises:
        DataError: it cannot be read.
    """
    try:
        if os.path.isdir(path):
            return _facts_of_folder(Path(path), kind)
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            return FileFacts(size, _digest(stream, size, kind))
    except OSError as error:
        raise DataError(path, f"cannot read it: {error.strerror}") from error


def content_facts(content: bytes, kind: DigestKind = "ends") -> FileFacts:
    """The same as `file_facts` of a file with this content."""
    return FileFacts(len(content), _digest(io.BytesIO(content), len(content), kind))


def kind_of(digest: str) -> DigestKind:
    """Which kind a digest is of."""
    return "sha256" if digest.startswith("sha256:") else "ends"


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file, or of all files of a folder of frames.

    Raises:
        OSError: it is not there.
    """
    if os.path.isdir(path):
        return sum(file.stat().st_size for file in _files(Path(path)))
    return os.stat(path).st_size


def _digest(stream: BinaryIO, size: int, kind: DigestKind) -> str:
    if kind == "sha256":
        return f"sha256:{sha256_of(stream)}"
    ends = hashlib.sha256(f"{size}\n".encode())
    ends.update(stream.read(_END))
    if size > _END:
        stream.seek(max(_END, size - _END))
        ends.update(stream.read(_END))
    return f"ends:{ends.hexdigest()[:_ENDS_DIGITS]}"


def _facts_of_folder(folder: Path, kind: DigestKind) -> FileFacts:
    digest, total = hashlib.sha256(), 0
    for file in _files(folder):
        size = file.stat().st_size
        total += size
        digest.update(f"{file.name}\0{size}\n".encode(errors="surrogateescape"))
        if kind == "sha256":
            with file.open("rb") as stream:
                digest.update(_digest(stream, size, kind).encode())
    text = digest.hexdigest()
    return FileFacts(total, f"{kind}:{text if kind == 'sha256' else text[:_ENDS_DIGITS]}")


def _files(folder: Path) -> Iterator[Path]:
    return (
        path for path in sorted(folder.iterdir()) if path.is_file() and not is_hidden(path.name)
    )
