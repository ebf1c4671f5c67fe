"""Augmentation of a whole batch on its device, every sample with its own parameters.

For small images the time goes into calling torchvision's functions one image at a time, not into
pixels. Here a batch takes a few dozen calls, whatever its size: crop, flip and resize are two
matrix products (resampling.py), so is blur, and colours are one more (colour.py). Recipes, order
and draws are those of transforms.py's worker path; values are not rounded to uint8 in between.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ndavid.data.augment_config import AugmentConfig, resolve
from ndavid.data.augment_draws import Draws, draw
from ndavid.data.colour import jitter_planes
from ndavid.data.resampling import blurred, crop_weights, resampled


class BatchAugment:
    """The augmentation that `config` describes, for batches of images or clips.

    A clip's frames share their parameters, but for colours with `per_frame_jitter`.

    Raises:
        ConfigError: an unknown preset, or a value out of its range.
    """

    def __init__(self, config: AugmentConfig) -> None:
        self.config = resolve(config)

    def __call__(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """uint8 (B, 3, [T,] H, W) -> float32 (B, 3, [T,] size, size) in [0, 1], on its device.

        Args:
            pixels: images or clips, on any device.
            generator: on the CPU; all that is random comes from it.

        Raises:
            ValueError: pixels of another type or shape.
        """
        return self.apply(pixels, self.sample(pixels.shape, generator))

    def sample(self, shape: torch.Size, generator: torch.Generator) -> Draws:
        """Parameters for a batch of that shape, on the CPU."""
        frames = shape[2] if len(shape) == 5 else 1
        return draw(self.config, (shape[0], frames, shape[-2], shape[-1]), generator)

    @torch.no_grad()
    def apply(self, pixels: Tensor, draws: Draws) -> Tensor:
        """The batch changed as drawn; a sample depends on nothing but its pixels and draws."""
        if pixels.dtype != torch.uint8 or pixels.ndim not in (4, 5) or pixels.shape[1] != 3:
            found = f"{pixels.dtype} {tuple(pixels.shape)}"
            raise ValueError(f"pixels must be uint8 (B, 3, H, W) or (B, 3, T, H, W), got {found}")
        # Frames first, as colours want it; an image is a clip of one frame.
        clips = pixels.unsqueeze(2) if pixels.ndim == 4 else pixels
        clips = clips.transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        # Half precision has fewer steps than a pixel.
        with torch.autocast(pixels.device.type, enabled=False):
            clips = self._augmented(clips, draws).div_(255).transpose(1, 2)
        return clips.squeeze(2) if pixels.ndim == 4 else clips.contiguous()

    def _augmented(self, clips: Tensor, draws: Draws) -> Tensor:
        """(B, T, 3, H, W) -> (B, T, 3, size, size), of 0 to 255."""
        clips = _cropped(clips, draws, self.config.size)
        if draws.colours is not None:
            clips = jitter_planes(clips.flatten(0, 1).flatten(2), draws.colours).view(clips.shape)
        if draws.sigma is not None:
            chosen = draws.sigma.nonzero().flatten()
            sigma, index = draws.sigma[chosen].to(clips.device), chosen.to(clips.device)
            soft = blurred(clips.index_select(0, index), sigma, draws.blur_radius)
            clips.index_copy_(0, index, soft)
        return clips


def _cropped(clips: Tensor, draws: Draws, size: int) -> Tensor:
    """(B, T, 3, H, W) -> (B, T, 3, size, size): the boxes, resized, and mirrored where drawn."""
    batch, frames, channels, height, width = clips.shape
    numbers = torch.stack([*draws.boxes, draws.mirrored.long()]).to(clips.device)  # one transfer
    top, left, tall, wide, mirrored = numbers
    rows = crop_weights(top, tall, height, size)
    columns = crop_weights(left, wide, width, size, mirrored.bool())
    planes = resampled(clips.view(batch, frames * channels, height, width), rows, columns)
    return planes.view(batch, frames, channels, size, size)
