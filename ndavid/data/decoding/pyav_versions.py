"""What differs between the versions of PyAV, 14 to 19, so that the rest need not know of it."""

from __future__ import annotations

from typing import Any, BinaryIO

import av
from av.container import InputContainer

_MAJOR = int(av.__version__.split(".")[0])

# Before version 17 converting was single-threaded and the argument did not exist.
CONVERT_ON_ONE_THREAD: dict[str, Any] = {"threads": 1} if _MAJOR >= 17 else {}

# Some of HMDB51's files carry metadata that is not UTF-8. Version 19 reads metadata when it is
# asked for, and no longer has the argument.
_OPEN: dict[str, Any] = {"metadata_errors": "replace"} if _MAJOR < 19 else {}


def open_video(video: str | BinaryIO) -> InputContainer:
    """The container of a file, or of a stream of its bytes. Raises what `av.open` raises."""
    return av.open(video, "r", **_OPEN)
