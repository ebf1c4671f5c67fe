"""Which data a run reads: images or clips, in files or in shards, under the same keys.

``root`` is what the user has: the folder that ``datasets/prepare.py`` wrote, a tree of class
folders with images, an archive, or the folder of a set that torchvision knows. What it holds is
found out, unless ``source`` says it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ndavid.config import changeable
from ndavid.data.shard_index import locate
from ndavid.errors import ConfigError
from ndavid.ranges import AT_LEAST_1, check_ranges

# fmt: off
Source = Literal[
    "auto", "clips", "cifar10", "cifar100", "stl10", "svhn", "dtd", "celeba",
    "folder", "flat", "packed",
]
# fmt: on
"""What ``root`` holds."""


@dataclass(kw_only=True)
class DataConfig:
    """Which images or clips are read."""

    source: Source = "auto"
    """what root holds: clips (prepared videos), one of torchvision's sets, folder (class folders of
    images), flat (images without classes) or packed (an archive); auto: clips where there is a
    manifest.csv, packed for a .npz file, else folder"""
    root: str = changeable("", when="with the same data")
    """the folder that datasets/prepare.py wrote, the set's folder, the tree, or the .npz file"""
    shards: str = changeable("", when="with the same data")
    """instead of root, shards that datasets/shard.py wrote: path/{000000..000127}.tar, local or a
    URL, or the folder that holds them"""
    split: str = "train"
    """clips: train, test, val; cifar: train, test; stl10: train, test, unlabeled, train+unlabeled;
    svhn: train, test, extra; dtd: train, val, test (of its first partition); celeba: train, valid,
    test, all; folder: the subfolder that holds the class folders, "" for root itself; flat: the
    subfolder that holds the images at any depth, "" for root itself, and so is train where there is
    no such subfolder; packed: the prefix of the arrays; shards: the split they were written of"""
    classes: list[str] = field(default_factory=list)
    """of images, names of the classes to take, labelled in this order; empty: all"""
    class_list: str = ""
    """of source folder, a text file with one class per line, in label order, to take only these
    (the first word counts: ImageNet-100 lists name the synset first)"""
    download: bool = False
    """let torchvision fetch what is missing, first from one process"""

    def kind(self) -> Literal["clips", "images"]:
        """What the data are.

        Raises:
            ConfigError: neither root nor shards are named.
            DataError: shards that cannot be read.
        """
        if self.shards:
            return locate(self.shards).index.kind
        return "clips" if self.resolve_source() == "clips" else "images"

    def resolve_source(self) -> Source:
        """What root holds; an auto source becomes what is found, so that a run records it.

        Raises:
            ConfigError: nothing is named.
        """
        if not self.root:
            raise ConfigError(
                "no data: data.root is empty; give the folder that datasets/prepare.py wrote, a "
                "folder or an archive of images, or data.shards, what datasets/shard.py wrote"
            )
        if self.source == "auto":
            root = Path(self.root)
            if root.suffix == ".csv" or (root / "manifest.csv").is_file():
                self.source = "clips"
            else:
                self.source = "packed" if root.suffix == ".npz" else "folder"
        return self.source


@dataclass(kw_only=True)
class TrainingDataConfig(DataConfig):
    """Which images or clips are trained on, and how clips are read."""

    fold: int = 1
    """official split of clips, from 1; shards must have been written of it"""
    frame_stride: int = 3
    """every how many-th frame of a video is taken"""
    short: Literal["loop", "pad", "drop"] = "loop"
    """videos shorter than a clip: start over, repeat the last frame, or leave out"""
    backend: Literal["pyav", "decord", "torchcodec", "frames"] = "pyav"
    """decoder of videos; shards are for pyav"""
    damaged: Literal["report", "bad"] = "report"
    """videos with frames that the decoder flags as damaged: used and counted, or as bad as a file
    that cannot be read"""

    def __post_init__(self) -> None:
        check_ranges(self, fold=AT_LEAST_1, frame_stride=AT_LEAST_1)


@dataclass(kw_only=True)
class ViewsDataConfig(TrainingDataConfig):
    """Images or clips, and where several views of them are made."""

    num_frames: int = 16
    """frames of a clip"""
    same_frames: bool = False
    """all views of a video show the same frames; else each draws its own start"""
    augment_on: Literal["workers", "device"] = "workers"
    """workers, sample by sample; device, in batches: for image sets of one small size"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, num_frames=AT_LEAST_1)
