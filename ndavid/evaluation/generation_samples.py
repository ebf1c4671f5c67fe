"""Images to measure: drawn from a generator batch by batch, or read from files.

A batch of latents has a generator of its own, so that samples depend neither on the number of ranks
nor on how many are drawn: 10,000 samples of a seed begin with its 5,000. The images are rounded
to uint8, as they would be in files, or floored. Batch norm uses its running statistics; a generator
that has none uses those of each batch on its rank, as the generators of the published FIDs did.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ndavid.collectives import rank, world_size
from ndavid.data.image_sources import ImageSource
from ndavid.data.image_subsets import SubsetImages
from ndavid.data.images import image_eval_transform
from ndavid.engine.distributed import gather_objects
from ndavid.engine.rng import generator
from ndavid.errors import TrainingError
from ndavid.evaluation.agreement import together
from ndavid.evaluation.classify import PerItem, per_item
from ndavid.evaluation.features import load_per_item, save_per_item
from ndavid.evaluation.gan_sheets import tiled, to_pixels
from ndavid.evaluation.image_views import ImageViews, ImageViewsConfig
from ndavid.models.batchnorm import has_running_stats
from ndavid.models.gan.model import Gan
from ndavid.models.gan.spectral_norm import shared_spectral_norm
from ndavid.progress import Progress

Compute = Callable[[Tensor], Tensor]
"""uint8 images (B, 3, S, S) on the device -> (B, D)."""

_ROWS = 10
_MOST_COLUMNS = 20


@dataclasses.dataclass(frozen=True)
class GanSamples:
    """The images that a seed draws from a generator; their classes take turns.

    Attributes:
        gan: In eval mode, on ``device``.
        count: How many images.
        seed: Draws the latents.
        purpose: What for; the samples of another purpose are others.
        views: The size that images are brought to.
        batch_size: Images at a time; other sizes are other samples.
        device: Where they are drawn.
        floored: Whether a pixel becomes the number below it, and not the nearest one.
    """

    gan: Gan
    count: int
    seed: int
    purpose: str
    views: ImageViewsConfig
    batch_size: int
    device: torch.device
    floored: bool = False

    def batch(self, index: int) -> Tensor:
        """Returns the images of one batch, uint8 (B, 3, S, S) on the device."""
        net = self.gan.generator
        # Always drawn whole: the images of a last, shorter batch are those of a full one.
        drawn = generator(self.seed, self.purpose, index)
        latents = torch.randn(self.batch_size, net.latent_dim, generator=drawn)
        start = index * self.batch_size
        size = min(self.batch_size, self.count - start)
        # Where the batch's statistics count, it must be made whole, too.
        made = size if has_running_stats(net) else self.batch_size
        labels = torch.arange(start, start + made) % net.num_classes if net.num_classes else None
        images = net(
            latents[:made].to(self.device), None if labels is None else labels.to(self.device)
        )
        pixels = to_pixels(images[:size], floored=self.floored)
        return image_eval_transform(self.views.size, resize=self.views.resize)(pixels)

    def features(self, compute: Compute) -> Tensor:
        """Returns what ``compute`` makes of all images, float32 (count, D) on the CPU.

        Raises:
            TrainingError: If images or features are not finite; on all ranks.
        """
        mine = together(lambda: dict(self._computed(compute)))
        batches = {index: part for share in gather_objects(mine) for index, part in share.items()}
        return torch.cat([batches[index] for index in sorted(batches)])

    def sheet(self) -> Tensor:
        """Returns a picture of the first images, a class a column; uint8 (3, H, W)."""
        classes = self.gan.generator.num_classes
        columns = classes if 1 < classes <= _MOST_COLUMNS else _ROWS
        with torch.inference_mode():
            images = self.batch(0).cpu()
        return tiled(images[: _ROWS * columns], columns)

    def _computed(self, compute: Compute) -> Iterator[tuple[int, Tensor]]:
        """This rank's batches by their index."""
        batches = math.ceil(self.count / self.batch_size)
        mine = range(rank(), batches, world_size())
        with (
            torch.inference_mode(),
            shared_spectral_norm(self.gan.generator),
            Progress(len(mine), "generating", unit="batch", silent=rank() != 0) as progress,
        ):
            for index in mine:
                part = compute(self.batch(index)).float().cpu()
                if not part.isfinite().all():
                    raise TrainingError("the generator's images have features that are not finite")
                progress.advance()
                yield index, part


def at_most(source: ImageSource, count: int, seed: int) -> ImageSource:
    """Returns a source's images, or ``count`` of them drawn from the seed; 0 takes all."""
    if not count or count >= len(source):
        return source
    order = torch.randperm(len(source), generator=generator(seed, "at most"))
    return SubsetImages(source, order[:count].sort().values)


def source_features(
    source: ImageSource,
    views: ImageViewsConfig,
    compute: Compute,
    device: torch.device,
    *,
    description: str,
    network: str,
    cache: Path | None,
) -> PerItem:
    """Returns what ``compute`` makes of a source's images, (N, D), from the cache if there.

    Args:
        source: The images.
        views: How they are looked at.
        compute: The networks.
        device: Where they run.
        description: What the progress bar says.
        network: Digest of what ``compute`` depends on.
        cache: Folder for features; None keeps nothing.

    Raises:
        DataError: On an unreadable image, unless ``views.on_bad`` skips them.
    """
    dataset = ImageViews(source, views)
    key = hashlib.sha256(f"{network} {dataset.digest()}".encode()).hexdigest()
    path = cache / f"{key}.safetensors" if cache else None
    found = load_per_item(path) if path else None
    # All ranks or none: one that finds the file while another does not would wait for ever.
    if not all(gather_objects(found is not None)):
        found = per_item(
            compute,
            dataset,
            device=device,
            on_bad=views.on_bad,
            views_per_batch=views.views_per_batch,
            num_workers=views.num_workers,
            description=description,
        )
        if path is not None and rank() == 0:
            save_per_item(path, found)
    assert found is not None
    return dataclasses.replace(found, values=found.values.squeeze(1))


def source_sheet(source: ImageSource, views: ImageViewsConfig) -> Tensor:
    """Returns a picture of images from all over a source; uint8 (3, H, W)."""
    shown = torch.linspace(0, len(source) - 1, min(_ROWS * _ROWS, len(source))).long().unique()
    seen = (ImageViews(source, views)[index] for index in shown.tolist())
    return tiled(torch.stack([view["image"] for view in seen if "image" in view]), _ROWS)


def together_in_one(networks: list[nn.Module], device: torch.device) -> Compute:
    """Returns what computes the outputs of several networks, side by side."""
    placed = [network.to(device).eval() for network in networks]
    return lambda images: torch.cat([network(images) for network in placed], dim=1)
