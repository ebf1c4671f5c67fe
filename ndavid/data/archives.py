"""Unpack zip, tar and rar without writing outside the target folder.

Only plain files and folders come out: an archive with an absolute name, a name that climbs out with
`..`, a link or a device is refused whole, before anything is written, and so is one that would
unfold to more bytes than the caller allows. Rar has no reader in Python's library; unrar, bsdtar or
7z is asked for it, in an empty folder that is watched meanwhile and looked over afterwards.
"""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable
from lzma import LZMAError
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from ndavid.data.names import fault_of_name
from ndavid.data.tar_headers import BoundedTarInfo
from ndavid.errors import DataError
from ndavid.files import whole_file

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SUFFIXES = (".zip", ".rar", *TAR_SUFFIXES)

# Bytes that come out of one archive, unless the caller allows more: three times UCF101.
MAX_UNPACKED = 20 * 10**9

# What reading a damaged archive raises; zipfile has RuntimeError for a password that it lacks, and
# NotImplementedError, one of its kind, for a method that it lacks.
_ERRORS = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, RuntimeError, ValueError),
    *(zlib.error, LZMAError, OverflowError, LookupError, struct.error),
)

_ENCRYPTED = 0x1
_ZIP_METHODS = {
    zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA
}  # fmt: skip

_READ_BYTES = 1 << 20

_WATCHED_EVERY_SECONDS = 0.5

# Tool -> (list the names one a line, extract into the current folder); {} is the archive.
_RAR_TOOLS = {
    "unrar": (["unrar", "lb", "-p-", "{}"], ["unrar", "x", "-o+", "-p-", "-inul", "{}"]),
    "bsdtar": (["bsdtar", "-tf", "{}"], ["bsdtar", "-xf", "{}"]),
    "7z": (["7z", "l", "-ba", "-slt", "-p", "{}"], ["7z", "x", "-y", "-p", "-bd", "{}"]),
}


def unpack(
    archive: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_UNPACKED,
) -> list[Path]:
    """Unpack an archive into the folder `target`; returns the files, existing ones are replaced.

    Args:
        archive: a .zip, .rar or .tar, the last also compressed.
        target: the folder.
        max_bytes: the most that may come out.

    Raises:
        DataError: not an archive, a member that would leave the folder, is encrypted or packed by
            an unknown method, more than `max_bytes`, or no tool for rar.
    """
    archive, target = Path(archive), Path(target)
    name = archive.name.lower()
    target.mkdir(parents=True, exist_ok=True)
    try:
        if name.endswith(".zip"):
            return _unpack_zip(archive, target, max_bytes)
        if name.endswith(TAR_SUFFIXES):
            return _unpack_tar(archive, target, max_bytes)
        if name.endswith(".rar"):
            return _unpack_rar(archive, target, max_bytes)
    except _ERRORS as error:
        reason = str(error) or type(error).__name__
        raise DataError(archive, f"cannot unpack it: {reason}") from error
    raise DataError(archive, f"is none of {', '.join(SUFFIXES)}")


def unpack_nested(
    archive: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    max_bytes: int = MAX_UNPACKED,
) -> list[Path]:
    """Unpack an archive of archives (HMDB51: a rar a class) and remove the inner ones.

    Each inner archive goes into the folder that it lies in; `max_bytes` is for the outer one and
    for all inner ones together. Raises as `unpack`.
    """
    files, left = [], max_bytes
    for path in unpack(archive, target, max_bytes=max_bytes):
        if path.name.lower().endswith(SUFFIXES):
            inner = unpack(path, path.parent, max_bytes=left)
            left -= sum(file.stat().st_size for file in inner)
            files += inner
            path.unlink()
        else:
            files.append(path)
    return files


def _unpack_zip(archive: Path, target: Path, max_bytes: int) -> list[Path]:
    files = []
    with zipfile.ZipFile(archive) as contents:
        members = contents.infolist()
        for member in members:
            # The upper half of external_attr is the Unix mode, if the writer was on Unix.
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(archive, f"{member.filename!r} is a link or a device: refused")
            if member.flag_bits & _ENCRYPTED:
                reason = f"{member.filename!r} is encrypted: unpack it with its password yourself"
                raise DataError(archive, reason)
            if member.compress_type not in _ZIP_METHODS:
                reason = f"{member.filename!r} is packed by method {member.compress_type}"
                raise DataError(archive, f"{reason}, which Python cannot read: repack it")
        _check_size(archive, sum(member.file_size for member in members), max_bytes)
        places = _checked_places(archive, target, (member.filename for member in members))
        for member, place in zip(members, places, strict=True):
            if not member.is_dir():
                # It gives no byte beyond the size that was checked.
                with contents.open(member) as stream:
                    files.append(_write(stream, place))
    return files


def _unpack_tar(archive: Path, target: Path, max_bytes: int) -> list[Path]:
    files = []
    with tarfile.open(archive, tarinfo=BoundedTarInfo) as contents:
        members, size = [], 0
        for member in contents:
            if not (member.isfile() or member.isdir()):
                raise DataError(archive, f"{member.name!r} is a link or a device: refused")
            # Before the next one, which lies behind its bytes.
            size += member.size
            _check_size(archive, size, max_bytes)
            members.append(member)
        _read_to_end(archive, contents, max_bytes)
        places = _checked_places(archive, target, (member.name for member in members))
        for member, place in zip(members, places, strict=True):
            stream = contents.extractfile(member)
            if stream is not None:
                with stream:
                    files.append(_write(stream, place))
    return files


def _read_to_end(archive: Path, contents: tarfile.TarFile, max_bytes: int) -> None:
    """Reads what lies behind the last member: a compressed tar has its checksum at its end."""
    stream, size = contents.fileobj, 0
    while stream is not None and (part := stream.read(_READ_BYTES)):
        size += len(part)
        _check_size(archive, size, max(max_bytes, _READ_BYTES))


def _unpack_rar(archive: Path, target: Path, max_bytes: int) -> list[Path]:
    list_names, extract = _rar_tool(archive)
    _checked_places(archive, target, _rar_names(_run(list_names, archive, target)))
    # Beside the target, so that moving the files is a rename.
    with tempfile.TemporaryDirectory(dir=target, prefix=".unpacking-") as staging:
        _run(extract, archive, Path(staging), max_bytes)
        _check_size(archive, _size_below(Path(staging)), max_bytes)
        found = sorted(path for path in Path(staging).rglob("*") if not _is_folder(path))
        for path in found:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise DataError(archive, f"{path.name!r} is a link or a device: refused")
        names = [path.relative_to(staging).as_posix() for path in found]
        places = _checked_places(archive, target, names)
        for path, place in zip(found, places, strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
    return places


def _rar_tool(archive: Path) -> tuple[list[str], list[str]]:
    for tool, commands in _RAR_TOOLS.items():
        if shutil.which(tool):
            return commands
    raise DataError(
        archive,
        "unpacking rar needs one of unrar, bsdtar or 7z: "
        "apt-get install libarchive-tools (bsdtar), or brew install libarchive",
    )


def _rar_names(listing: str) -> list[str]:
    lines = listing.splitlines()
    if any(line.startswith("Path = ") for line in lines):  # 7z's long listing
        return [line[len("Path = ") :] for line in lines if line.startswith("Path = ")]
    return [line for line in lines if line.strip()]


def _run(command: list[str], archive: Path, folder: Path, max_bytes: int | None = None) -> str:
    """What a tool prints, run inside `folder`, which it may fill with up to `max_bytes`."""
    words = [word.replace("{}", str(archive.resolve())) for word in command]
    with subprocess.Popen(
        words,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as tool:
        try:
            while True:
                try:
                    printed, complained = tool.communicate(timeout=_WATCHED_EVERY_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    if max_bytes is not None:
                        _check_size(archive, _size_below(folder), max_bytes)
        except BaseException:
            tool.kill()
            raise
    if tool.returncode:
        said = " ".join((complained or printed).split())[-300:]
        raise DataError(archive, f"{words[0]} ended with {tool.returncode}: {said}")
    return printed


def _check_size(archive: Path, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        allowed = f"{max_bytes / 1e9:g} GB" if max_bytes >= 10**6 else f"{max_bytes} bytes"
        raise DataError(
            archive,
            f"would unfold to more than the {allowed} that are allowed; if it is meant to, allow "
            "more (max_bytes, or --max-unpacked of datasets/download.py)",
        )


def _size_below(folder: Path) -> int:
    """Bytes of all files in a folder that a tool may be writing into."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue  # renamed or removed since it was listed
    return total


def _checked_places(archive: Path, target: Path, names: Iterable[str]) -> list[Path]:
    """Where each member goes, once all of them stay inside `target`."""
    home = target.resolve()
    places = []
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        # Windows' reading of the name too: a drive or a share is absolute there.
        absolute = path.is_absolute() or PureWindowsPath(name).drive
        if not absolute and ".." not in path.parts and (fault := fault_of_name(name)):
            raise DataError(archive, f"{fault}: refused")
        place = home / path
        # resolve() follows links that are already in the target.
        if absolute or ".." in path.parts or not place.resolve().is_relative_to(home):
            raise DataError(archive, f"{name!r} would be written outside {target}: refused")
        places.append(place)
    return places


def _write(stream: IO[bytes], place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(place, sync=False) as output:  # of thousands of small files
        shutil.copyfileobj(stream, output, _READ_BYTES)
    return place


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)
