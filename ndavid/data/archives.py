"""Unpack zip, tar and rar without writing outside the target folder.

Only plain files and folders come out: an archive with an absolute name, a name that climbs out with
`..`, a link or a device is refused whole, before anything is written. Rar has no reader in Python's
library; unrar, bsdtar or 7z is asked for it, in an empty folder that is looked over afterwards.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO

from ndavid.errors import DataError

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SUFFIXES = (".zip", ".rar", *TAR_SUFFIXES)

# Tool -> (list the names one a line, extract into the current folder); {} is the archive.
_RAR_TOOLS = {
    "unrar": (["unrar", "lb", "-p-", "{}"], ["unrar", "x", "-o+", "-p-", "-inul", "{}"]),
    "bsdtar": (["bsdtar", "-tf", "{}"], ["bsdtar", "-xf", "{}"]),
    "7z": (["7z", "l", "-ba", "-slt", "-p", "{}"], ["7z", "x", "-y", "-p", "-bd", "{}"]),
}


def unpack(archive: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[Path]:
    """Unpack an archive into the folder `target`; returns the files, existing ones are replaced.

    Raises:
        DataError: not an archive, a member that would leave the folder, or no tool for rar.
    """
    archive, target = Path(archive), Path(target)
    name = archive.name.lower()
    target.mkdir(parents=True, exist_ok=True)
    try:
        if name.endswith(".zip"):
            return _unpack_zip(archive, target)
        if name.endswith(TAR_SUFFIXES):
            return _unpack_tar(archive, target)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise DataError(archive, f"cannot unpack it: {error}") from error
    if name.endswith(".rar"):
        return _unpack_rar(archive, target)
    raise DataError(archive, f"is none of {', '.join(SUFFIXES)}")


def unpack_nested(archive: str | os.PathLike[str], target: str | os.PathLike[str]) -> list[Path]:
    """Unpack an archive of archives (HMDB51: a rar a class) and remove the inner ones.

    Each inner archive goes into the folder that it lies in. Raises as `unpack`.
    """
    files = []
    for path in unpack(archive, target):
        if path.name.lower().endswith(SUFFIXES):
            files += unpack(path, path.parent)
            path.unlink()
        else:
            files.append(path)
    return files


def _unpack_zip(archive: Path, target: Path) -> list[Path]:
    files = []
    with zipfile.ZipFile(archive) as contents:
        members = contents.infolist()
        for member in members:
            # The upper half of external_attr is the Unix mode, if the writer was on Unix.
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DataError(archive, f"{member.filename!r} is a link or a device: refused")
        places = _checked_places(archive, target, (member.filename for member in members))
        for member, place in zip(members, places, strict=True):
            if not member.is_dir():
                with contents.open(member) as stream:
                    files.append(_write(stream, place))
    return files


def _unpack_tar(archive: Path, target: Path) -> list[Path]:
    files = []
    with tarfile.open(archive) as contents:
        members = contents.getmembers()
        for member in members:
            if not (member.isfile() or member.isdir()):
                raise DataError(archive, f"{member.name!r} is a link or a device: refused")
        places = _checked_places(archive, target, (member.name for member in members))
        for member, place in zip(members, places, strict=True):
            stream = contents.extractfile(member)
            if stream is not None:
                with stream:
                    files.append(_write(stream, place))
    return files


def _unpack_rar(archive: Path, target: Path) -> list[Path]:
    list_names, extract = _rar_tool(archive)
    _checked_places(archive, target, _rar_names(_run(list_names, archive, target)))
    # Beside the target, so that moving the files is a rename.
    with tempfile.TemporaryDirectory(dir=target, prefix=".unpacking-") as staging:
        _run(extract, archive, Path(staging))
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


def _run(command: list[str], archive: Path, folder: Path) -> str:
    words = [word.replace("{}", str(archive.resolve())) for word in command]
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-300:]
        raise DataError(archive, f"{words[0]} ended with {done.returncode}: {said}")
    return done.stdout


def _checked_places(archive: Path, target: Path, names: Iterable[str]) -> list[Path]:
    """Where each member goes, once all of them stay inside `target`."""
    home = target.resolve()
    places = []
    for name in names:
        path = PurePosixPath(name.replace("\\", "/"))
        # Windows' reading of the name too: a drive or a share is absolute there.
        absolute = path.is_absolute() or PureWindowsPath(name).drive
        place = home / path
        # resolve() follows links that are already in the target.
        if absolute or ".." in path.parts or not place.resolve().is_relative_to(home):
            raise DataError(archive, f"{name!r} would be written outside {target}: refused")
        places.append(place)
    return places


def _write(stream: IO[bytes], place: Path) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.partial")
    try:
        with partial.open("wb") as output:
            shutil.copyfileobj(stream, output, 1 << 20)
        os.replace(partial, place)
    finally:
        partial.unlink(missing_ok=True)
    return place


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)
