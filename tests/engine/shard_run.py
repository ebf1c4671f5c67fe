"""The toy method of toy.py on real clips from shards, with a record of who read what.

torchrun --nproc_per_node 2 tests/engine/shard_run.py --run.output DIR --data.shards DIR \\
    --output DIR

Each process appends what it opens and reads to a file of its own in `output`.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import toy

from ndavid.config import changeable, parse, run_main
from ndavid.data import shard_store
from ndavid.data.clip_sets import open_clips
from ndavid.data.config import TrainingDataConfig
from ndavid.data.sampling import DenseClip
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, collate
from ndavid.engine.loop import fit
from ndavid.engine.rng import seeded


@dataclass(kw_only=True)
class ShardRunConfig(toy.ToyConfig):
    """A toy run that reads clips."""

    data: TrainingDataConfig = field(default_factory=TrainingDataConfig)
    output: str = changeable("")
    """where what was read is recorded; a name that a resumed run may change"""


class Recorded(ClipDataset):
    """Notes each key that is asked for."""

    reads: Path

    def __getitem__(self, key: Any) -> dict[str, Any]:
        note(self.reads, {"key": key})
        return super().__getitem__(key)


def note(reads: Path, entry: dict[str, Any]) -> None:
    with (reads / f"{os.getpid()}.jsonl").open("a") as handle:
        handle.write(json.dumps(entry) + "\n")


def main() -> None:
    config = parse(ShardRunConfig)
    reads = Path(config.output)
    reads.mkdir(parents=True, exist_ok=True)
    read_shard = shard_store.read_shard

    def noted(url: str, num_bytes: int) -> shard_store.ShardContents:
        note(reads, {"shard": Path(url).name})
        return read_shard(url, num_bytes)

    shard_store.read_shard = noted  # the workers are forked from here
    sampler = DenseClip(4, 2)
    clips = open_clips(config.data, sampler)
    dataset = Recorded(
        clips.records,
        clips.root,
        sampler,
        train_transform(AugmentConfig(size=16)),
        on_error="next",
        store=clips.store,
    )
    dataset.reads = reads
    with seeded(config.run.seed, "init"):
        method = toy.ToyMethod(config)
    fit(
        method,
        dataset,
        config=config,
        run=config.run,
        optim=config.optim,
        collate=collate,
    )


if __name__ == "__main__":
    run_main(main)
