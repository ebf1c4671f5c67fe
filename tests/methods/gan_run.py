"""A few GAN steps through the engine that any number of ranks and batches share alike.

python tests/methods/gan_run.py --run.output DIR

Every turn sees the same picture and all eight latents, whoever has which of them: the weights that
a run ends with should not depend on that. Leaves ``rank0.pt`` (and ``rank1.pt``), the state that
each rank ended with, in the run's folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ndavid.collectives import rank, world_size
from ndavid.config import parse, run_main
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import seeded
from ndavid.engine.run_config import RunConfig
from ndavid.methods.gan import GanMethod
from ndavid.methods.gan_config import AdversarialConfig
from ndavid.models.gan.model import GanConfig

SAMPLES = 8


@dataclass(kw_only=True)
class GanRunConfig:
    """Eight steps, each of two turns of the discriminator and one of the generator."""

    model: GanConfig = field(
        default_factory=lambda: GanConfig(
            architecture="sngan",
            generator_channels=2,
            discriminator_channels=4,
            latent_dim=8,
            spectral_norm_generator=True,
        )
    )
    # Not Adam, which makes steps of its full rate of what is rounding.
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=0.02, momentum=0.5, weight_decay=0.0)
    )
    run: RunConfig = field(
        default_factory=lambda: RunConfig(
            epochs=8, batch_size=SAMPLES, num_workers=0, log_every=1, device="cpu"
        )
    )


class SharedDraws(GanMethod):
    """Draws the latents of all ranks alike, of which each takes its part."""

    draws = 0

    def _draw(self, batches: Any, generator: Any) -> tuple[Tensor, Tensor | None]:
        self.draws += 1
        drawn = torch.Generator().manual_seed(self.draws)
        latents = torch.randn(SAMPLES, self.gan.config.latent_dim, generator=drawn)
        return latents.chunk(world_size())[rank()], None


class OnePicture:
    """One coarse picture, sixteen times: what a step reads."""

    def __len__(self) -> int:
        return 2 * SAMPLES

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        drawn = torch.Generator().manual_seed(0)
        coarse = torch.randint(256, (3, 4, 4), generator=drawn).to(torch.uint8)
        return {"image": coarse.repeat_interleave(8, 1).repeat_interleave(8, 2), "label": 0}


def main() -> None:
    config = parse(GanRunConfig)
    torch.set_num_threads(1)
    with seeded(config.run.seed, "init"):
        method = SharedDraws(config.model, adversarial=AdversarialConfig(discriminator_steps=2))
    result = fit(
        method,
        OnePicture(),
        config=config,
        run=config.run,
        optim=config.optim,
        collate=torch.utils.data.default_collate,
    )
    torch.save(method.state_dict(), Path(result.output) / f"rank{rank()}.pt")


if __name__ == "__main__":
    run_main(main)
