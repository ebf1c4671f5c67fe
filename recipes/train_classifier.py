"""Train a classifier of images, in whose features generated images are measured (fcd, kcd).

    accelerate launch recipes/train_classifier.py \\
        --config recipes/configs/classifier/cifar10_resnet20.yaml \\
        --data.root data/cifar10 --run.output runs/cifar10_resnet20

A share of every class of the training images is held out, and tells how good the classifier is; the
test images are never read. Any key can be set on the command line; ``--help`` lists them. A run
that was stopped goes on when the command is given again.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field

from ndavid.collectives import rank
from ndavid.config import parse, run_main
from ndavid.data.batch_augment import BatchAugment
from ndavid.data.config import DataConfig
from ndavid.data.image_sources import MemoryImages
from ndavid.data.images import ImageDataset
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import collate
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import derive_seed
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError
from ndavid.evaluation.held_out import HeldOutAccuracy
from ndavid.evaluation.image_task import split_off
from ndavid.evaluation.image_views import ImageViewsConfig, open_all_labelled
from ndavid.evaluation.pretrained import EncoderConfig, load_pooled
from ndavid.evaluation.report import write_outputs
from ndavid.evaluation.run_page import RunPage
from ndavid.evaluation.training import parameter_groups
from ndavid.methods.classification import ClassificationMethod


@dataclass(kw_only=True)
class TrainClassifierConfig:
    """Everything that decides a classifier."""

    data: DataConfig = field(default_factory=DataConfig)
    """labelled images"""
    held_out: float = 0.1
    """share of each class that is not trained on, to measure accuracy"""
    measure_every: int = 5
    """epochs between measurements; at the end it is always measured"""
    views: ImageViewsConfig = field(default_factory=ImageViewsConfig)
    """how held-out images are looked at"""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(preset="linear", size=32))
    """augmentation of training images: of those in memory by batches on the device"""
    model: EncoderConfig = field(default_factory=lambda: EncoderConfig(encoder="cifar:resnet20"))
    """the encoder, whose pooled map is the feature space, and its linear layer"""
    label_smoothing: float = 0.0
    """of the cross entropy"""
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(output="runs/classifier"))

    def __post_init__(self) -> None:
        if not 0 < self.held_out < 1 or self.measure_every < 1:
            raise ConfigError("held_out must be in (0, 1), and measure_every at least 1")
        if self.augment.size != self.views.size:
            raise ConfigError(
                f"augment.size is {self.augment.size} and views.size {self.views.size}: "
                "set both to the same"
            )


def main() -> None:
    config = parse(TrainClassifierConfig, sys.argv[1:], description=__doc__ or "")
    seed = config.run.seed
    source = open_all_labelled(config.data)
    train, held = split_off(source, config.held_out, derive_seed(seed, "holdout"))
    if rank() == 0:
        print(f"{len(train)} images to train on, {len(held)} held out")
    in_memory = isinstance(source, MemoryImages)
    method = ClassificationMethod(
        load_pooled(None, config.model, len(train.classes), seed=seed).classifier,
        config.label_smoothing,
        augment=BatchAugment(config.augment) if in_memory else None,
    )
    accuracy = HeldOutAccuracy(held, config.views, config.measure_every)
    page = RunPage("Classifier")
    with contextlib.ExitStack() as lock:
        trained = fit(
            method,
            ImageDataset(
                train, None if in_memory else train_transform(config.augment), on_error="next"
            ),
            config=config,
            run=config.run,
            optim=config.optim,
            collate=collate,
            param_groups=lambda m: parameter_groups(m, config.optim.encoder_lr_scale),
            on_epoch_end=accuracy,
            on_start=page.start,
            on_save=page.refresh,
            lock=lock,
        )
        result = accuracy.result(method, trained, train.labels, config.data, config.run)
        write_outputs(result, config, trained.output)


if __name__ == "__main__":
    run_main(main)
