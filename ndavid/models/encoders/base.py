"""What every encoder here is: a module that turns clips, or images, into a map of features."""

from __future__ import annotations

import abc
import json
from pathlib import Path
from typing import Any, ClassVar

from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn

from ndavid.checkpoint_files import MODEL_FILE
from ndavid.errors import CheckpointError, ConfigError
from ndavid.models.normalize import IMAGENET_MEAN, IMAGENET_STD
from ndavid.models.weights.state_files import write_state_dict

CONFIG_FILE = "config.json"

_CARD = """---
{{ card_data }}
---
An encoder pretrained with ndavid. `config.json` names the network, the size of its features, and
the mean and deviation per channel by which its input, RGB in [0, 1], was normalised.

```python
from ndavid.models.weights.release import load_encoder

encoder = load_encoder("this/folder")   # in eval mode; from the Hub: Encoder.from_pretrained("a/b")
maps = encoder(clips)                   # (B, C, T, H, W), for image networks also (B, C, H, W)
vectors = encoder.pooled(clips)         # (B, D)
```
"""


class ClipSizeError(ConfigError, ValueError):
    """Clips or images of a length, size or number of axes that the encoder does not take."""


class Encoder(nn.Module, PyTorchModelHubMixin, library_name="ndavid", model_card_template=_CARD):
    """Clips (B, C, T, H, W), normalised floats -> feature maps (B, feature_dim, t, h, w).

    A network that ``takes_images`` turns images (B, C, H, W) into maps (B, feature_dim, h, w) as
    well; :meth:`pooled` gives vectors. ``name`` is what ``build_encoder`` was asked for, so that a
    saved encoder can be rebuilt: by ``load_encoder`` or ``Encoder.from_pretrained``, from a folder
    that ``save_pretrained`` wrote or a repository that ``push_to_hub`` filled.
    """

    takes_images: ClassVar[bool] = False
    feature_dim: int
    name: str
    recomputes: bool = False
    """Whether backward computes inner maps again: see `checkpoint_activations`."""

    def __init__(self) -> None:
        super().__init__()

    def pooled(self, pixels: Tensor) -> Tensor:
        """Clips or images -> vectors (B, feature_dim): the mean of the map."""
        return self(pixels).flatten(2).mean(2)

    def row(self) -> tuple[nn.Module, ...]:
        """The submodules that, one after the other, are the encoder; empty where it is no row."""
        return ()

    def checkpoint_activations(self) -> None:
        """From now on, forwards with gradient keep only what enters each block of layers.

        Backward computes the rest again, block by block: about a third more time a step, for
        half the memory or less (benchmarks/memory.py). Output, gradients and running statistics
        stay the same, on the CPU to the bit. Not together with ``torch.compile``.

        Raises ConfigError for an encoder that is no row of blocks.
        """
        if not self.row():
            raise ConfigError(
                f"{self.name} cannot checkpoint its activations: it is not built as a row of "
                "blocks; take a ResNet, or leave checkpoint_activations false"
            )
        self.recomputes = True

    def compilable(self) -> Encoder:
        """The encoder itself, for ``torch.compile``; ConfigError if it recomputes activations."""
        if self.recomputes:
            raise ConfigError(
                "model.checkpoint_activations and run.compile do not go together: a compiled "
                "graph decides by itself what to keep; set one of them to false"
            )
        return self

    def require_clips(self, pixels: Tensor) -> None:
        """Raises ClipSizeError, with the way out, for anything but (B, C, T, H, W)."""
        if pixels.ndim == 4 and not self.takes_images:
            raise ClipSizeError(
                f"{self.name} is a video network: it takes clips (B, C, T, H, W), got images "
                f"{tuple(pixels.shape)}; choose an image network such as torchvision:resnet50, "
                f"timm:resnet18 or cifar:resnet18"
            )
        if pixels.ndim != 5:
            kinds = "clips (B, C, T, H, W)" + " or images (B, C, H, W)" * self.takes_images
            raise ClipSizeError(f"{self.name} takes {kinds}, got {tuple(pixels.shape)}")

    def hub_config(self) -> dict[str, object]:
        """What ``config.json`` says: how to rebuild the encoder, and how to feed it."""
        return {
            "encoder": self.name,
            "feature_dim": self.feature_dim,
            "takes_images": self.takes_images,
            "pixels": {"mean": IMAGENET_MEAN, "std": IMAGENET_STD},
        }

    def _save_pretrained(self, save_directory: Path) -> None:
        """The mixin's way of asking how to save; the weights keep the library's names."""
        config = json.dumps(self.hub_config(), indent=2)
        (save_directory / CONFIG_FILE).write_text(config + "\n")
        write_state_dict(self.state_dict(), save_directory / MODEL_FILE)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **unused: Any,  # what versions of the library before 1.0 give besides, such as proxies
    ) -> Encoder:
        """The mixin's way of asking how to load; unlike its own, it refuses weights that differ."""
        # Not on top: that module knows every encoder, and they are all built on this class.
        from ndavid.models.weights.release import load_encoder

        folder = model_id
        if not Path(model_id).is_dir():
            folder = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[CONFIG_FILE, MODEL_FILE],
            )
        encoder = load_encoder(folder)
        if not isinstance(encoder, cls):
            kinds = f"a {type(encoder).__name__} and no {cls.__name__}"
            raise CheckpointError(f"{model_id}: holds {encoder.name}, {kinds}")
        return encoder


class ImageEncoder(Encoder, abc.ABC):
    """An image network: images -> (B, feature_dim, h, w), and clips frame by frame, t = T."""

    takes_images = True

    def forward(self, pixels: Tensor) -> Tensor:
        if pixels.ndim == 4:
            return self.encode_images(pixels)
        self.require_clips(pixels)
        maps = self.encode_images(rearrange(pixels, "b c t h w -> (b t) c h w"))
        return rearrange(maps, "(b t) d h w -> b d t h w", t=pixels.shape[2])

    @abc.abstractmethod
    def encode_images(self, images: Tensor) -> Tensor:
        """Images (B, C, H, W) -> maps (B, feature_dim, h, w)."""
