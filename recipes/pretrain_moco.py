"""Pretrain an encoder of images or of clips with MoCo, with or without negative data augmentation.

    accelerate launch recipes/pretrain_moco.py \\
        --config recipes/configs/moco/cifar10_resnet18_nda-jigsaw.yaml \\
        --data.root data/cifar10 --run.output runs/cifar10-jigsaw

``data.root`` may hold clips or images. Any key can be set on the command line (``--nda.spec
jigsaw:grid=3``); ``--help`` lists them. A run that was stopped goes on when the command is given
again. Several CPU processes: ``torchrun``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ndavid.collectives import rank
from ndavid.config import given_keys, parse, run_main
from ndavid.data.config import ViewsDataConfig
from ndavid.data.transforms import AugmentConfig
from ndavid.data.video import collate
from ndavid.data.views import TrainingViews, open_views
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.resume_rules import superseded
from ndavid.engine.rng import seeded
from ndavid.engine.run_config import RunConfig
from ndavid.evaluation.knn_monitor import KnnMonitor, KnnMonitorConfig
from ndavid.evaluation.run_page import RunPage
from ndavid.methods.moco import MocoMethod, warn_of_long_queue
from ndavid.methods.nda_config import (
    MOCO_DEFAULTS_BEFORE,
    MOCO_DEFAULTS_SINCE,
    MocoNdaConfig,
)
from ndavid.models.moco import MocoConfig
from ndavid.ranges import POSITIVE, check_ranges


@dataclass(kw_only=True)
class ObjectiveConfig:
    """How queries meet keys."""

    temperature: float = 0.2
    """Divides the cosines (MoCo v2's)."""
    symmetric: bool = False
    """Each view is a query and a key once."""

    def __post_init__(self) -> None:
        check_ranges(self, temperature=POSITIVE)


@dataclass(kw_only=True)
class PretrainMocoConfig:
    """Everything that decides a MoCo pretraining run."""

    data: ViewsDataConfig = field(default_factory=ViewsDataConfig)
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(preset="moco_v2"))
    model: MocoConfig = field(default_factory=MocoConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    nda: MocoNdaConfig = field(default_factory=MocoNdaConfig)
    monitor: KnnMonitorConfig = field(default_factory=KnnMonitorConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(output="runs/moco"))


def build_monitor(config: PretrainMocoConfig, data: TrainingViews) -> KnnMonitor:
    """kNN accuracy on training samples, every few epochs."""
    return KnnMonitor(
        config.monitor,
        data.plain,
        data.labels,
        group_of=data.groups,
        seed=config.run.seed,
        last_epoch=config.run.epochs,
    )


def as_begun(config: PretrainMocoConfig, argv: Sequence[str]) -> PretrainMocoConfig:
    """The config with the defaults that its run began with, where they have changed since."""
    if config.run.resume != "auto":
        return config
    old = superseded(
        Path(config.run.output),
        config,
        MOCO_DEFAULTS_BEFORE,
        given=given_keys(argv),
        since=MOCO_DEFAULTS_SINCE,
    )
    if not old:
        return config
    if rank() == 0:
        print("goes on with", ", ".join(f"{key}={value}" for key, value in old.items()), "as begun")
    changed = {key.removeprefix("nda."): value for key, value in old.items()}
    return replace(config, nda=replace(config.nda, **changed))


def main() -> None:
    argv = sys.argv[1:]
    config = as_begun(parse(PretrainMocoConfig, argv, description=__doc__ or ""), argv)
    data = open_views(config.data, config.augment, config.nda.num_views)
    if rank() == 0:
        print(data.summary)
    warn_of_long_queue(config.model.queue_size, len(data.dataset))
    with seeded(config.run.seed, "init"):
        method = MocoMethod(
            config.model,
            config.nda,
            temperature=config.objective.temperature,
            symmetric=config.objective.symmetric,
            augment=data.augment,
        )
    page = RunPage("MoCo", data.dataset, seed=config.run.seed)
    with contextlib.ExitStack() as lock:
        result = fit(
            method,
            data.dataset,
            config=config,
            run=config.run,
            optim=config.optim,
            collate=collate,
            on_start=page.start,
            on_save=page.refresh,
            on_epoch_end=build_monitor(config, data),
            lock=lock,
        )
        if rank() == 0:
            print(page.finish(result.output))


if __name__ == "__main__":
    run_main(main)
