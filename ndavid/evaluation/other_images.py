"""What test images are set against: other sets, and copies of themselves, broken or corrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor

from ndavid.data.config import DataConfig
from ndavid.data.corruptions import corrupt
from ndavid.data.image_sources import ImageSource
from ndavid.engine.rng import generator
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.image_views import ImageViews, ImageViewsConfig, dataset_name
from ndavid.methods.nda_config import NegativesConfig

_SOURCES = get_args(get_type_hints(DataConfig)["source"])
_KEYS = ("root", "split", "class_list", "classes", "download")


def parse_source(text: str) -> DataConfig:
    """Returns the image set that ``SOURCE:KEY=VALUE,...`` names; its split is ``test`` unless said.

    Of several ``classes`` the names have a + between them.

    Raises:
        ConfigError: If it is no such text, or has unknown keys.
    """
    source, _, rest = text.partition(":")
    keys: dict[str, Any] = {"source": source, "split": "test"}
    for part in filter(None, rest.split(",")):
        key, given, value = part.partition("=")
        if not given or key not in _KEYS:
            wanted = " or ".join(f"{known}=" for known in _KEYS)
            raise ConfigError(f"others: {text!r}: expected {wanted}, not {part!r}")
        keys[key] = _value(key, value)
    if source not in _SOURCES:
        known = ", ".join(_SOURCES)
        raise ConfigError(f"others: {text!r}: its source must be one of {known}")
    return DataConfig(**keys)


def _value(key: str, text: str) -> str | bool | list[str]:
    if key == "classes":
        return text.split("+")
    return text == "true" if key == "download" else text


def parse_others(texts: list[str]) -> dict[str, DataConfig]:
    """Returns the sets that ``parse_source`` reads, by the name of their column.

    A set may be given its name: ``Places365=flat:root=val_256``.

    Raises:
        ConfigError: As ``parse_source``, or if one is named twice.
    """
    others = {}
    for text in texts:
        head, _, keys = text.partition(":")
        name, _, source = head.rpartition("=")
        data = parse_source(f"{source}:{keys}")
        name = name or f"{dataset_name(data)} {data.split} {'+'.join(data.classes)}".strip()
        if name in others:
            raise ConfigError(
                f"others: two sets are called {name!r}; give them names: NAME=SOURCE:..."
            )
        others[name] = data
    return others


def parse_operations(specs: list[str], size: int) -> dict[str, Any]:
    """Returns the operations of negative augmentation that ``specs`` name, by their specs.

    Args:
        specs: As ``nda.from_spec`` reads them.
        size: Side of the images, pixels.

    Raises:
        ConfigError: If one names no operation, or one that such images cannot have, or one twice.
    """
    if len(set(specs)) < len(specs):
        raise ConfigError("nda: name each operation once")
    return {spec: _operation(spec, size) for spec in specs}


def _operation(spec: str, size: int) -> Any:
    operation = NegativesConfig(spec=spec).operation()
    if operation is None:
        raise ConfigError("nda: an empty spec breaks nothing")
    # Here, in one line, rather than from a loader process.
    operation.check((2, 3, size, size))
    return operation


class BrokenImages(ImageViews):
    """The test views after an operation of negative augmentation.

    An image is broken by a generator of its own, with an image drawn by it as the partner of
    operations that mix two: it depends neither on the batch nor on the ranks. ``unchanged``, bool
    (1,), says whether it came out as it went in.
    """

    def __init__(
        self, source: ImageSource, views: ImageViewsConfig, operation: Any, seed: int
    ) -> None:
        super().__init__(source, views)
        if len(source) < 2:
            raise ConfigError("an operation needs at least two test images")
        self.operation = operation
        self.seed = seed

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if "image" not in sample:
            return sample
        draw = generator(self.seed, "ood", index)
        away = int(torch.randint(1, len(self), (), generator=draw))
        partner = super().__getitem__((index + away) % len(self))
        if "image" not in partner:
            return {name: sample[name] for name in ("label", "index")} | {"bad": partner["bad"]}
        pair = torch.stack([sample["image"], partner["image"]])
        broken = self.operation.broken(pair, generator=draw)
        return sample | {"image": broken.pixels[0], "unchanged": ~broken.changed[:1]}

    def broken_digest(self, spec: str) -> str:
        """Returns ``digest`` of the broken images, given the operation's spec."""
        return hashlib.sha256(f"{self.digest()} {spec} {self.seed} compared".encode()).hexdigest()


def only_changed(unchanged: Tensor | None, count: int, spec: str) -> Tensor:
    """Returns which of ``count`` broken images differ from their original: bool (count,).

    Args:
        unchanged: (count, 1) bool, as `BrokenImages` says; None: all differ.
        count: How many images.
        spec: The operation, for the error.

    Raises:
        DataError: If none does.
    """
    if unchanged is None:
        return torch.ones(count, dtype=torch.bool)
    kept = ~unchanged.flatten()
    if not kept.any():
        raise DataError(
            "the test images", f"nda {spec}: every image came out as it went in; nothing is broken"
        )
    return kept


def on_unchanged(left_out: Mapping[str, int]) -> list[str]:
    """Returns a warning for each column that lacks images that came out as they went in."""
    return [
        f"{name}: {count} images came out as they went in and are left out."
        for name, count in left_out.items()
        if count
    ]


class CorruptedImages(ImageViews):
    """The test views after one of the common corruptions that are made here.

    The noise of an image is the same at every severity, only stronger.

    Raises:
        ConfigError: As ``ndavid.data.corruptions.check_corruption``, when an image is read.
    """

    def __init__(
        self, source: ImageSource, views: ImageViewsConfig, name: str, severity: int, seed: int
    ) -> None:
        super().__init__(source, views)
        self.name = name
        self.severity = severity
        self.seed = seed

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        if "image" not in sample:
            return sample
        return sample | {"image": self._corrupted(sample["image"], index)}

    def _corrupted(self, image: Tensor, index: int) -> Tensor:
        draw = generator(self.seed, f"corruption {self.name}", index)
        return corrupt(image, self.name, self.severity, draw)
