"""Seeds are functions of (seed, purpose, keys), and distinct."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from ndavid.engine.rng import derive_seed, generator, seeded


def test_seeds_are_the_same_on_every_machine() -> None:
    # Written down once: a change here breaks the resuming of every run there is.
    assert derive_seed(0, "step", 0, 0) == 3201211892590446905
    assert derive_seed(7, "nda", 1, 42) == 7947729774611246548


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=4))
def test_seeds_fit_torch_and_differ_between_positions(keys: list[int]) -> None:
    seed = derive_seed(0, "step", *keys)
    assert 0 <= seed < 2**63
    assert seed != derive_seed(0, "nda", *keys)
    assert seed != derive_seed(1, "step", *keys)
    assert seed != derive_seed(0, "step", *keys, 0)
    assert seed != derive_seed(0, "step", *keys[:-1], keys[-1] + 1)


def test_keys_do_not_run_together() -> None:
    assert derive_seed(0, "step", 1, 23) != derive_seed(0, "step", 12, 3)
    assert derive_seed(1, "a", 2) != derive_seed(1, "a2")


def test_a_generator_repeats_itself() -> None:
    draws = [torch.rand(4, generator=generator(3, "nda", 0, 5)) for _ in range(2)]
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], torch.rand(4, generator=generator(3, "nda", 0, 6)))


def test_seeded_leaves_the_default_generator_as_it_was() -> None:
    before = torch.get_rng_state()
    with seeded(0, "init"):
        first = torch.nn.Linear(3, 3).weight.detach()
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(0, "init"):
        again = torch.nn.Linear(3, 3).weight.detach()
    assert torch.equal(first, again)
