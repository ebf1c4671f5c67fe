"""Parts of an image set: some of its classes, or the same share of every class.

Fine-tuning on 1% and 10% of the labels (Chen et al. 2020, SimCLR, section 4.2) draws the share from
each class, so that no class is left out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from ndavid.data.image_sources import ImageSource, MemoryImages
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


class ClassImages(SubsetImages):
    """The images of some classes, labelled by their place in `classes`.

    Args:
        source: the images.
        indices: long (M,), of the images taken.
        labels: long (M,), their new labels.
        classes: names in the new order.
    """

    def __init__(
        self, source: ImageSource, indices: Tensor, labels: Tensor, classes: Sequence[str]
    ) -> None:
        super().__init__(source, indices)
        self.labels = labels
        self._classes = tuple(classes)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the source's digest and the names in their order, hexadecimal."""
        names = json.dumps(self._classes)
        return hashlib.sha256(f"{self.source.digest} {names}".encode()).hexdigest()


def class_subset(source: ImageSource, names: Sequence[str]) -> ImageSource:
    """The images of the named classes, in their old order; labels follow the order of the names.

    Images in memory stay there, as a copy.

    Raises:
        ConfigError: a name that the source does not have (tells the nearest), or one given twice.
        DataError: classes without images.
    """
    chosen = [_class_label(source, name) for name in names]
    if len(set(chosen)) < len(chosen):
        raise ConfigError("classes: a class may be named only once")
    # One place more for images without a label, which are -1: the last.
    renumbered = torch.full((len(source.classes) + 1,), -1)
    renumbered[chosen] = torch.arange(len(chosen))
    labels = renumbered[source.labels]
    indices = (labels >= 0).nonzero().flatten()
    subset = ClassImages(source, indices, labels[indices], names)
    return _in_memory(source, subset) if isinstance(source, MemoryImages) else subset


def _class_label(source: ImageSource, name: str) -> int:
    if name in source.classes:
        return source.classes.index(name)
    if not source.classes:
        raise ConfigError(f"classes: {source.origin} has no classes to choose {name!r} from")
    near = difflib.get_close_matches(name, source.classes, n=1, cutoff=0.0)[0]
    raise ConfigError(f"classes: {source.origin} has no class {name!r}; did you mean {near!r}?")


def _in_memory(source: MemoryImages, subset: ClassImages) -> MemoryImages:
    places = {index: place for place, index in enumerate(subset.indices.tolist())}
    return MemoryImages(
        source.images[subset.indices],
        subset.labels,
        subset.classes,
        origin=source.origin,
        digest=subset.digest,
        bad={places[index]: reason for index, reason in source.bad.items() if index in places},
    )
