"""The monitor reads train items only, parts them by group, and counts what a loop counts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ndavid.data.video import collate
from ndavid.engine.hooks import HookContext
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.knn_monitor import KnnMonitor, KnnMonitorConfig

CPU = torch.device("cpu")


class Items:
    """Images (or clips) whose mean brightness tells the class; remembers what was read."""

    def __init__(self, count: int = 60, clips: bool = False, bad: tuple[int, ...] = ()) -> None:
        draw = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) % 3
        shape = (count, 3, 4, 6, 6) if clips else (count, 3, 6, 6)
        noise = torch.randint(0, 40, shape, generator=draw)
        # Each class has a channel of its own.
        colours = torch.eye(3)[self.labels].view(count, 3, *[1] * (len(shape) - 2))
        self.pixels = (noise + 200 * colours).to(torch.uint8)
        self.key = "video" if clips else "image"
        self.bad = bad
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key if isinstance(key, int) else key[0]
        self.read.append(index)
        at = (index + 1) % len(self) if index in self.bad else index
        bad = [(f"{index}.png", "broken")] if index in self.bad else []
        return {self.key: self.pixels[at], "label": int(self.labels[at]), "index": at, "bad": bad}


class Colours(nn.Module):
    """A method whose features are the mean colours."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def features(self, pixels: Tensor) -> Tensor:
        return self.scale * pixels.float().flatten(2).mean(2)

    def forward(
        self, batch: dict[str, Tensor], *, generator: object, step: int
    ) -> dict[str, Tensor]:
        return {"loss": self.features(batch["image"]).mean() ** 2}


def end(epoch: int, method: nn.Module) -> HookContext:
    return HookContext(epoch, 10 * epoch, method.eval(), None, CPU, Path("unused"))


@pytest.mark.parametrize("clips", [False, True])
def test_it_finds_what_can_be_found_and_chance_otherwise(clips: bool) -> None:
    items = Items(clips=clips)
    monitor = KnnMonitor(KnnMonitorConfig(every=1, k=5), items, items.labels, seed=0)
    assert monitor(end(1, Colours())) == {"knn_top1": 1.0}
    shuffled = items.labels[torch.randperm(60, generator=torch.Generator().manual_seed(1))]
    mixed = KnnMonitor(KnnMonitorConfig(every=1, k=5), items, shuffled, seed=0)
    assert mixed(end(1, Colours()))["knn_top1"] < 0.8


def test_the_number_is_that_of_a_loop() -> None:
    items = Items()
    labels = items.labels[torch.randperm(60, generator=torch.Generator().manual_seed(4))]
    config = KnnMonitorConfig(every=1, k=7, temperature=0.5)
    monitor = KnnMonitor(config, items, labels, seed=2)
    with torch.no_grad():
        features = nn.functional.normalize(Colours().features(items.pixels), dim=1)
    hits = 0
    for query in monitor.queries:
        near = sorted(monitor.gallery, key=lambda g: -float(features[query] @ features[g]))[:7]
        votes = torch.zeros(3)
        for place in near:
            votes[labels[place]] += (features[query] @ features[place] / 0.5).exp()
        hits += int(votes.argmax() == labels[query])
    found = monitor(end(1, Colours()))["knn_top1"]
    assert found == pytest.approx(hits / len(monitor.queries))


def test_it_reads_no_item_twice_and_none_without_a_label() -> None:
    items = Items()
    labels = torch.where(torch.arange(60) < 20, -1, items.labels)
    monitor = KnnMonitor(KnnMonitorConfig(every=1, queries=5, samples=30), items, labels, seed=0)
    monitor(end(1, Colours()))
    assert sorted(items.read) == sorted([*monitor.queries, *monitor.gallery])
    assert len(set(items.read)) == len(items.read) and min(items.read) >= 20
    assert (len(monitor.queries), len(monitor.gallery)) == (5, 30)


def test_whole_groups_ask_or_are_asked() -> None:
    items = Items(90)
    groups = [f"g{index // 3 % 6}" for index in range(90)]
    for seed in range(10):
        monitor = KnnMonitor(
            KnnMonitorConfig(every=1, queries=8), items, items.labels, group_of=groups, seed=seed
        )
        asked, known = (
            {(int(items.labels[i]), groups[i]) for i in places}
            for places in (monitor.queries, monitor.gallery)
        )
        assert asked and known and not asked & known


def test_the_draw_follows_the_seed() -> None:
    items = Items()
    parts = [
        KnnMonitor(KnnMonitorConfig(every=1), items, items.labels, seed=seed).queries
        for seed in (0, 0, 1)
    ]
    assert parts[0] == parts[1] != parts[2]


def test_an_item_that_cannot_be_read_has_no_stand_in() -> None:
    items = Items(bad=(7, 8, 30))
    monitor = KnnMonitor(KnnMonitorConfig(every=1, k=3), items, items.labels, seed=0)
    # Its neighbour is of another class, and would be a miss.
    assert monitor(end(1, Colours())) == {"knn_top1": 1.0}


def test_epochs_that_are_not_due_cost_nothing() -> None:
    items = Items()
    monitor = KnnMonitor(KnnMonitorConfig(every=3), items, items.labels, last_epoch=7)
    due = [epoch for epoch in range(1, 8) if monitor(end(epoch, Colours()))]
    assert due == [3, 6, 7]
    items.read.clear()
    assert monitor(end(1, Colours())) == {} and items.read == []
    off = KnnMonitor(KnnMonitorConfig(every=0), items, torch.full((60,), -1), last_epoch=7)
    assert off(end(7, Colours())) == {}


def test_without_labels_it_says_how_to_turn_it_off() -> None:
    with pytest.raises(ConfigError, match="every to 0"):
        KnnMonitor(KnnMonitorConfig(every=1), Items(), torch.full((60,), -1))
    with pytest.raises(ConfigError, match="at least two groups"):
        KnnMonitor(KnnMonitorConfig(every=1), Items(), torch.zeros(60), group_of=["g"] * 60)
    with pytest.raises(ValueError, match="equally many"):
        KnnMonitor(KnnMonitorConfig(every=1), Items(), torch.zeros(3))


def test_the_engine_logs_it_as_validation(tmp_path: Path) -> None:
    items = Items()
    monitor = KnnMonitor(KnnMonitorConfig(every=2, k=3), items, items.labels, last_epoch=3)
    run = RunConfig(output=str(tmp_path), epochs=3, batch_size=20, num_workers=0, device="cpu")
    fit(
        Colours(), items, run=run, optim=OptimConfig(lr=1e-4), collate=collate, on_epoch_end=monitor
    )
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records if "val/knn_top1" in r] == [6, 9]


class ShardedItems(Items):
    """Items in shards of ten."""

    shard_sizes = (10,) * 6


def shards_in_order(items: list[int]) -> list[int]:
    return [shard for shard, _ in itertools.groupby(index // 10 for index in items)]


def test_of_shards_it_reads_a_few_whole_ones_each_once() -> None:
    config = KnnMonitorConfig(every=1, k=3, queries=4, samples=16, batch_size=3)
    items = ShardedItems()
    monitor = KnnMonitor(config, items, items.labels, seed=0)
    assert monitor(end(1, Colours())) == {"knn_top1": 1.0}
    assert len(items.read) == 20 and len(set(items.read)) == 20
    # Queries and gallery in one pass: no shard is come back to.
    visited = shards_in_order(items.read)
    assert len(visited) == 2 and visited == sorted(visited)
    assert monitor.queries and monitor.gallery
    chosen = {
        tuple(shards_in_order(sorted([*other.queries, *other.gallery])))
        for other in (KnnMonitor(config, items, items.labels, seed=seed) for seed in range(5))
    }
    assert len(chosen) > 1


def test_of_shards_it_takes_more_until_there_are_two_groups() -> None:
    items = ShardedItems()
    groups = [f"g{index // 30}" for index in range(60)]
    config = KnnMonitorConfig(every=1, queries=1, samples=2)
    labels = torch.zeros(60, dtype=torch.long)
    for seed in range(5):
        monitor = KnnMonitor(config, items, labels, group_of=groups, seed=seed)
        assert {groups[i] for i in monitor.queries}.isdisjoint(groups[i] for i in monitor.gallery)


def test_queries_of_which_none_can_be_read_are_an_error() -> None:
    items = Items()
    monitor = KnnMonitor(KnnMonitorConfig(every=1, queries=2), items, items.labels, seed=0)
    items.bad = tuple(monitor.queries)
    with pytest.raises(DataError, match="none of the kNN monitor's queries can be read: broken"):
        monitor(end(1, Colours()))
