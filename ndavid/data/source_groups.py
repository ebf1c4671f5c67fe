"""The source that a clip was cut from, by the pattern of its name.

Clips of one source must not lie on both sides of a split.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_UCF101_NAME = re.compile(r"v_(?P<name>.+)_(?P<group>g\d+)_c\d+")
_HMDB51_TAIL = re.compile(r"_[fhul]_[cn]m_np\d+_(?:fr|ba|le|ri)_(?:goo|med|bad)_\d+$")
_KINETICS_NAME = re.compile(r"(?P<id>.+)_\d{6}_\d{6}")


def source_group(path: str) -> str:
    """The source that a clip was cut from, by the pattern of its name.

    `v_Archery_g07_c04` (UCF101) gives `g07`; `TrumanShow_wave_f_nm_np1_fr_med_26` (HMDB51) gives
    `TrumanShow`: what stands before the class and the attributes. Any other name gives "".
    """
    clip = PurePosixPath(path)
    ucf101 = _UCF101_NAME.fullmatch(clip.stem)
    if ucf101:
        # Group numbers start anew in each class. (The folder HandstandPushups holds v_HandStand...)
        in_its_class = ucf101["name"].lower() == clip.parent.name.lower()
        return ucf101["group"] if in_its_class else f"{ucf101['name']}_{ucf101['group']}"
    source, is_hmdb51 = _HMDB51_TAIL.subn("", clip.stem)
    if is_hmdb51:
        return source.removesuffix(f"_{clip.parent.name}")
    return ""


def kinetics_group(path: str) -> str:
    """The YouTube id in `<id>_<start>_<end>.mp4`, "" for another name."""
    match = _KINETICS_NAME.fullmatch(PurePosixPath(path).stem)
    return match["id"] if match else ""
