"""Train a GAN, with broken images as a third kind of sample for its discriminator or without.

    accelerate launch recipes/train_gan.py \\
        --config recipes/configs/gan/cifar10_biggan_nda-jigsaw.yaml \\
        --data.root data/cifar10 --run.output runs/cifar10-gan-jigsaw

A folder of your own images, whatever their sizes:

    accelerate launch recipes/train_gan.py \\
        --config recipes/configs/gan/folder_biggan_nda-jigsaw.yaml --data.root my_images

Any key can be set on the command line (``--nda.spec stitch``); ``--help`` lists them. A run
that was stopped goes on when the command is given again. Several CPU processes: ``torchrun``.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field

import torch

from ndavid.collectives import rank
from ndavid.config import parse, run_main
from ndavid.data.config import DataConfig
from ndavid.data.image_sources import listing_notes
from ndavid.data.images import ImageDataset, image_eval_transform, open_images
from ndavid.data.video import collate
from ndavid.engine.hooks import EverySteps
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import seeded
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError
from ndavid.evaluation.gan_sheets import GanSheets, SheetsConfig, newest_sheets
from ndavid.evaluation.run_page import RunPage, apart
from ndavid.methods.gan import GanMethod
from ndavid.methods.gan_config import AdversarialConfig, GanAugmentConfig, GanNdaConfig
from ndavid.models.gan.model import GanConfig


@dataclass(kw_only=True)
class TrainGanConfig:
    """Everything that decides a GAN's training run."""

    data: DataConfig = field(default_factory=DataConfig)
    augment: GanAugmentConfig = field(default_factory=GanAugmentConfig)
    model: GanConfig = field(default_factory=GanConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    nda: GanNdaConfig = field(default_factory=GanNdaConfig)
    sheets: SheetsConfig = field(default_factory=SheetsConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(output="runs/gan"))


def open_data(config: TrainGanConfig) -> ImageDataset:
    """The training images, their short side resized and the centre cut out."""
    source = open_images(config.data)
    classes, wanted = len(source.classes), config.model.num_classes
    if wanted > 1 and wanted != classes:
        raise ConfigError(
            f"model.num_classes is {wanted}, but {config.data.root} has {classes} classes; "
            f"set model.num_classes to {classes}"
        )
    if wanted > 1 and bool((source.labels < 0).any()):
        raise ConfigError(f"{config.data.root} has images without a label; set model.num_classes 0")
    size = config.model.image_size
    return ImageDataset(source, image_eval_transform(size, resize=size), on_error="next")


def main() -> None:
    config = parse(TrainGanConfig, sys.argv[1:], description=__doc__ or "")
    dataset = open_data(config)
    if rank() == 0:
        print(f"{len(dataset)} images to train on", *listing_notes(dataset.source), sep="\n  ")
    with seeded(config.run.seed, "init"):
        method = GanMethod(
            config.model, config.nda, adversarial=config.adversarial, augment=config.augment
        )
    reader = apart(dataset)
    shown = torch.stack(
        [reader[i]["image"] for i in range(min(len(dataset), config.sheets.columns))]
    )
    sheets = GanSheets(config.sheets, shown, seed=config.run.seed)
    page = RunPage("GAN", dataset, seed=config.run.seed, more=newest_sheets)
    with contextlib.ExitStack() as lock:
        result = fit(
            method,
            dataset,
            config=config,
            run=config.run,
            optim=config.optim,
            collate=collate,
            on_start=page.start,
            on_save=page.refresh,
            on_steps=EverySteps(config.sheets.every, sheets) if config.sheets.every else None,
            lock=lock,
        )
        if rank() == 0:
            print(page.finish(result.output))


if __name__ == "__main__":
    run_main(main)
