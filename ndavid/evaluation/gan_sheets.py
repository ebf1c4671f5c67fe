"""Pictures of a GAN while it trains: samples, ways between samples, and what its negatives are.

Latents are drawn once from the run's seed, so that a row of sheets shows one place of the latent
space as it changes; of a run with averaged weights the averaged generator is shown.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torchvision.utils import make_grid

from ndavid.collectives import rank
from ndavid.engine.hooks import HookContext
from ndavid.engine.rng import generator
from ndavid.errors import ConfigError
from ndavid.evaluation.report import Picture
from ndavid.methods.gan import GanMethod
from ndavid.models.gan.networks import Generator
from ndavid.models.gan.spectral_norm import refresh_spectral_norms

FOLDER = "samples"


@dataclass(kw_only=True)
class SheetsConfig:
    """How often pictures are made, and how many images are on them."""

    every: int = 1000
    """Steps between sheets; 0 makes none."""
    columns: int = 10
    """Images across a sheet."""
    rows: int = 10
    """Rows of the sheet of samples; a conditional GAN's is one row a class, up to so many."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.columns < 2 or self.rows < 1:
            raise ConfigError(
                f"sheets need every >= 0, columns >= 2 and rows >= 1, not {self.every}, "
                f"{self.columns} and {self.rows}"
            )


class GanSheets:
    """A hook for `fit`: writes `samples/` of the run and shows the same in TensorBoard.

    Args:
        config: size of the sheets.
        images: uint8 (B, 3, S, S), training images for the sheet of negatives, B >= 2.
        seed: the run's.
    """

    def __init__(self, config: SheetsConfig, images: Tensor, *, seed: int) -> None:
        self.config = config
        self.images = images
        self.seed = seed

    def __call__(self, context: HookContext) -> dict[str, float]:
        """Draws on rank 0; there is nothing to measure."""
        if rank() == 0:
            assert isinstance(context.method, GanMethod)
            net = settled(cast(Generator, context.ema or context.method.gan.generator))
            sheets = {
                "samples": sample_sheet(net, self.config, seed=self.seed),
                "interpolations": interpolation_sheet(net, self.config, seed=self.seed),
            }
            broken = negative_sheet(context.method, self.images[: self.config.columns], self.seed)
            if broken is not None:
                sheets["negatives"] = broken
            for name, sheet in sheets.items():
                context.show(f"samples/{name}", sheet)
                write_sheet(sheet, context.output / FOLDER / f"{name}_step_{context.step:07d}.png")
        return {}


def settled(generator_net: Generator) -> Generator:
    """A copy to draw samples with, in eval mode.

    The average of unit vectors is none: spectral norms of averaged weights are estimated anew.
    """
    net = copy.deepcopy(generator_net)
    refresh_spectral_norms(net)
    return net.eval()


@torch.no_grad()
def sample_sheet(net: Generator, config: SheetsConfig, *, seed: int) -> Tensor:
    """Samples of fixed latents, uint8 (3, H, W); of a conditional GAN one class a row."""
    rows, labels = _rows(net, config)
    latents = _latents(net, rows * config.columns, seed, "sheet")
    return tiled(_generate(net, latents, labels), config.columns)


@torch.no_grad()
def interpolation_sheet(net: Generator, config: SheetsConfig, *, seed: int) -> Tensor:
    """Along great circles between pairs of latents, one pair a row; uint8 (3, H, W)."""
    rows, labels = _rows(net, config)
    start = _latents(net, rows, seed, "interpolation start")
    end = _latents(net, rows, seed, "interpolation end")
    steps = torch.linspace(0, 1, config.columns)
    latents = rearrange(great_circle(start, end, steps), "row step dim -> (row step) dim")
    return tiled(_generate(net, latents, labels), config.columns)


@torch.no_grad()
def negative_sheet(method: GanMethod, images: Tensor, seed: int) -> Tensor | None:
    """Training images above what the run's operation makes of them; None for a run without one."""
    if method.operation is None:
        return None
    broken = method.operation(images, generator=generator(seed, "negative sheet"))
    return tiled(torch.cat([images, broken]), len(images))


def great_circle(start: Tensor, end: Tensor, steps: Tensor) -> Tensor:
    """Spherical interpolation: (rows, dim) twice and shares (n,) -> (rows, n, dim).

    Gaussian latents lie near a sphere; the straight line between two passes where none lies.
    """
    cosine = torch.cosine_similarity(start, end, dim=1).clamp(-1 + 1e-6, 1 - 1e-6)
    angle = cosine.acos()[:, None]
    first = torch.sin((1 - steps) * angle) / torch.sin(angle)
    second = torch.sin(steps * angle) / torch.sin(angle)
    return first[..., None] * start[:, None] + second[..., None] * end[:, None]


def newest_sheets(output: Path) -> list[Picture]:
    """The last sheet of each kind that a run wrote, for its report."""
    kinds = ("samples", "interpolations", "negatives")
    found = [sorted((output / FOLDER).glob(f"{kind}_step_*.png"))[-1:] for kind in kinds]
    return [
        Picture(title=kind.capitalize(), image=path, caption=path.stem)
        for kind, paths in zip(kinds, found, strict=True)
        for path in paths
    ]


def to_pixels(images: Tensor, *, floored: bool = False) -> Tensor:
    """Images in [-1, 1] to uint8, by rounding, or to the number below."""
    values = (images.float().clamp(-1, 1) + 1) * 127.5
    return (values.floor() if floored else values.round()).to(torch.uint8)


def tiled(images: Tensor, columns: int) -> Tensor:
    """uint8 (N, 3, S, S) -> (3, H, W), white between them."""
    return make_grid(images, nrow=columns, padding=1, pad_value=255)


def write_sheet(sheet: Tensor, path: Path) -> None:
    """Writes uint8 (3, H, W) as PNG, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rearrange(sheet, "c h w -> h w c").numpy()).save(path)


def _rows(net: Generator, config: SheetsConfig) -> tuple[int, Tensor | None]:
    """How many rows a sheet has, and the labels of its images, (rows * columns,)."""
    if net.num_classes <= 1:
        one_class = torch.zeros(config.rows * config.columns, dtype=torch.long)
        return config.rows, one_class if net.num_classes else None
    rows = min(config.rows, net.num_classes)
    return rows, torch.arange(rows).repeat_interleave(config.columns)


def _latents(net: Generator, count: int, seed: int, purpose: str) -> Tensor:
    return torch.randn(count, net.latent_dim, generator=generator(seed, purpose))


def _generate(net: Generator, latents: Tensor, labels: Tensor | None, batch: int = 100) -> Tensor:
    """uint8 images on the CPU, (N, 3, S, S)."""
    device = next(net.parameters()).device
    parts: Sequence[Tensor | None] = (
        [None] * -(-len(latents) // batch) if labels is None else labels.split(batch)
    )
    return torch.cat(
        [
            to_pixels(net(z.to(device), None if y is None else y.to(device))).cpu()
            for z, y in zip(latents.split(batch), parts, strict=True)
        ]
    )
