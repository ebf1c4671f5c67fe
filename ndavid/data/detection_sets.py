"""Which detection set is read: its format, its folder, and the parts that train and test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ndavid.config import changeable
from ndavid.data.coco import read_coco
from ndavid.data.detection import DetectionSet, join
from ndavid.data.voc import read_voc
from ndavid.errors import ConfigError


@dataclass(kw_only=True)
class DetectionDataConfig:
    """A detection set in the layout of VOC or of COCO."""

    format: Literal["voc", "coco"] = "voc"
    """voc: ImageSets/Main and Annotations/*.xml; coco: annotations/instances_*.json"""
    root: str = changeable("", when="with the same data")
    """folder of the set: VOCdevkit, or the one that holds COCO's annotations and images"""
    train: list[str] = field(default_factory=lambda: ["VOC2007/trainval", "VOC2012/trainval"])
    """parts to train on, joined. voc: year's folder/list, or the list alone where the root holds
    ImageSets itself; coco: NAME in annotations/instances_NAME.json, whose images are in NAME"""
    test: list[str] = field(default_factory=lambda: ["VOC2007/test"])
    """parts that are measured"""
    train_difficult: bool = False
    """whether VOC's `difficult` objects are trained on; they are never measured"""

    def __post_init__(self) -> None:
        if not self.train or not self.test:
            raise ConfigError("data.train and data.test must name at least one part each")


def open_detection(config: DetectionDataConfig, parts: Sequence[str]) -> DetectionSet:
    """The named parts of a set as one.

    Raises:
        ConfigError: no root.
        DataError: a list, an annotation or a JSON that is missing or broken.
    """
    if not config.root:
        raise ConfigError("data.root must name the folder of the detection set")
    read = read_voc if config.format == "voc" else read_coco
    return join([read(config.root, part) for part in parts])
