"""Keys that evaluators share: the weights, what they are measured on, features, and training.

All of them in one file, because jsonargparse looks for the types of inherited keys in the files of
a config's first bases only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ndavid.config import changeable
from ndavid.data.config import DataConfig
from ndavid.data.transforms import AugmentConfig
from ndavid.engine.optim import OptimConfig
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError
from ndavid.evaluation.image_views import ImageViewsConfig
from ndavid.evaluation.pretrained import ClassifierConfig, EncoderConfig
from ndavid.evaluation.views import ViewsConfig
from ndavid.ranges import SHARE_BELOW_1, check_ranges


@dataclass(kw_only=True)
class EvaluationConfig:
    """Which weights are measured, and where the result goes."""

    output: str = changeable("")
    """folder for result.json and report.html; empty: runs/, the checkpoint's name and the task
    (evaluation/output_folder.py)"""
    checkpoint: str = changeable("", when="with the same data")
    """run, checkpoint, saved model, or file of the original DPC or MoCo; empty: random weights. On
    videos {fold} in it stands for the fold's number: one pretraining a fold, which never saw that
    fold's test videos"""


@dataclass(kw_only=True)
class VideoConfig(EvaluationConfig):
    """Which videos an encoder is measured on, and how they are looked at."""

    data: DataConfig = field(default_factory=DataConfig)
    """the prepared dataset"""
    test_split: Literal["test", "val"] = "test"
    """the split that is measured; Kinetics is measured on val"""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    """the encoder, and where its features are taken (head: before the linear layer)"""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """what is read from each video"""
    folds: list[int] = field(default_factory=lambda: [1])
    """official folds; several are averaged"""

    def __post_init__(self) -> None:
        if not self.folds or len(set(self.folds)) != len(self.folds):
            raise ConfigError(f"folds must name each official fold once, not {self.folds}")


@dataclass(kw_only=True)
class ImageConfig(EvaluationConfig):
    """Which images an encoder is measured on, and how they are looked at."""

    data: DataConfig = field(default_factory=DataConfig)
    """the training images"""
    test_split: str = "test"
    """the split of the same set that is measured"""
    model: EncoderConfig = field(default_factory=EncoderConfig)
    """the encoder; its features are the mean of its last map"""
    views: ImageViewsConfig = field(default_factory=ImageViewsConfig)
    """how images are looked at, training and test alike"""

    def __post_init__(self) -> None:
        if self.test_split == self.data.split:
            raise ConfigError(f"test_split and data.split are both {self.test_split!r}")


@dataclass(kw_only=True)
class FrozenSettings(EvaluationConfig):
    """How frozen features are made and kept."""

    seed: int = 0
    """draws random weights, where asked for, and whatever else the evaluator draws"""
    device: Literal["auto", "cpu"] = "auto"
    """where features are computed: a GPU where there is one, or always the CPU"""
    cache: str = ""
    """folder for features, reusable between evaluations; empty keeps them in output/features"""

    def cache_folder(self) -> Path:
        """Returns the folder for cached features."""
        return feature_folder(self.cache, self.output)


@dataclass(kw_only=True)
class TrainingConfig(EvaluationConfig):
    """How a classifier is trained; the evaluator adds on what."""

    validation: float = 0.0
    """share of each class's training items held out to choose the epoch (of videos, by whole
    groups); 0 trains on all and reports the last epoch"""
    validate_every: int = 1
    """epochs between validations"""
    label_smoothing: float = 0.0
    """of the cross entropy"""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(preset="finetune"))
    """augmentation of training clips or images; its size must be that of the views"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=1e-3))
    """optimizer; encoder_lr_scale is the encoder's learning rate as a share of lr"""
    run: RunConfig = field(default_factory=lambda: RunConfig(output="set by output"))
    """length, seed, precision; run.output follows from output"""

    def check_training(self, size: int) -> None:
        """Raises ConfigError on values out of range, or another size than that of the views."""
        check_ranges(self, label_smoothing=SHARE_BELOW_1)
        if self.validate_every < 1 or not 0 <= self.validation < 1:
            raise ConfigError("validate_every must be at least 1, and validation in [0, 1)")
        if self.augment.size != size:
            raise ConfigError(
                f"augment.size is {self.augment.size} and views.size {size}: set both to the same"
            )


def feature_folder(cache: str, output: str) -> Path:
    """Returns the folder that ``cache`` names, or the one below ``output``."""
    return Path(cache) if cache else Path(output) / "features"
