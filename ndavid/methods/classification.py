"""Supervised classification of clips, as a method that the engine can run."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndavid.errors import ConfigError
from ndavid.models.normalize import Normalize


class ClassificationMethod(nn.Module):
    """Cross entropy of a classifier's logits.

    Call it with ``batch["video"]``, uint8 (B, C, T, H, W), and ``batch["label"]``, (B,) ints from
    0. ``classifier`` maps normalised clips to logits (B, classes). Raises ConfigError on a
    ``label_smoothing`` outside [0, 1).
    """

    def __init__(self, classifier: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ConfigError(f"label_smoothing must be in [0, 1), got {label_smoothing}")
        self.label_smoothing = label_smoothing
        self.pixels = Normalize()
        self.classifier = classifier

    def compile_targets(self) -> tuple[nn.Module, ...]:
        """The submodules worth ``torch.compile``: the whole classifier."""
        return (self.classifier,)

    def forward(
        self, batch: dict[str, Tensor], *, generator: torch.Generator | None = None, step: int = 0
    ) -> dict[str, Tensor]:
        """One step's ``loss`` (with gradient) and ``top1`` (detached).

        ``generator`` and ``step`` belong to the method protocol and are not used.
        """
        logits = self.logits(batch["video"]).float()
        labels = batch["label"]
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        top1 = (logits.detach().argmax(dim=1) == labels).float().mean()
        return {"loss": loss, "top1": top1}

    def logits(self, video: Tensor) -> Tensor:
        """uint8 clips (B, C, T, H, W) -> logits (B, classes), normalised as in training."""
        return self.classifier(self.pixels(video))
