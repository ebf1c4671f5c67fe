"""Files that appear whole or not at all, and the SHA-256 of files.

A predictable temporary name in a folder that data came into could be a link that was laid there to
have its target overwritten. The names here are drawn anew. A link at the file's own name is
replaced, not followed.
"""

from __future__ import annotations

import hashlib
import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from ndavid.errors import DataError

# What marks a file that was not finished: a leftover of a process that was killed.
MARK = ".partial"


@contextmanager
def whole_file(path: Path, *, sync: bool = True) -> Iterator[BinaryIO]:
    """A binary stream whose content becomes `path` if the block ends well, and else vanishes.

    Args:
        path: the file.
        sync: wait until its content is on the disk.

    Raises:
        OSError: it cannot be written.
    """
    # Cut, or the marks would push a long name beyond what a file system takes.
    partial = path.with_name(f".{path.name[:32]}.{secrets.token_hex(8)}{MARK}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    handle = os.open(partial, flags | getattr(os, "O_BINARY", 0), 0o666)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
            if sync:
                stream.flush()
                os.fsync(stream.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_text(path: Path) -> Iterator[TextIO]:
    """The same of text: UTF-8, with line ends as they are written."""
    with whole_file(path) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
        yield text
        text.flush()
        text.detach()  # whole_file closes what is below


@contextmanager
def whole_path(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A temporary name beside `path`, with its suffix, for those who open their files themselves.

    What they wrote there becomes `path` if the block ends well, and else vanishes.

    Args:
        path: the file.
        sync: wait until its content is on the disk.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.stem[:32]}.{secrets.token_hex(8)}{MARK}{path.suffix}")
    try:
        yield partial
        if sync:
            sync_to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync_to_disk(path: Path) -> None:
    """Waits until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file as hex.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with open(path, "rb") as stream:
            return sha256_of(stream)
    except OSError as error:
        raise DataError(path, f"cannot read it: {error.strerror}") from error


def sha256_of(stream: BinaryIO) -> str:
    """The SHA-256 of what is left of a stream, as hex."""
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_whole_text(path: Path, content: str) -> None:
    """Writes a text file whole or not at all. Raises OSError where it cannot be written."""
    with whole_text(path) as stream:
        stream.write(content)


def remove_leftovers(folder: Path, name: str) -> None:
    """Removes what killed processes left of files in `folder` whose names match the pattern."""
    for leftover in folder.glob(f".{name}.*{MARK}"):
        leftover.unlink(missing_ok=True)
