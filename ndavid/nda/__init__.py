"""Negative data augmentation: break a batch of clips or images on purpose.

>>> import torch
>>> from ndavid import nda
>>> clips = torch.rand(4, 3, 16, 32, 32)
>>> op = nda.from_spec("jigsaw:grid=2 | frame_shuffle")
>>> broken = op(clips, generator=torch.Generator().manual_seed(0))
>>> broken.shape
torch.Size([4, 3, 16, 32, 32])
"""

from ndavid.nda.base import Broken, NegativeAugmentation, Params, ShapeError
from ndavid.nda.compose import OPS, Compose, OneOf, from_spec, to_spec
from ndavid.nda.content import Content
from ndavid.nda.mixing import CutMix, Mixup, Stitch, TemporalStitch
from ndavid.nda.spatial import Cutout, Jigsaw, PatchResample
from ndavid.nda.temporal import (
    CuboidJigsaw,
    FrameRepeat,
    FrameShuffle,
    Reverse,
    TemporalJigsaw,
    motion,
)

__all__ = [
    "OPS",
    "Broken",
    "Compose",
    "Content",
    "CuboidJigsaw",
    "CutMix",
    "Cutout",
    "FrameRepeat",
    "FrameShuffle",
    "Jigsaw",
    "Mixup",
    "NegativeAugmentation",
    "OneOf",
    "Params",
    "PatchResample",
    "Reverse",
    "ShapeError",
    "Stitch",
    "TemporalJigsaw",
    "TemporalStitch",
    "from_spec",
    "motion",
    "to_spec",
]
