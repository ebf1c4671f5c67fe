"""How anomalous a GAN's discriminator finds an image."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from ndavid.models.gan.networks import Discriminator
from ndavid.models.normalize import Normalize

OverLabels = Literal["max", "mean"]


class AnomalyScore(nn.Module):
    """uint8 images (B, 3, S, S) -> (B, 1), -D(x); higher is more anomalous.

    Args:
        discriminator: In eval mode; conditional or not.
        over_labels: How the classes of a conditional one become one number.
    """

    def __init__(self, discriminator: Discriminator, over_labels: OverLabels = "max") -> None:
        super().__init__()
        self.discriminator = discriminator
        self.normalize = Normalize((0.5,) * 3, (0.5,) * 3)
        self.over_labels = over_labels

    def forward(self, images: Tensor) -> Tensor:
        features = self.discriminator.features(self.normalize(images))
        logits = self.discriminator.linear(features)
        if self.discriminator.embed is not None:
            # The projection on all classes at once: the features are the same for each.
            logits = logits + F.linear(features, self.discriminator.embed.weight)
        if self.over_labels == "max":
            return -logits.amax(1, keepdim=True)
        return -logits.mean(1, keepdim=True)
