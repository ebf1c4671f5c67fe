"""Pixels to what encoders were made for: uint8 travels to the device and is normalised there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Normalize(nn.Module):
    """Subtracts a mean and divides by a deviation per channel; both are for pixels in [0, 1].

    Takes clips (B, C, T, H, W) or images (B, C, H, W), as uint8 in [0, 255] or as float in [0, 1],
    and returns float32 of the same shape (float64 stays float64).
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f"need one mean and one positive std a channel, got {mean} and {std}")
        scale = 1 / torch.tensor(std)
        # One multiply and one add a pixel. Not persistent: constants, no part of a checkpoint.
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", -torch.tensor(mean) * scale, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        channels = len(self.scale)
        if pixels.ndim not in (4, 5) or pixels.shape[1] != channels:
            raise ValueError(
                f"expected (B, {channels}, T, H, W) or (B, {channels}, H, W), "
                f"got {tuple(pixels.shape)}"
            )
        broadcast = (channels, *[1] * (pixels.ndim - 2))
        scale, shift = self.scale.view(broadcast), self.shift.view(broadcast)
        if not pixels.is_floating_point():
            return pixels.to(scale.dtype) * (scale / 255) + shift
        return pixels * scale + shift
