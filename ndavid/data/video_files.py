"""Which files below a folder are videos, by their suffix."""

from __future__ import annotations

import os

from ndavid.data.file_tree import FileTree, find_files

VIDEO_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        *("3gp", "avi", "flv", "gif", "m2ts", "m4v", "mkv", "mov", "mp4", "mpeg", "mpg", "mts"),
        *("ogv", "ts", "vob", "webm", "wmv"),
    )
)


def find_videos(folder: str | os.PathLike[str]) -> FileTree:
    """The videos below a folder; raises DataError if there is no such folder."""
    return find_files(folder, VIDEO_SUFFIXES)


def list_videos(folder: str | os.PathLike[str]) -> list[str]:
    """Posix paths, relative to `folder`, of the files below it with a video's suffix, sorted.

    Each file is there once, whatever links lead to it; hidden files and folders are left out.

    Raises:
        DataError: there is no such folder.
    """
    return list(find_videos(folder).files)
