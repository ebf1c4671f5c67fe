"""Fetch large files: resumed by HTTP Range, retried, and checked by size and SHA-256.

The addresses are the official ones. The digests are those that torchvision's dataset prototypes
pinned for these archives, so a mirror, or a server whose certificate chain is broken (UCF's often
is), can be used without trusting it.
"""

from __future__ import annotations

import errno
import http.client
import json
import os
import re
import shutil
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from ndavid.errors import DataError
from ndavid.files import file_sha256, whole_file

CHUNK = 1 << 20
TIMEOUT_SECONDS = 60.0
RETRIES = 8


@dataclass(frozen=True)
class Resource:
    """A file of a dataset: where it is, what it is called here, and how to know it.

    Attributes:
        url: its official address.
        name: file name.
        folder: where its contents go, below the dataset's folder.
        size: bytes, where known.
        sha256: hexadecimal digest, where known.
        nested: it holds archives that are unpacked in turn.
    """

    url: str
    name: str
    folder: str
    size: int | None = None
    sha256: str | None = None
    nested: bool = False


RESOURCES: dict[str, tuple[Resource, ...]] = {
    "ucf101": (
        Resource(
            "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
            "UCF101TrainTestSplits-RecognitionTask.zip",
            "annotations",
            113_943,
            "5c0d1a53b8ed364a2ac830a73f405e51bece7d98ce1254fd19ed4a36b224bd27",
        ),
        Resource(
            "https://www.crcv.ucf.edu/data/UCF101/UCF101.rar",
            "UCF101.rar",
            "videos",
            6_932_971_618,
            "ca8dfadb4c891cb11316f94d52b6b0ac2a11994e67a0cae227180cd160bd8e55",
        ),
    ),
    "hmdb51": (
        Resource(
            "https://serre-lab.clps.brown.edu/wp-content/uploads/2013/10/test_train_splits.rar",
            "test_train_splits.rar",
            "annotations",
            sha256="229c94f845720d01eb3946d39f39292ea962d50a18136484aa47c1eba251d2b7",
        ),
        Resource(
            "https://serre-lab.clps.brown.edu/wp-content/uploads/2013/10/hmdb51_org.rar",
            "hmdb51_org.rar",
            "videos",
            sha256="9e714a0d8b76104d76e932764a7ca636f929fff66279cda3f2e326fa912a328e",
            nested=True,
        ),
    ),
}


class _Interrupted(Exception):
    """The connection gave less than it promised; what came is kept."""


def fetch(
    url: str,
    target: str | os.PathLike[str],
    *,
    size: int | None = None,
    sha256: str | None = None,
    retries: int = RETRIES,
    insecure: bool = False,
    progress: bool = True,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Download `url` to `target`, going on from `target.part` where an earlier try left it.

    Args:
        url: http or https.
        target: the file; it appears when it is whole and checked, and a checked one is kept.
        size: bytes expected; otherwise the server's Content-Length is held to.
        sha256: digest expected, in hexadecimal.
        retries: tries after the first that end without a new byte; progress starts the count anew.
        insecure: don't check the server's certificate; only with `sha256`.
        progress: show a bar.
        sleep: waits between tries, 1, 2, 4, ... up to 60 seconds.

    Raises:
        DataError: the server refuses, keeps failing, or the file is not the one expected.
        ValueError: `insecure` without `sha256`.
    """
    if insecure and not sha256:
        raise ValueError("without checking the certificate, a SHA-256 is needed to know the file")
    target = Path(target)
    if target.exists() and _is_expected(target, size, sha256):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    failures = 0
    while True:
        before = _size(part)
        try:
            total = _fetch_rest(url, part, size, insecure, progress)
            break
        except urllib.error.HTTPError as error:
            if error.code < 500 and error.code not in (408, 429):
                raise DataError(url, f"the server says {error.code} {error.reason}") from error
            reason = f"{error.code} {error.reason}"
        except (OSError, http.client.HTTPException, _Interrupted) as error:
            if isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError):
                hint = "; --insecure skips the check, the SHA-256 stays" if sha256 else ""
                raise DataError(url, f"the server's certificate is not trusted{hint}") from error
            if isinstance(error, OSError) and error.filename is not None:
                raise DataError(part, f"cannot write it: {error.strerror}") from error
            reason = str(error) or type(error).__name__
        failures = 0 if _size(part) > before else failures + 1
        if failures > retries:
            raise DataError(url, f"gave up after {failures} tries without progress: {reason}")
        sleep(min(60.0, 2.0 ** max(0, failures - 1)))
    _check(url, part, size or total, sha256)
    os.replace(part, target)
    _tag_file(part).unlink(missing_ok=True)
    return target


def _fetch_rest(
    url: str, part: Path, size: int | None, insecure: bool, progress: bool
) -> int | None:
    """Appends what is missing to `part`; the total the server names, or None if it doesn't."""
    have = _size(part)
    if size is not None and have == size:
        return size
    request = urllib.request.Request(url, headers={"User-Agent": "ndavid"})
    tag = _read_tag(part, url)
    if have and tag:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    context = ssl._create_unverified_context() if insecure else None
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=context)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        # What we have is as long as the file, or longer: start over, and let the check decide.
        part.unlink(missing_ok=True)
        raise _Interrupted("the server has nothing after what was fetched before") from error
    with response:
        start, total = _offered(response, have)
        if total is not None and size is not None and total != size:
            raise DataError(url, f"the server offers {total} bytes, expected {size}")
        _check_space(part, total, start)
        _write_tag(part, url, response)
        _copy(response, part, start, total, progress)
    return total


def _offered(response: http.client.HTTPResponse, have: int) -> tuple[int, int | None]:
    """(the offset that the body begins at, the whole file's length if told)."""
    if response.status == 206:
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise _Interrupted("the server sent another part than asked for")
        return have, None if match[2] == "*" else int(match[2])
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _copy(
    response: http.client.HTTPResponse,
    part: Path,
    start: int,
    total: int | None,
    progress: bool,
) -> None:
    have = start
    with (
        _open_part(part, start) as output,
        tqdm(
            total=total, initial=start, desc=part.name.removesuffix(".part"),
            unit="B", unit_scale=True, disable=not progress,
        ) as bar,
    ):  # fmt: skip
        output.seek(start)
        output.truncate()
        while chunk := response.read1(CHUNK):
            try:
                output.write(chunk)
            except OSError as error:
                raise DataError(part, f"cannot write it: {error.strerror}") from error
            have += len(chunk)
            bar.update(len(chunk))
    if total is not None and have != total:
        raise _Interrupted(f"the connection closed after {have} of {total} bytes")


def _open_part(part: Path, start: int) -> BinaryIO:
    """The file to write on; a link that lies in its place is not followed to what it means."""
    flags = os.O_WRONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOFOLLOW", 0)
    try:
        if not start:
            part.unlink(missing_ok=True)
            flags |= os.O_CREAT | os.O_EXCL
        return os.fdopen(os.open(part, flags, 0o666), "wb")
    except OSError as error:
        reason = "it is a link; remove it" if error.errno == errno.ELOOP else error.strerror
        raise DataError(part, f"cannot write it: {reason}") from error


def _check(url: str, part: Path, size: int | None, sha256: str | None) -> None:
    """A file that is not the expected one is removed: going on from it could never help."""
    found = _size(part)
    if size is not None and found != size:
        part.unlink()
        raise DataError(url, f"gave {found} bytes, expected {size}")
    if sha256 is not None and (digest := file_sha256(part)) != sha256:
        part.unlink()
        raise DataError(url, f"SHA-256 is {digest}, expected {sha256}: removed")


def _is_expected(target: Path, size: int | None, sha256: str | None) -> bool:
    if size is not None and _size(target) != size:
        return False
    return sha256 is None or file_sha256(target) == sha256


def _check_space(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise DataError(part, f"needs {total - start} more bytes, the disk has {free}")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


# The server's name for this version of the file: parts of two versions must not be joined.


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _write_tag(part: Path, url: str, response: http.client.HTTPResponse) -> None:
    etag = response.headers.get("ETag", "")
    # A weak tag cannot vouch for bytes; the date can.
    tag = etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")
    with whole_file(_tag_file(part)) as stream:
        stream.write(json.dumps({"url": url, "tag": tag}).encode())


def _read_tag(part: Path, url: str) -> str:
    try:
        found = json.loads(_tag_file(part).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return ""
    return found.get("tag", "") if found.get("url") == url else ""
