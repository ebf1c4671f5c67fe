"""A small MoCo pretraining through the engine, to kill and to run on two ranks.

python tests/methods/moco_run.py --run.output DIR

Leaves ``rank0.pt`` (and ``rank1.pt``), the queue as each rank ended with it, in the run's folder.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ndavid.collectives import rank
from ndavid.config import parse, run_main
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import seeded
from ndavid.engine.run_config import RunConfig
from ndavid.methods.moco import MocoMethod
from ndavid.methods.nda_config import MocoNdaConfig
from ndavid.models.moco import MocoConfig


@dataclass(kw_only=True)
class MocoRunConfig:
    """27 steps, 12 on two ranks: the queue, of an odd length, is written over several times."""

    model: MocoConfig = field(
        default_factory=lambda: MocoConfig(
            encoder="cifar:resnet20", dim=16, queue_size=17, momentum=0.9, bn_splits=2
        )
    )
    nda: MocoNdaConfig = field(
        default_factory=lambda: MocoNdaConfig(
            spec="jigsaw",
            share="batch",
            warmup_steps=4,
            encoder="key",
            norm="own",
            weight=1.0,
        )
    )
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=0.05, momentum=0.9, schedule="cosine")
    )
    run: RunConfig = field(
        default_factory=lambda: RunConfig(
            epochs=3, batch_size=4, num_workers=0, save_every_steps=3, log_every=1, device="cpu"
        )
    )
    samples: int = 36
    pause: float = 0.0
    """seconds that reading a sample takes"""


class NoiseViews:
    """Two noisy views of each of some coarse pictures; a pure function of the key."""

    def __init__(self, config: MocoRunConfig) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        index, seed = key
        time.sleep(self.config.pause)
        picture = torch.randint(200, (3, 4, 4), generator=torch.Generator().manual_seed(index))
        large = picture.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
        noise = torch.randint(56, (2, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
        return {"views": (large + noise).to(torch.uint8), "index": index}


def main() -> None:
    config = parse(MocoRunConfig)
    torch.set_num_threads(1)
    with seeded(config.run.seed, "init"):
        method = MocoMethod(config.model, config.nda, symmetric=True)
    result = fit(
        method,
        NoiseViews(config),
        config=config,
        run=config.run,
        optim=config.optim,
        collate=torch.utils.data.default_collate,
    )
    state = {"queue": method.moco.queue, "pointer": method.moco.queue_pointer}
    torch.save(state, Path(result.output) / f"rank{rank()}.pt")


if __name__ == "__main__":
    run_main(main)
