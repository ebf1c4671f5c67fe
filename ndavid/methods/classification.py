"""Supervised classification of clips or images, as a method that the engine can run."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndavid.errors import ConfigError
from ndavid.models.normalize import Normalize

Augment = Callable[[Tensor, torch.Generator], Tensor]
"""Pixels (B, C, [T,] H, W) and a CPU generator -> the same, augmented."""


class ClassificationMethod(nn.Module):
    """Cross entropy of a classifier's logits.

    Call it with ``batch["video"]``, uint8 (B, C, T, H, W), or ``batch["image"]``, (B, C, H, W), and
    ``batch["label"]``, (B,) ints from 0.

    Args:
        classifier: maps normalised pixels to logits (B, classes).
        label_smoothing: of the cross entropy.
        augment: changes training pixels on the device; None where workers did.

    Raises:
        ConfigError: a ``label_smoothing`` outside [0, 1).
    """

    def __init__(
        self,
        classifier: nn.Module,
        label_smoothing: float = 0.0,
        *,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.augment = augment
        self.pixels = Normalize()
        self.classifier = classifier

    def compile_targets(self) -> tuple[nn.Module, ...]:
        """The submodules worth ``torch.compile``: the whole classifier."""
        return (self.classifier,)

    def forward(
        self, batch: dict[str, Tensor], *, generator: torch.Generator | None = None, step: int = 0
    ) -> dict[str, Tensor]:
        """One step's ``loss`` (with gradient) and ``top1`` (detached).

        ``generator`` (CPU) draws what ``augment`` does, and is not needed without it; ``step``
        belongs to the method protocol and is not used.
        """
        pixels = batch["video"] if "video" in batch else batch["image"]
        if self.augment is not None:
            if generator is None:
                raise ValueError("augmentation on the device needs a generator")
            pixels = self.augment(pixels, generator)
        logits = self.logits(pixels).float()
        labels = batch["label"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        top1 = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": loss, "top1": top1}

    def logits(self, pixels: Tensor) -> Tensor:
        """uint8 clips or images (B, C, [T,] H, W) -> logits (B, classes), as in training."""
        return self.classifier(self.pixels(pixels))
