"""Crops, flips and blurs of a batch, each with its own parameters, as products with matrices.

All three are linear and act on rows and columns apart, so that for each sample one small matrix a
side says it all: row i holds the weights of the input pixels in output pixel i. A batch is then two
batched matrix products, which is what processors and accelerators do best. The weights of a crop
are those of torchvision's `resized_crop` with antialiasing; those of a blur a Gaussian's with the
edge reflected, as `gaussian_blur` has it.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def crop_weights(
    start: Tensor, extent: Tensor, length: int, size: int, mirrored: Tensor | None = None
) -> Tensor:
    """Bilinear weights (B, size, length) that take `extent` pixels from `start` to `size` pixels.

    A triangle as wide as the pixels of the output (antialiasing) or of the input, whichever are
    larger, cut at the crop's ends. `start` and `extent` are (B,); rows run backwards where
    `mirrored` (bool, (B,)) says so.
    """
    place = torch.arange(size, device=start.device).expand(len(start), size)
    if mirrored is not None:
        place = torch.where(mirrored.unsqueeze(1), size - 1 - place, place)
    begin, scale = start.float().unsqueeze(1), (extent / size).unsqueeze(1)
    centre = begin + (place + 0.5) * scale
    support = scale.clamp(min=1).unsqueeze(2)
    pixel = torch.arange(length, device=start.device) + 0.5
    weights = (pixel - centre.unsqueeze(2)).abs_().div_(support).neg_().add_(1).clamp_(min=0)
    inside = (pixel > begin) & (pixel < begin + extent.unsqueeze(1))
    weights.mul_(inside.unsqueeze(1))
    return weights.div_(weights.sum(dim=2, keepdim=True))


def blur_weights(sigma: Tensor, size: int, radius: int) -> Tensor:
    """Weights (B, size, size) of Gaussians of `sigma` (B,) pixels, cut off at `radius` pixels.

    The edge is reflected, so that the radius is at most size - 1.
    """
    radius = min(radius, size - 1)
    distance = torch.arange(radius + 1, device=sigma.device)
    kernel = torch.exp(-0.5 * (distance / sigma.unsqueeze(1)) ** 2)
    # Every distance but 0 lies on both sides.
    kernel = kernel / (2 * kernel.sum(dim=1, keepdim=True) - kernel[:, :1])
    pattern = _distances(size, radius, sigma.device)
    return (kernel @ pattern).view(-1, size, size)


def resampled(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Products of (B, N, H, W) with row weights (B, h, H) and column weights (B, w, W)."""
    batch, planes, height, width = pixels.shape
    wide = torch.bmm(pixels.reshape(batch, planes * height, width), columns.transpose(1, 2))
    return torch.matmul(rows.unsqueeze(1), wide.view(batch, planes, height, -1))


def blurred(pixels: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Float (B, ..., H, W) blurred sample by sample; `sigma` (B,) in pixels, all above 0."""
    height, width = pixels.shape[-2:]
    planes = pixels.reshape(len(pixels), -1, height, width)
    rows, columns = (blur_weights(sigma, side, radius) for side in (height, width))
    return resampled(planes, rows, columns).view(pixels.shape)


@functools.lru_cache(maxsize=8)
def _distances(size: int, radius: int, device: torch.device) -> Tensor:
    """How often output pixel i sees input pixel j at each distance: (radius + 1, size * size).

    Once directly, and once more in each edge's mirror where that is near enough.
    """
    place = torch.arange(size)
    out, into = place.unsqueeze(1), place.unsqueeze(0)
    seen = torch.zeros(radius + 2, size, size)
    # The edge pixel itself is not doubled: its mirror image is itself.
    for mirror, there in (
        (into, torch.ones(size, dtype=torch.bool)),
        (-into, place > 0),
        (2 * (size - 1) - into, place < size - 1),
    ):
        distance = (out - mirror).abs().clamp(max=radius + 1)
        seen.scatter_add_(0, distance.unsqueeze(0), there.float().expand(1, size, size))
    return seen[: radius + 1].reshape(radius + 1, size * size).to(device)
