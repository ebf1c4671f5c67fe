"""MoCo's four moves: queries, keys in shuffled company, the slow average, the queue."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from toys import build_toy

from ndavid.errors import ConfigError
from ndavid.models.batchnorm import SplitBatchNorm, batch_norms
from ndavid.models.moco import MoCo, MocoConfig

IMAGES, CLIPS = (6, 3, 16, 16), (6, 3, 4, 16, 16)
BOTH = pytest.mark.parametrize("shape", [IMAGES, CLIPS], ids=["images", "clips"])


@pytest.fixture(autouse=True)
def toy_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndavid.models.moco.build_encoder", build_toy)


def make(encoder: str = "toy:group", **settings) -> MoCo:
    config = MocoConfig(encoder=encoder, **{"dim": 4, "queue_size": 7, **settings})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MoCo(config)


def part_ways(moco: MoCo) -> MoCo:
    """Makes the two encoders differ, as training would."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in (*moco.encoder.parameters(), *moco.head.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return moco


def pixels(shape: tuple[int, ...] = IMAGES, seed: int = 0) -> Tensor:
    """Noise whose level and deviation are each sample's own: statistics tell who is in a batch."""
    g = torch.Generator().manual_seed(seed)
    level = torch.arange(1.0, shape[0] + 1).view(-1, *[1] * (len(shape) - 1))
    return level * torch.randn(shape, generator=g) + level


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spy(module: nn.Module) -> list[Tensor]:
    """What the module is given from now on."""
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    return seen


# --- the two encoders ----------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("encode", [MoCo.queries, lambda m, x: m.keys(x, None)], ids=["q", "k"])
def test_vectors_of_images_and_clips_have_unit_length(
    shape: tuple[int, ...], encode: Callable[[MoCo, Tensor], Tensor]
) -> None:
    vectors = encode(make(), pixels(shape))
    assert vectors.shape == (6, 4) and vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(6))
    assert not torch.allclose(vectors[0], vectors[1])


def test_the_key_encoder_starts_as_a_copy_and_learns_nothing_by_itself() -> None:
    moco = make("toy:batch")
    for key, query in ((moco.key_encoder, moco.encoder), (moco.key_head, moco.head)):
        torch.testing.assert_close(key.state_dict(), query.state_dict(), rtol=0, atol=0)
        assert all(p.requires_grad for p in query.parameters())
        assert not any(p.requires_grad for p in key.parameters())
    shared = {id(p) for p in moco.encoder.parameters()} & {
        id(p) for p in moco.key_encoder.parameters()
    }
    assert not shared
    assert moco.queries(pixels()).requires_grad
    assert not moco.keys(pixels(), None).requires_grad


@pytest.mark.parametrize("momentum", [0.0, 0.9, 0.999, 1.0])
def test_parameters_are_averaged_and_buffers_are_not(momentum: float) -> None:
    moco = part_ways(make("toy:batch", momentum=momentum))
    moco.queries(pixels())  # moves the query encoder's running statistics alone
    keys = [p.clone() for p in (*moco.key_encoder.parameters(), *moco.key_head.parameters())]
    queries = [p.clone() for p in (*moco.encoder.parameters(), *moco.head.parameters())]
    buffers = [b.clone() for b in moco.key_encoder.buffers()]
    moco.update_key_encoder()
    after = [*moco.key_encoder.parameters(), *moco.key_head.parameters()]
    for key, query, moved in zip(keys, queries, after, strict=True):
        assert not torch.equal(key, query)
        expected = (momentum * key.double() + (1 - momentum) * query.double()).float()
        torch.testing.assert_close(moved, expected, rtol=1e-6, atol=1e-7)
    for before, now in zip(buffers, moco.key_encoder.buffers(), strict=True):
        assert torch.equal(before, now)
    assert any(not torch.equal(a, b) for a, b in zip(buffers, moco.encoder.buffers(), strict=True))
    now = [*moco.encoder.parameters(), *moco.head.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(queries, now, strict=True))


def test_keys_move_the_key_encoders_own_running_statistics() -> None:
    """In training mode, as MoCo's (its issue 13)."""
    moco = make("toy:batch")
    slow, fast = moco.key_encoder.net[1], moco.encoder.net[1]
    moco.keys(pixels(), None)
    assert slow.num_batches_tracked == 1 and fast.num_batches_tracked == 0
    assert slow.running_mean.abs().sum() > 0 and fast.running_mean.abs().sum() == 0


def test_the_heads_follow_the_config() -> None:
    mlp = make(head="mlp", head_dim=5, dim=3)
    assert [tuple(p.shape) for p in mlp.head.parameters()] == [(5, 8), (5,), (3, 5), (3,)]
    linear = make(head="linear", dim=3)
    assert [tuple(p.shape) for p in linear.key_head.parameters()] == [(3, 8), (3,)]


# --- shuffling -----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("encoder", ["toy:group", "toy:batch"])
def test_shuffled_keys_come_back_in_their_own_order(shape, encoder: str) -> None:
    """Group norm, and batch norm with one sample a group, do not feel the company of a sample."""
    shuffling = make(encoder, bn_splits=2 if encoder == "toy:group" else 6)
    still = make(encoder, bn_splits=shuffling.config.bn_splits, shuffle=False)
    seen = spy(shuffling.key_encoder)
    batch = pixels(shape)
    for seed in range(5):
        torch.testing.assert_close(shuffling.keys(batch, generator(seed)), still.keys(batch, None))
    # The encoder met all samples, in as many orders as there were draws.
    orders = {tuple(x.flatten(1).std(dim=1).argsort().tolist()) for x in seen}
    assert len(orders) == 5
    assert all(sorted(order) == list(range(6)) for order in orders)


def test_shuffled_keys_meet_other_company_than_queries() -> None:
    """What a key's groups are normalised by: those that the drawn order deals, nothing else."""
    moco, batch = make("toy:batch", bn_splits=2), pixels()
    unshuffled = make("toy:batch", bn_splits=2, shuffle=False).keys(batch, None)
    order = torch.randperm(6, generator=generator(3))
    assert {*order[::2].tolist()} not in ({0, 2, 4}, {1, 3, 5})
    with torch.no_grad():
        expected = torch.empty(6, 4)
        plain = make("toy:batch")
        for group in (order[::2], order[1::2]):
            expected[group] = plain.key_head(plain.key_encoder(batch[group]))
    keys = moco.keys(batch, generator(3))
    torch.testing.assert_close(keys, expected)
    assert (keys - unshuffled).norm(dim=1).min() > 1e-3
    torch.testing.assert_close(moco.queries(batch).detach(), unshuffled)


@pytest.mark.parametrize(
    ("settings", "training"),
    [
        ({"bn_splits": 2}, False),
        ({"bn_splits": 2, "shuffle": False}, True),
        ({"bn_splits": 1}, True),
    ],
    ids=["eval", "off", "one group"],
)
def test_no_shuffle_where_there_is_nothing_to_hide(settings: dict, training: bool) -> None:
    moco, batch = make("toy:batch", **settings).train(training), pixels()
    seen, draws = spy(moco.key_encoder), generator()
    moco.keys(batch, draws)
    assert torch.equal(seen[0], batch)
    assert torch.equal(draws.get_state(), generator().get_state())


def test_splits_are_in_both_encoders() -> None:
    moco = make("toy:batch", bn_splits=3)
    for encoder in (moco.encoder, moco.key_encoder):
        layers = batch_norms(encoder)
        assert len(layers) == 2
        assert all(isinstance(layer, SplitBatchNorm) and layer.splits == 3 for layer in layers)
    assert list(moco.state_dict()) == list(make("toy:batch").state_dict())


# --- the queue -----------------------------------------------------------------------------------


def test_the_queue_starts_as_unit_vectors_and_is_saved() -> None:
    moco = make(queue_size=50)
    assert moco.queue.shape == (50, 4)
    torch.testing.assert_close(moco.queue.norm(dim=1), torch.ones(50))
    # Directions all around: nothing that a positive could be told from by its place.
    assert moco.queue.mean(dim=0).norm() < 0.3
    moco.enqueue(torch.eye(4)[:3])
    state = moco.state_dict()
    assert state["queue_pointer"].tolist() == [3]
    again = make(queue_size=50)
    again.load_state_dict(state)
    assert torch.equal(again.queue, moco.queue) and again.queue_pointer == 3
    assert not {"queue", "queue_pointer"} & {name for name, _ in moco.named_parameters()}


@pytest.mark.parametrize(("size", "batch"), [(7, 3), (6, 3), (5, 5), (4, 1), (9, 7)])
def test_the_oldest_keys_are_overwritten_in_order(size: int, batch: int) -> None:
    moco = make(queue_size=size)
    slots = [row.clone() for row in moco.queue]
    place = 0
    for step in range(3 * size):
        keys = torch.randn(batch, 4, generator=generator(step))
        moco.enqueue(keys)
        for key in keys:
            slots[place] = key
            place = (place + 1) % size
        assert torch.equal(moco.queue, torch.stack(slots))
        assert moco.queue_pointer.tolist() == [place]


def test_more_keys_than_the_queue_holds_are_refused() -> None:
    moco = make(queue_size=7)
    before = moco.queue.clone()
    with pytest.raises(ValueError, match=r"8 keys .* queue of 7: raise model.queue_size"):
        moco.enqueue(torch.randn(8, 4))
    assert torch.equal(moco.queue, before) and moco.queue_pointer == 0


def test_half_precision_keys_are_queued_in_float32() -> None:
    moco = make()
    moco.enqueue(torch.eye(4).bfloat16())
    assert moco.queue.dtype == torch.float32
    assert torch.equal(moco.queue[:4], torch.eye(4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, r"model\.dim must be at least 1, not 0"),
        ({"queue_size": 0}, r"model\.queue_size must be at least 1"),
        ({"bn_splits": 0}, r"model\.bn_splits must be at least 1"),
        ({"head_dim": -1}, r"model\.head_dim must not be negative"),
        ({"momentum": 1.1}, r"model\.momentum must be between 0 and 1, not 1.1"),
        ({"momentum": float("nan")}, r"model\.momentum"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MocoConfig(**settings)
