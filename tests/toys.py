"""A small encoder and a fixed NDA operation, for tests of methods in one process or in two."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from ndavid.models.cpu_convolutions import guard_cpu_bfloat16
from ndavid.models.encoders.base import Encoder
from ndavid.nda.base import NegativeAugmentation


class ToyEncoder(Encoder):
    """Two 3x3x3 convolutions for clips and images: (B, 3, [T,] H, W) -> (B, 8, [T,] H/4, W/4).

    With group norm, the default, no sample feels another; an image is a clip of one frame.
    """

    takes_images = True
    feature_dim = 8

    def __init__(self, norm: Callable[[int], nn.Module] = lambda width: nn.GroupNorm(2, width)):
        super().__init__("toy")
        self.net = nn.Sequential(
            nn.Conv3d(3, 8, 3, stride=(1, 2, 2), padding=1),
            norm(8),
            nn.ReLU(),
            nn.Conv3d(8, 8, 3, stride=(1, 2, 2), padding=1),
            norm(8),
            nn.ReLU(),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.ndim == 4:
            return self.net(pixels.unsqueeze(2)).squeeze(2)
        self.require_clips(pixels)
        return self.net(pixels)


def build_toy(name: str, *, pretrained: bool = False) -> Encoder:
    """In place of build_encoder: "toy:group", "toy:batch"."""
    norms = {"toy:group": lambda width: nn.GroupNorm(2, width), "toy:batch": nn.BatchNorm3d}
    return guard_cpu_bfloat16(ToyEncoder(norms[name]))  # type: ignore[return-value]


class SwapLeftHalves(NegativeAugmentation):
    """Samples 0 and 1 swap their left halves, 2 and 3, ...: the same however ranks are dealt."""

    name: ClassVar[str] = "swap_left_halves"
    needs_partner: ClassVar[bool] = True
    acts_on: ClassVar[frozenset[str]] = frozenset({"sample"})

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> dict[str, Tensor]:
        return {"partner": torch.arange(shape[0]) ^ 1}

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        half = x.shape[-1] // 2
        return torch.cat([x[params["partner"]][..., :half], x[..., half:]], dim=-1)

    def changed_mask(self, params: dict[str, Tensor], shape: Sequence[int]) -> Tensor:
        mask = torch.zeros(shape[0], *shape[2:], dtype=torch.bool)
        mask[..., : shape[-1] // 2] = True
        return mask
