"""Images in shards, as a source like any other."""

from __future__ import annotations

import hashlib
import json
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ndavid.data.image_sources import checked_labels, decode_image
from ndavid.data.shard_index import LocatedShards, locate
from ndavid.data.shard_store import ShardStore
from ndavid.errors import ConfigError


class ShardImages:
    """Encoded images in shards, decoded when they are read; see `ShardStore` for their order."""

    def __init__(self, located: LocatedShards) -> None:
        index = located.index
        self.store = ShardStore(located)
        self.classes = index.classes
        self.origin = located.origin
        labels = torch.tensor([s[1] for entry in index.shards for s in entry.samples])
        self.labels = checked_labels(labels, len(self.store), self.classes, self.origin)
        self._shards = [(entry.sha256, len(entry.samples)) for entry in index.shards]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the shards' own digests and sizes, hexadecimal."""
        return hashlib.sha256(json.dumps(self._shards).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self.store)

    def read(self, index: int) -> Tensor:
        return decode_image(self.content(index), self.name(index))

    def content(self, index: int) -> Tensor:
        """The file's bytes, uint8. Raises DataError where the shard does not give them."""
        return torch.from_numpy(np.frombuffer(self.store.content(index), dtype=np.uint8).copy())

    def name(self, index: int) -> str:
        return self.store.name(index)


def open_shards(shards: str, split: str) -> ShardImages:
    """The images in the shards that a config names.

    Raises:
        ConfigError: shards of another split, or of videos.
        DataError: no index or local shard there, or a damaged one.
    """
    located = locate(shards, "images")
    if located.index.split != split:
        raise ConfigError(
            f"{located.origin}: these shards hold split {located.index.split!r}, and {split!r} is "
            "asked for: set the images' split, or write other shards"
        )
    return ShardImages(located)
