"""An encoder that sees what changes between frames instead of the frames.

Papers: Tao, Wang and Yamasaki 2020, "Self-Supervised Video Representation Learning Using
Inter-Intra Contrastive Framework" (IIC, arXiv 2008.02531: residual clips as input).

The differences of neighbouring frames are about a tenth of the pixels' own deviation in small
clips of people, so that a network on frames finds the order of frames late or never; on residual
frames it finds it at once (docs/results.md has the measurement).

Differences from the paper: residual frames are the only input, not a second stream beside RGB.
"""

from __future__ import annotations

from torch import Tensor

from ndavid.models.encoders.base import ClipSizeError, Encoder

PREFIX = "residual:"
"""What comes before the network's name."""


class ResidualFrames(Encoder):
    """Clips (B, C, T, H, W) -> the ``network``'s map of their T - 1 differences of frames.

    Raises ClipSizeError for images and for clips of a single frame.
    """

    def __init__(self, network: Encoder) -> None:
        super().__init__(f"{PREFIX}{network.name}")
        self.network = network
        self.feature_dim = network.feature_dim

    def checkpoint_activations(self) -> None:
        self.network.checkpoint_activations()
        self.recomputes = True

    def forward(self, clips: Tensor) -> Tensor:
        self.require_clips(clips)
        if clips.shape[2] < 2:
            raise ClipSizeError(f"{self.name} needs clips of at least 2 frames, got 1")
        return self.network(clips[:, :, 1:] - clips[:, :, :-1])
