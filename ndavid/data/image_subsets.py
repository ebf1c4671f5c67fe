"""Parts of an image set: the same share of every class, as label-fraction protocols ask.

Fine-tuning on 1% and 10% of the labels (Chen et al. 2020, SimCLR, section 4.2) draws the share from
each class, so that no class is left out.
"""

from __future__ import annotations

import hashlib
from functools import cached_property

import torch
from torch import Tensor

from ndavid.data.image_sources import ImageSource
from ndavid.errors import ConfigError, DataError


def stratified_indices(labels: Tensor, fraction: float, seed: int) -> Tensor:
    """Indices of a random `fraction` of every class, at least one image each; long, ascending.

    A larger fraction of the same seed holds all that a smaller one does. Items without a label
    (-1) are never drawn.

    Raises:
        ConfigError: the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"a fraction of the labels must lie in (0, 1], got {fraction}")
    generator = torch.Generator().manual_seed(seed)
    # One order of everything first: what is drawn of a class does not depend on the others' sizes.
    order = torch.randperm(len(labels), generator=generator)
    chosen = []
    for label in labels[labels >= 0].unique().tolist():
        members = order[labels[order] == label]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    if not chosen:
        return torch.zeros(0, dtype=torch.long)
    return torch.cat(chosen).sort().values


class SubsetImages:
    """Some images of a source, in the order of `indices`.

    Raises:
        DataError: no index, or one that the source does not have.
    """

    def __init__(self, source: ImageSource, indices: Tensor) -> None:
        indices = torch.as_tensor(indices).long()
        if not len(indices):
            raise DataError(source.origin, "no images to read: the subset is empty")
        if indices.min() < 0 or indices.max() >= len(source):
            found = f"{int(indices.min())} to {int(indices.max())}"
            reason = f"has {len(source)} images, indices run from {found}"
            raise DataError(source.origin, reason)
        self.source = source
        self.indices = indices
        self.labels = source.labels[indices]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def origin(self) -> str:
        return self.source.origin

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the source's digest and the indices, hexadecimal."""
        digest = hashlib.sha256(self.source.digest.encode())
        digest.update(self.indices.numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.indices)

    def read(self, index: int) -> Tensor:
        return self.source.read(int(self.indices[index]))

    def name(self, index: int) -> str:
        return self.source.name(int(self.indices[index]))
