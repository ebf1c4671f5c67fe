"""Detection with boxes, as a method that the engine can run."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ndavid.models.normalize import Normalize


class DetectionMethod(nn.Module):
    """The summed losses of a torchvision detector on padded batches of uint8 images.

    Call it with `image` uint8 (B, 3, H, W), padded at the right and the bottom; `size` (B, 2), each
    image's own height and width; `boxes` (M, 4) and `box_labels` (M,), 0-based, of all images in a
    row; `num_boxes` (B,) of them each.

    The detector's samplers of proposals draw from torch's default generator, which the engine seeds
    before each step.

    Args:
        detector: takes a list of normalised images (3, h, w), and in training targets whose labels
            begin at 1; returns a dict of losses in training and detections in evaluation.
    """

    def __init__(self, detector: nn.Module) -> None:
        super().__init__()
        self.pixels = Normalize()
        self.detector = detector

    def forward(
        self, batch: dict[str, Tensor], *, generator: torch.Generator | None = None, step: int = 0
    ) -> dict[str, Tensor]:
        """One step's ``loss`` (with gradient) and its parts (detached).

        ``generator`` and ``step`` belong to the method protocol and are not used.
        """
        losses = self.detector(self._images(batch), _targets(batch))
        return {
            "loss": torch.stack(list(losses.values())).sum(),
            **{name: loss.detach() for name, loss in losses.items()},
        }

    def detect(self, batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """Each image's `boxes` (N, 4) in its own pixels, `scores` (N,) and 0-based `labels` (N,).

        In evaluation mode only.
        """
        found = self.detector(self._images(batch))
        return [
            {"boxes": one["boxes"], "scores": one["scores"], "labels": one["labels"] - 1}
            for one in found
        ]

    def _images(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """The normalised images without their padding, which must stay zero after normalising."""
        whole = self.pixels(batch["image"])
        sizes = batch["size"].tolist()
        return [
            image[:, :height, :width] for image, (height, width) in zip(whole, sizes, strict=True)
        ]


def _targets(batch: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    counts = batch["num_boxes"].tolist()
    boxes, labels = batch["boxes"].split(counts), batch["box_labels"].split(counts)
    # Label 0 is the background of torchvision's detectors.
    return [{"boxes": b, "labels": n + 1} for b, n in zip(boxes, labels, strict=True)]
