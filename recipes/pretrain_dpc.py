"""Pretrain a video encoder with DPC, with or without negative data augmentation.

    accelerate launch recipes/pretrain_dpc.py \\
        --config recipes/configs/dpc/ucf101_r18_nda-stitch.yaml \\
        --data.root data/ucf101 --run.output runs/ucf101-stitch

Any key can be set on the command line (``--nda.spec jigsaw:grid=3``); ``--help`` lists them. A run
that was stopped goes on when the command is given again. Several CPU processes: ``torchrun``.
"""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass, field

from ndavid.collectives import rank
from ndavid.config import parse, run_main
from ndavid.data.clip_sets import open_clips
from ndavid.data.config import TrainingDataConfig
from ndavid.data.sampling import DpcBlocks
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, collate
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import seeded
from ndavid.engine.run_config import RunConfig
from ndavid.evaluation.run_page import RunPage
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.nda_config import NdaConfig
from ndavid.models.dpc import DpcConfig


@dataclass(kw_only=True)
class ObjectiveConfig:
    """How predictions meet targets; the defaults are DPC's raw dot product."""

    temperature: float = 1.0
    """Divides the similarities."""
    normalize: bool = False
    """Compare unit vectors; then give a temperature, such as 0.1."""
    chunk_rows: int = 0
    """Rows of the dense softmax (B * P * h * w) scored at a time, so that memory grows with the
    batch and not with its square; about as fast from some hundred rows on. 0: all at once."""


@dataclass(kw_only=True)
class PretrainDpcConfig:
    """Everything that decides a DPC pretraining run."""

    data: TrainingDataConfig = field(default_factory=TrainingDataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    model: DpcConfig = field(default_factory=DpcConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    nda: NdaConfig = field(default_factory=NdaConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    run: RunConfig = field(default_factory=lambda: RunConfig(output="runs/dpc"))


def build_dataset(config: PretrainDpcConfig) -> ClipDataset:
    """The training clips, in DPC's blocks, augmented."""
    sampler = DpcBlocks(
        num_blocks=config.model.num_blocks,
        block_len=config.model.block_len,
        frame_stride=config.data.frame_stride,
        short=config.data.short,
    )
    clips = open_clips(config.data, sampler)
    print(clips.summary)
    return ClipDataset(
        clips.records,
        clips.root,
        sampler,
        train_transform(config.augment),
        backend=config.data.backend,
        on_error="next",
        damaged=config.data.damaged,
        store=clips.store,
    )


def main() -> None:
    config = parse(PretrainDpcConfig, sys.argv[1:], description=__doc__ or "")
    dataset = build_dataset(config)
    with seeded(config.run.seed, "init"):
        method = DpcMethod(
            config.model,
            config.nda,
            temperature=config.objective.temperature,
            normalize=config.objective.normalize,
            chunk_rows=config.objective.chunk_rows,
        )
    page = RunPage("DPC", dataset, seed=config.run.seed)
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
            lock=lock,
        )
        if rank() == 0:
            print(page.finish(result.output))


if __name__ == "__main__":
    run_main(main)
