"""Resizing and flipping images together with their boxes.

Multi-scale training as in Fast R-CNN and detectron2: the short side is drawn from a list for every
image; the long side has a limit that wins over it. All draws come from the sample's own generator,
in the loader's worker, so pixels travel as uint8.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF


class DetectionTransform:
    """Resizes an image, and flips it with probability 1/2 in training; its boxes go along.

    Args:
        train_sizes: short sides to draw from in training, pixels.
        test_size: short side where no generator is given.
        max_size: longest long side, pixels.
        flip: whether training images are mirrored.

    Raises ValueError for sizes that are missing or below 1.
    """

    def __init__(
        self,
        train_sizes: Sequence[int],
        test_size: int,
        max_size: int,
        *,
        flip: bool = True,
    ) -> None:
        if not train_sizes or min(*train_sizes, test_size, max_size) < 1:
            raise ValueError(f"sizes must be at least 1 pixel: {train_sizes}, {test_size}")
        self.train_sizes = tuple(train_sizes)
        self.test_size = test_size
        self.max_size = max_size
        self.flip = flip

    def __call__(
        self, image: Tensor, boxes: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """uint8 (3, H, W) and boxes (N, 4) -> the same of a new size.

        Args:
            image: pixels.
            boxes: x1, y1, x2, y2 in pixels of ``image``.
            generator: draws size and flip; None takes the test size and does not flip.
        """
        short = self.test_size
        flipped = False
        if generator is not None:
            place = int(torch.randint(len(self.train_sizes), (), generator=generator))
            short = self.train_sizes[place]
            # Drawn even where it is not used, so that `flip` does not change the sizes drawn.
            flipped = bool(torch.rand((), generator=generator) < 0.5) and self.flip
        image, boxes = self._resize(image, boxes, short)
        return mirror(image, boxes) if flipped else (image, boxes)

    def _resize(self, image: Tensor, boxes: Tensor, short: int) -> tuple[Tensor, Tensor]:
        height, width = image.shape[1:]
        new_height, new_width = resized(height, width, short, self.max_size)
        if (new_height, new_width) != (height, width):
            image = TF.resize(image, [new_height, new_width], antialias=True)
        # Sides are rounded to whole pixels, each with its own factor.
        factors = boxes.new_tensor([new_width / width, new_height / height] * 2)
        return image, boxes * factors


def resized(height: int, width: int, short: int, max_size: int) -> tuple[int, int]:
    """Height and width with the short side at ``short``, or less for the limit of the long one."""
    factor = min(short / min(height, width), max_size / max(height, width))
    return max(round(height * factor), 1), max(round(width * factor), 1)


def mirror(image: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Left and right swapped."""
    width = image.shape[2]
    x1, y1, x2, y2 = boxes.unbind(-1)
    return image.flip(-1), torch.stack([width - x2, y1, width - x1, y2], dim=-1)
