"""kNN top-1 while pretraining goes on: does the representation tell classes apart yet?

Some training items are asked for, others are the gallery; no test item is ever read, so that the
number may steer a pretraining without spoiling the test. Videos are parted by whole groups: clips
of one source video in both halves would find each other by their background.

Of data in shards the items come from as few whole shards as hold enough of them, read one after
another: drawn from everywhere they would have every shard fetched for a few items of each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ndavid.engine.hooks import HookContext
from ndavid.engine.rng import generator
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.classify import PerItem, per_item
from ndavid.evaluation.neighbours import TEMPERATURE, vote
from ndavid.ranges import POSITIVE, check_ranges, check_workers

# Of a small set, this share asks and the rest is the gallery.
_MAX_QUERY_SHARE = 0.2


@dataclass(kw_only=True)
class KnnMonitorConfig:
    """How often, and on how many training items, kNN top-1 is measured during pretraining."""

    every: int = 0
    """epochs between measurements, the last one included; 0 measures nothing"""
    k: int = 20
    """neighbours that vote"""
    temperature: float = TEMPERATURE
    """of the votes' weights exp(cosine / temperature)"""
    samples: int = 5000
    """training items in the gallery, at most"""
    queries: int = 1000
    """other training items that are classified, at most"""
    batch_size: int = 256
    """items a forward pass"""
    num_workers: int = 0
    """loader processes"""

    def __post_init__(self) -> None:
        for name, least in [
            ("every", 0), ("k", 1), ("samples", 1), ("queries", 1),
            ("batch_size", 1),
        ]:  # fmt: skip
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        check_workers(self)
        check_ranges(self, temperature=POSITIVE)


class IndexedDataset(Protocol):
    """Reads an item's deterministic view by an int key: a sample with ``image`` or ``video``."""

    def __len__(self) -> int: ...

    def __getitem__(self, key: int, /) -> dict[str, Any]: ...


class FeatureMethod(Protocol):
    """A method whose ``features`` maps uint8 pixels (B, C, [T,] H, W) to (B, D)."""

    def features(self, pixels: Tensor) -> Tensor: ...


class KnnMonitor:
    """An epoch hook for ``engine.fit``: logs ``knn_top1``, every rank scoring its share.

    Args:
        config: How often, on how many.
        dataset: Training items, read by int keys. An unreadable item is left out. ``shard_sizes``,
            where it has them, are the samples in each shard, in order.
        labels: (N,) class of each item, -1 for none; those without are never read.
        group_of: Group of each item, whole groups ask or are asked; within a class, as in a
            manifest, and "" for an item that stands alone. None where every item does.
        seed: Draws who asks.
        last_epoch: The run's number of epochs, at the end of which it is always measured.

    Raises:
        ConfigError: If too few labelled items, or groups, are there to part.
    """

    def __init__(
        self,
        config: KnnMonitorConfig,
        dataset: IndexedDataset,
        labels: Tensor,
        *,
        group_of: Sequence[str] | None = None,
        seed: int = 0,
        last_epoch: int | None = None,
    ) -> None:
        self.config = config
        self.dataset = dataset
        self.labels = torch.as_tensor(labels, dtype=torch.long).cpu()
        if len(self.labels) != len(dataset) or (group_of and len(group_of) != len(dataset)):
            raise ValueError("the dataset, its labels and its groups must be equally many")
        self.last_epoch = last_epoch
        self._shard_sizes: Sequence[int] | None = getattr(dataset, "shard_sizes", None)
        self.queries: list[int] = []
        self.gallery: list[int] = []
        if config.every:
            self.queries, self.gallery = self._part(group_of, seed)

    def __call__(self, context: HookContext) -> dict[str, float]:
        """Returns ``knn_top1`` of an epoch that is due, else nothing."""
        if not self._due(context.epoch):
            return {}
        method = cast(FeatureMethod, context.method)
        queries, gallery = self._features(method, context.device)
        k = min(self.config.k, len(gallery.labels))
        shares = vote(
            queries.values.squeeze(1),
            gallery.values.squeeze(1),
            gallery.labels,
            int(self.labels.max()) + 1,
            ks=[k],
            temperature=self.config.temperature,
            device=context.device,
        )[k]
        return {"knn_top1": float((shares.argmax(1) == queries.labels).float().mean())}

    def _due(self, epoch: int) -> bool:
        every = self.config.every
        return every > 0 and (epoch % every == 0 or epoch == self.last_epoch)

    def _part(self, group_of: Sequence[str] | None, seed: int) -> tuple[list[int], list[int]]:
        """Positions of those that ask and of those that are asked, drawn by whole groups."""
        groups: dict[object, list[int]] = {}
        for index in self._within_reach(group_of, seed):
            groups.setdefault(self._group(index, group_of), []).append(index)
        if len(groups) < 2:
            raise ConfigError(
                "the kNN monitor needs training items with labels, in at least two groups: "
                f"found {len(groups)}; set its every to 0"
            )
        names = list(groups)
        order = torch.randperm(len(names), generator=generator(seed, "knn_monitor")).tolist()
        items = sum(map(len, groups.values()))
        wanted = max(1, min(self.config.queries, int(_MAX_QUERY_SHARE * items)))
        queries: list[int] = []
        while len(queries) < wanted and len(order) > 1:
            queries += groups[names[order.pop()]]
        gallery = [index for place in order for index in groups[names[place]]]
        # In the order of the files, which disks like better.
        return sorted(queries[:wanted]), sorted(gallery[: self.config.samples])

    def _within_reach(self, group_of: Sequence[str] | None, seed: int) -> list[int]:
        """Ascending positions of the labelled items to draw from: all, or those of some shards."""
        labelled = self.labels >= 0
        if self._shard_sizes is None:
            return labelled.nonzero().flatten().tolist()
        starts = list(itertools.accumulate(self._shard_sizes, initial=0))
        draw = generator(seed, "knn_monitor_shards")
        found: list[int] = []
        groups: set[object] = set()
        for shard in torch.randperm(len(self._shard_sizes), generator=draw).tolist():
            if len(found) >= self.config.queries + self.config.samples and len(groups) > 1:
                break
            items = [i for i in range(starts[shard], starts[shard + 1]) if labelled[i]]
            found += items
            groups.update(self._group(index, group_of) for index in items)
        return sorted(found)

    def _group(self, index: int, group_of: Sequence[str] | None) -> object:
        """What all items that must not be parted have in common."""
        name = group_of[index] if group_of else ""
        return (int(self.labels[index]), name) if name else index

    def _features(self, method: FeatureMethod, device: torch.device) -> tuple[PerItem, PerItem]:
        """Those of the queries and of the gallery, in one pass that opens no shard twice."""
        items = sorted([*self.queries, *self.gallery])
        found = per_item(
            method.features,
            _Chosen(self.dataset, items, self.labels),
            device=device,
            on_bad="skip",
            views_per_batch=self.config.batch_size,
            num_workers=self.config.num_workers,
            description="kNN monitor",
            in_runs=self._shard_sizes is not None,
        )
        asking = torch.isin(torch.tensor(items)[found.indices], torch.tensor(self.queries))
        for chosen, name in ((asking, "queries"), (~asking, "gallery")):
            if not chosen.any():
                path, reason = found.bad[0]
                raise DataError(path, f"none of the kNN monitor's {name} can be read: {reason}")
        queries, gallery = (
            PerItem(found.values[chosen], found.labels[chosen], found.indices[chosen], found.bad)
            for chosen in (asking, ~asking)
        )
        return queries, gallery


class _Chosen:
    """Some items of a dataset in the form of test views."""

    def __init__(self, dataset: IndexedDataset, items: list[int], labels: Tensor) -> None:
        self.dataset = dataset
        self.items = items
        self.labels = labels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: int) -> dict[str, Any]:
        index = self.items[place]
        sample = self.dataset[index]
        found: dict[str, Any] = {"label": int(self.labels[index]), "index": place, "bad": []}
        if sample["bad"]:
            # Another item stands in for this one, perhaps of another class or group.
            return found | {"bad": sample["bad"][:1]}
        if "image" in sample:
            return found | {"image": sample["image"]}
        return found | {"video": sample["video"].unsqueeze(0)}
