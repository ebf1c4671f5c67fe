"""ShardSampler: shards of its own for each reader, equal steps, any batch at once."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import get_worker_info

from ndavid.engine.loader import build_loader
from ndavid.engine.sampler import EpochSampler, Key
from ndavid.engine.shard_sampler import ShardSampler
from ndavid.errors import ConfigError

worlds = st.tuples(st.integers(1, 3), st.integers(1, 3))
some_sizes = st.lists(st.integers(0, 9), min_size=1, max_size=14)


def make(
    sizes: list[int], batch: int, world: int, readers: int, rank: int = 0, seed: int = 0
) -> ShardSampler:
    return ShardSampler(sizes, batch, seed=seed, rank=rank, world_size=world, readers=readers)


def epoch_of(sampler: ShardSampler, epoch: int, start: int = 0) -> list[list[Key]]:
    sampler.set_position(epoch, start)
    return list(sampler)


def shard_of(sizes: list[int], index: int) -> int:
    return [shard for shard, size in enumerate(sizes) for _ in range(size)][index]


@given(some_sizes, worlds, st.integers(1, 3), st.integers(0, 4))
def test_readers_have_shards_of_their_own_and_equally_many_batches(
    sizes: list[int], world_and_readers: tuple[int, int], batch: int, epoch: int
) -> None:
    world, readers = world_and_readers
    try:
        ranks = [make(sizes, batch, world, readers, rank) for rank in range(world)]
    except ConfigError:
        assume(False)
    owner: dict[int, tuple[int, int]] = {}
    seen: Counter[int] = Counter()
    for rank, sampler in enumerate(ranks):
        batches = epoch_of(sampler, epoch)
        assert len(batches) == len(sampler) == len(ranks[0])
        assert len(batches) % readers == 0
        for number, keys in enumerate(batches):
            assert len(keys) == batch
            for index, _ in keys:
                seen[index] += 1
                reader = (rank, number % readers)
                assert owner.setdefault(shard_of(sizes, index), reader) == reader
    assert set(seen.values()) == {1}
    assert len(seen) == batch * len(ranks[0]) * world


@given(st.integers(1, 3), worlds, st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_nothing_is_left_out_where_shards_deal_evenly(
    each: int, world_and_readers: tuple[int, int], batch: int, batches: int, epoch: int
) -> None:
    world, readers = world_and_readers
    sizes = [batch * batches] * (each * world * readers)
    seen = [
        index
        for rank in range(world)
        for keys in epoch_of(make(sizes, batch, world, readers, rank), epoch)
        for index, _ in keys
    ]
    assert sorted(seen) == list(range(sum(sizes)))


@given(some_sizes, st.integers(1, 3), st.integers(0, 3), st.data())
def test_starting_at_a_batch_is_skipping_to_it(
    sizes: list[int], readers: int, epoch: int, data: st.DataObject
) -> None:
    assume(sum(size > 0 for size in sizes) >= readers)
    sampler = make(sizes, 1, 1, readers)
    whole = epoch_of(sampler, epoch)
    start = data.draw(st.integers(0, len(whole)))
    assert epoch_of(sampler, epoch, start) == whole[start:]


def test_a_reader_opens_a_shard_once_and_reads_it_through() -> None:
    sizes = [4, 5, 4, 5, 4, 5, 4, 5]
    batches = epoch_of(make(sizes, 3, 1, 2), 1)
    for reader in range(2):
        shards = [shard_of(sizes, i) for keys in batches[reader::2] for i, _ in keys]
        changes = [a for a, b in zip(shards, [*shards[1:], None], strict=True) if a != b]
        assert len(changes) == len(set(changes)) == 4


def test_epochs_differ_in_who_reads_what_and_in_which_order() -> None:
    sizes = [8] * 8
    sampler = make(sizes, 4, 1, 2)
    first, second = epoch_of(sampler, 0), epoch_of(sampler, 1)
    owners = [
        {shard_of(sizes, i) for keys in batches[::2] for i, _ in keys}
        for batches in (first, second)
    ]
    assert owners[0] != owners[1]
    inside = [
        [i for keys in batches for i, _ in keys if shard_of(sizes, i) == 3]
        for batches in (first, second)
    ]
    assert sorted(inside[0]) == sorted(inside[1]) and inside[0] != inside[1]
    assert epoch_of(sampler, 0) == first
    assert epoch_of(make(sizes, 4, 1, 2, seed=1), 0) != first


def test_what_does_not_fit_is_another_part_each_time() -> None:
    sizes = [6] * 5
    sampler = make(sizes, 3, 1, 2)
    left = []
    for epoch in range(12):
        seen = {i for keys in epoch_of(sampler, epoch) for i, _ in keys}
        left.append(frozenset(range(30)) - seen)
        assert len(left[-1]) == 6
    assert frozenset.intersection(*left) == frozenset()
    assert "leaves out 6 of 30 samples" in sampler.summary(len(sampler))
    assert "multiple of 2" in sampler.summary(len(sampler))


def test_a_samples_seed_is_that_of_any_other_run() -> None:
    keys = [key for keys in epoch_of(make([5, 5], 1, 1, 2), 3) for key in keys]
    plain = EpochSampler(10, 5, seed=0)
    plain.set_position(3)
    assert sorted(keys) == sorted(key for batch in plain for key in batch)


@pytest.mark.parametrize(
    ("sizes", "batch", "world", "readers", "words"),
    [
        ([8, 8, 8], 2, 2, 2, "3 shard.*cannot feed 4 readers.*at least 4 are needed"),
        ([8, 0, 0, 0], 2, 1, 2, "1 shard.*at least 2 are needed"),
        ([9, 9, 1, 9], 4, 2, 2, "fewer samples than a batch of 4"),
        ([1, 1], 4, 1, 1, "the dataset has 2"),
    ],
)
def test_too_little_for_the_readers_is_said(
    sizes: list[int], batch: int, world: int, readers: int, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        make(sizes, batch, world, readers)


class WhoReads:
    """Gives the worker that asks beside the index."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, key: Key) -> dict[str, int]:
        info = get_worker_info()
        assert info is not None
        return {"index": key[0], "worker": info.id}


@pytest.mark.parametrize("start", [0, 3])
def test_torchs_workers_are_the_readers_after_a_resume_too(start: int) -> None:
    sizes = [6] * 8
    sampler = make(sizes, 2, 1, 2)
    sampler.set_position(2, start)
    loader = build_loader(WhoReads(), sampler, num_workers=2)
    owners: dict[int, set[int]] = {}
    for batch in loader:
        for index, worker in zip(batch["index"].tolist(), batch["worker"].tolist(), strict=True):
            owners.setdefault(shard_of(sizes, index), set()).add(worker)
    assert owners and all(len(workers) == 1 for workers in owners.values())
    assert set.union(*owners.values()) == {0, 1}
