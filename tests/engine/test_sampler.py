"""EpochSampler: any batch of any epoch, on any number of ranks, without walking there."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ndavid.engine.sampler import EpochSampler
from ndavid.errors import ConfigError

sizes = st.tuples(st.integers(1, 60), st.integers(1, 8), st.integers(1, 4))


def make(samples: int, batch: int, world: int, rank: int = 0, seed: int = 0) -> EpochSampler:
    return EpochSampler(samples, batch, seed=seed, rank=rank, world_size=world)


@given(sizes, st.integers(0, 5))
def test_ranks_share_an_epoch_without_overlap_in_equal_counts(
    size: tuple[int, int, int], epoch: int
) -> None:
    samples, batch, world = size
    assume(samples >= batch * world)
    shares = []
    for rank in range(world):
        sampler = make(*size, rank=rank)
        sampler.set_position(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler) == samples // (batch * world)
        assert all(len(keys) == batch for keys in batches)
        shares.append([index for keys in batches for index, _ in keys])
    seen = [index for share in shares for index in share]
    assert len(set(seen)) == len(seen) and set(seen) <= set(range(samples))


@given(sizes, st.integers(0, 3), st.data())
def test_starting_at_a_batch_is_skipping_to_it(
    size: tuple[int, int, int], epoch: int, data: st.DataObject
) -> None:
    samples, batch, world = size
    assume(samples >= batch * world)
    sampler = make(*size)
    sampler.set_position(epoch)
    whole = list(sampler)
    start = data.draw(st.integers(0, len(whole)))
    sampler.set_position(epoch, start)
    assert list(sampler) == whole[start:]


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_two_ranks_together_see_what_one_with_twice_the_batch_sees(
    batch: int, batches: int, epoch: int
) -> None:
    samples = 2 * batch * batches + 1
    one = make(samples, 2 * batch, 1)
    two = [make(samples, batch, 2, rank=rank) for rank in range(2)]
    for sampler in (one, *two):
        sampler.set_position(epoch)
    assert list(one) == [a + b for a, b in zip(*two, strict=True)]


def test_orders_and_sample_seeds_change_with_epoch_and_seed() -> None:
    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1):
            sampler = make(50, 5, 1, seed=seed)
            sampler.set_position(epoch)
            orders[seed, epoch] = [key for keys in sampler for key in keys]
    flat = [tuple(keys) for keys in orders.values()]
    assert len(set(flat)) == 4
    seeds = [sample_seed for keys in flat for _, sample_seed in keys]
    assert len(set(seeds)) == len(seeds)


def test_without_shuffling_the_order_is_the_datasets() -> None:
    sampler = EpochSampler(7, 3, seed=0, shuffle=False)
    assert [[i for i, _ in keys] for keys in sampler] == [[0, 1, 2], [3, 4, 5]]


def test_too_few_samples_says_what_to_change() -> None:
    with pytest.raises(ConfigError, match=r"8 x 2 rank.*dataset has 15: lower batch_size"):
        make(15, 8, 2)


def test_a_position_outside_the_epoch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch 4"):
        make(9, 3, 1).set_position(0, 4)


def test_persistent_workers_follow_the_position() -> None:
    sampler = make(12, 3, 1)
    keyed = DataLoader(
        _Echo(),
        batch_sampler=sampler,
        num_workers=1,
        persistent_workers=True,
        collate_fn=list,
        generator=torch.Generator(),
    )
    for epoch, start in [(0, 0), (3, 2), (3, 0)]:
        sampler.set_position(epoch, start)
        expected = list(sampler)
        sampler.set_position(epoch, start)
        assert list(keyed) == expected


class _Echo(torch.utils.data.Dataset[tuple[int, int]]):
    """A sample is its key."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[int, int]:
        return key
