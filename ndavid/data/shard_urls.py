"""Where shards lie and how their bytes come: local paths, and every URL that webdataset opens.

Those are http, https, sftp, scp (through curl), gs, hf, and ``pipe:COMMAND``, which runs a command
of the user's and reads what it prints.
"""

from __future__ import annotations

import contextlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from webdataset.gopen import Pipe, gopen
from webdataset.shardlists import expand_urls

from ndavid.errors import ConfigError, DataError

INDEX_FILE = "index.json"

# What reading a tar from a file, a pipe or a program raises; tarfile goes down a level for each
# header that speaks of the next member.
STREAM_ERRORS = (
    *(OSError, tarfile.TarError, EOFError, ValueError, zlib.error, ImportError),
    RecursionError,
)

# The file name of a shard inside a path, a URL with a query, or a command.
_SHARD_NAME = re.compile(r"[^/\s'\"=]+\.tar(?![\w.])")

# Exit codes of curl that say more than their number.
_CURL = {
    6: "its host is not known",
    7: "its server does not answer",
    18: "it broke off on the way",
    22: "its server answers with an error, such as 404 not found",
    28: "its server took too long",
}

_READ_BYTES = 1 << 20


def expand(pattern: str) -> list[str]:
    """The URLs of ``path/{000000..000127}.tar``, in order.

    Raises:
        ConfigError: braces that do not close, no URL of a .tar, or one named twice.
    """
    try:
        urls = list(expand_urls(pattern))
    except ValueError as error:
        raise ConfigError(f"shards {pattern!r}: {error}") from error
    for url in urls:
        if not _SHARD_NAME.search(url):
            raise ConfigError(
                f"shards {pattern!r}: {url!r} names no .tar; give path/{{000000..000127}}.tar or "
                f"the folder that holds {INDEX_FILE}"
            )
    if len(set(urls)) < len(urls):
        twice = next(url for url in urls if urls.count(url) > 1)
        raise ConfigError(f"shards {pattern!r} names {twice} twice")
    return urls


def shard_name(url: str) -> str:
    """The shard's file name, by which its index knows it."""
    return _SHARD_NAME.findall(url)[-1]


def sibling(url: str, name: str) -> str:
    """The URL of another file beside a shard or an index."""
    known = INDEX_FILE if not _SHARD_NAME.search(url) else shard_name(url)
    before, _, after = url.rpartition(known)
    return f"{before}{name}{after}"


def is_local(url: str) -> bool:
    """Whether it is a path, or file:, on this machine."""
    return urlparse(url).scheme in ("", "file")


def local_path(url: str) -> Path:
    """The path of a local URL."""
    return Path(re.sub("^file:(//)?", "", url))


def fetch(url: str) -> bytes:
    """A whole file. Raises DataError for one that cannot be had."""
    try:
        with open_url(url) as stream:
            return stream.read()
    except STREAM_ERRORS as error:
        raise DataError(url, describe(error)) from error


@contextlib.contextmanager
def open_url(url: str) -> Iterator[Any]:
    """A stream of bytes; leaving without an error reads it to its end.

    Raises:
        OSError: it cannot be opened, or the program that brings it failed: that is then the cause
            of whatever else was raised.
    """
    # Files are opened here: what a path is called must not choose a program of gopen's.
    opened = local_path(url).open("rb") if is_local(url) else gopen(url)
    # webdataset's own wrapper drops what a program that failed has said before it did.
    stream = opened.stream if isinstance(opened, Pipe) else opened
    with contextlib.closing(stream):
        try:
            yield stream
            # A program that is left before its end would fail for that.
            while stream.read(_READ_BYTES):
                pass
        finally:
            if isinstance(opened, Pipe):
                _end(url, opened)


def _end(url: str, pipe: Pipe) -> None:
    """Waits for a program; one that failed by itself, not for being left, is an OSError."""
    pipe.stream.close()
    code = pipe.proc.wait()
    # 141 and -13: it wrote on after it was left; 23 is curl's word for that.
    if code in (0, 141, -13) or (code == 23 and not url.startswith("pipe:")):
        return
    said = "" if url.startswith("pipe:") else _CURL.get(code, "")
    raise OSError(said or f"the program that brings it ended with code {code}")


def describe(error: BaseException) -> str:
    """An error while reading a stream, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    # webdataset puts the stream's address behind its message.
    words = " ".join(str(error).split(" @ ")[0].split())
    return f"cannot be read: {words or type(error).__name__}"
