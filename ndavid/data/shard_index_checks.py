"""Whether an index of shards is sound: every value's type and range, and every name in it.

An index comes with shards from anywhere. Its file names are opened, its labels and lengths are
trained on, and its paths are printed, so nothing of it is taken as it is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from ndavid.data.names import fault_of_name, fault_of_text

# A name beside the index: no folder, no scheme and no letter that a shell or a URL reads.
_TAR_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*\.tar")
_SHA256 = re.compile(r"[0-9a-f]{64}")

# Beyond these a number is damage: 2^31 frames are two years of video.
_MOST_FRAMES = 2**31
_MOST_PIXELS = 2**20
_MOST_FPS = 1e9
_MOST_BYTES = 2**50
_MOST_FOLDS = 10_000


def load_json(text: bytes) -> Any:
    """JSON without NaN and without a key given twice. Raises ValueError for any other."""
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


def check_head(index: Mapping[str, Any]) -> None:
    """Checks all but the shards. Raises ValueError, or KeyError for what is missing."""
    if index["split"] != "":  # that of a tree of images without parts
        text("split", index["split"])
    whole("fold", index["fold"], 0, _MOST_FOLDS)
    if not isinstance(index["source"], dict):
        raise ValueError("'source' must be an object")
    names = a_list("classes", index["classes"])
    for name in names:
        text("class name", name)
    unique("class", names)


def check_shard(shard: Any) -> None:
    """Checks one entry of ``shards``, but for its samples. Raises ValueError or KeyError."""
    if not isinstance(shard, dict):
        raise ValueError(f"a shard must be an object, not {_short(shard)}")
    file = shard["file"]
    if not isinstance(file, str) or not _TAR_NAME.fullmatch(file):
        raise ValueError(
            f"a shard's file must be a plain name beside the index, such as 000000.tar, not "
            f"{_short(file)}"
        )
    whole(f"bytes of {file}", shard["bytes"], 0, _MOST_BYTES)
    if not isinstance(shard["sha256"], str) or not _SHA256.fullmatch(shard["sha256"]):
        found = _short(shard["sha256"])
        raise ValueError(f"the sha256 of {file} must be 64 hexadecimal digits, not {found}")
    a_list(f"samples of {file}", shard["samples"])


def check_sample(sample: Mapping[str, Any]) -> None:
    """Checks the facts of one sample, by field. Raises ValueError."""
    for field, value in sample.items():
        _FIELDS[field](field, value)


def check_labels(labels: Sequence[int], num_classes: int) -> None:
    """Raises ValueError where a label has no class; -1 stands for none."""
    low, high = min(labels), max(labels)
    if low < -1 or high >= num_classes:
        raise ValueError(f"labels run from {low} to {high}, but there are {num_classes} classes")


def unique(what: str, names: Sequence[str]) -> None:
    """Raises ValueError for a name that is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"{what} {name!r} is listed twice")
        seen.add(name)


def a_list(what: str, value: Any) -> list[Any]:
    """`value`, once it is a list. Raises ValueError."""
    if not isinstance(value, list):
        raise ValueError(f"{what} must be a list, not {_short(value)}")
    return value


def text(what: str, value: Any) -> None:
    """Raises ValueError for what is no text, empty, or holds control characters."""
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, not {_short(value)}")
    if fault := fault_of_text(what, value):
        raise ValueError(fault)


def whole(what: str, value: Any, low: int, high: int) -> None:
    """Raises ValueError for what is no whole number (true is none) from low to high."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} must be a whole number from {low} to {high}, not {_short(value)}")


def _path(what: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError(f"{what} must be text, not {_short(value)}")
    if fault := fault_of_name(value):
        raise ValueError(fault)


def _group(what: str, value: Any) -> None:
    if value != "":
        text(what, value)


def _label(what: str, value: Any) -> None:
    whole(what, value, -1, 2**31)


def _frames(what: str, value: Any) -> None:
    whole(what, value, 1, _MOST_FRAMES)


def _damaged(what: str, value: Any) -> None:
    if value is not None:  # they were not counted
        whole(what, value, 0, _MOST_FRAMES)


def _pixels(what: str, value: Any) -> None:
    whole(what, value, 1, _MOST_PIXELS)


def _fps(what: str, value: Any) -> None:
    if type(value) not in (int, float) or not 0 <= value <= _MOST_FPS:
        raise ValueError(f"{what} must be a number from 0 (unknown), not {_short(value)}")


_FIELDS: dict[str, Callable[[str, Any], None]] = {
    "path": _path,
    "label": _label,
    "group": _group,
    "num_frames": _frames,
    "fps": _fps,
    "width": _pixels,
    "height": _pixels,
    "damaged": _damaged,
}


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique("key", [key for key, _ in pairs])
    return dict(pairs)


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def _short(value: Any) -> str:
    words = repr(value)
    return words if len(words) <= 60 else f"{words[:60]}..."
