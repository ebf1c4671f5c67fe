"""MoCo on two ranks. This file is also the rank.

Where no sample feels another (group norm, or batch norm in eval mode), two ranks with half the
batch each are one with all of it: loss, gradients, queue. With batch norm they are what split batch
norm makes of one device, and the queue is the same on both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ranks
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from toys import SwapLeftHalves, build_toy

import ndavid.models.moco
from ndavid.collectives import gather_without_grad, rank, world_size
from ndavid.methods.moco import MocoMethod
from ndavid.methods.nda_config import MocoNdaConfig
from ndavid.models.moco import MocoConfig

BATCH, STEPS = 8, 4
IMAGES, CLIPS = (3, 16, 16), (3, 4, 16, 16)
SPEC = "stitch"  # what it names is replaced by a draw that does not feel how samples are dealt

NDA: dict[str, dict[str, Any]] = {
    "plain": {},
    "own": {"spec": SPEC, "per_sample": 2},
    "batch": {"spec": SPEC, "share": "batch", "weight": 0.5, "view": "query"},
    "batch_by_query": {"spec": SPEC, "share": "batch", "encoder": "query"},
    "shared_norm": {"spec": SPEC, "norm": "shared", "scale": 1.5},
}
EQUAL = {
    **{name: (nda, IMAGES, "group", False) for name, nda in NDA.items()},
    "clips_symmetric": (NDA["batch_by_query"], CLIPS, "group", True),
    "eval_batch_norm": (NDA["batch"], IMAGES, "eval", False),
}


def build(nda: dict[str, Any], norm: str, symmetric: bool = False, **moco: Any) -> MocoMethod:
    encoder = "toy:group" if norm == "group" else "toy:batch"
    config = MocoConfig(encoder=encoder, dim=4, queue_size=19, momentum=0.9, **moco)
    torch.manual_seed(0)
    method = MocoMethod(
        config,
        MocoNdaConfig(**({"encoder": "key", "norm": "own", "weight": 1.0} | nda)),
        symmetric=symmetric,
    ).train(norm != "eval")
    if nda.get("spec") == SPEC:
        method.operation = SwapLeftHalves()
    return method


def mine(step: int, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """This rank's share of a step's batch."""
    g = torch.Generator().manual_seed(step)
    views = torch.randint(256, (BATCH, 2, *shape), generator=g, dtype=torch.uint8)
    share = BATCH // world_size()
    return {"views": views[rank() * share : (rank() + 1) * share]}


def train(method: MocoMethod, shape: tuple[int, ...]) -> dict[str, Any]:
    """Some SGD steps, with DDP around the method on more than one rank."""
    wrapped = DistributedDataParallel(method) if world_size() > 1 else method
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    seen: dict[str, Any] = {"metrics": [], "queues": []}
    for step in range(STEPS):
        # Ranks draw different numbers; the order of the keys is rank 0's.
        generator = torch.Generator().manual_seed(10 * step + rank())
        result = wrapped(mine(step, shape), generator=generator, step=step)
        optimizer.zero_grad()
        result["loss"].backward()
        if step == 0:
            seen["gradients"] = {
                n: p.grad.clone() for n, p in method.named_parameters() if p.requires_grad
            }
        optimizer.step()
        seen["metrics"].append({name: value.detach() for name, value in result.items()})
        seen["queues"].append(method.moco.queue.clone())
    return seen | {"state": method.state_dict()}


def shuffled_company() -> dict[str, Any]:
    """A forward with batch norm: whose pixels the key encoder met, and the keys that came back."""
    method = build(NDA["plain"], "batch")
    met: list[Tensor] = []
    method.moco.key_encoder.register_forward_pre_hook(lambda _, args: met.append(args[0]))
    pixels = method.pixels(mine(0, IMAGES)["views"][:, 1])
    keys = method.moco.keys(pixels, torch.Generator().manual_seed(rank()))
    return {"all": gather_without_grad(pixels), "met": met[0], "keys": gather_without_grad(keys)}


def unsent_queue() -> Tensor:
    """The queue after a DDP forward, its last row marked with the rank before."""
    method = build(NDA["plain"], "batch")
    wrapped = DistributedDataParallel(method)
    method.moco.queue[-1] = rank()
    wrapped(mine(0, IMAGES), generator=torch.Generator(), step=0)
    return method.moco.queue


def one_rank() -> dict[str, Any]:
    ndavid.models.moco.build_encoder = build_toy
    found = {
        name: train(build(nda, norm, symmetric), shape)
        for name, (nda, shape, norm, symmetric) in EQUAL.items()
    }
    for name, nda in {"plain": {}, "nda": {"spec": "jigsaw", "share": "batch"}}.items():
        found[f"real_{name}"] = train(build(nda, "batch", bn_splits=2), IMAGES)
    return found | {"company": shuffled_company(), "unsent": unsent_queue()}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(Path(__file__), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", EQUAL)
def test_two_ranks_equal_one_with_the_whole_batch(
    two_ranks: list[dict], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ndavid.models.moco.build_encoder", build_toy)
    nda, shape, norm, symmetric = EQUAL[name]
    with torch.random.fork_rng():
        alone = train(build(nda, norm, symmetric), shape)
    both = [seen[name] for seen in two_ranks]
    for step in range(STEPS):
        for metric, value in alone["metrics"][step].items():
            mean = torch.stack([seen["metrics"][step][metric] for seen in both]).mean()
            torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-5, msg=metric)
        queues = both[0]["queues"][step], alone["queues"][step]
        torch.testing.assert_close(*queues, rtol=1e-4, atol=1e-5)
    for key, gradient in alone["gradients"].items():
        assert torch.equal(both[0]["gradients"][key], both[1]["gradients"][key])
        torch.testing.assert_close(
            both[0]["gradients"][key], gradient, rtol=1e-3, atol=1e-6, msg=key
        )
    assert both[0]["metrics"][0]["loss"] != both[1]["metrics"][0]["loss"]
    for key, value in alone["state"].items():
        torch.testing.assert_close(both[0]["state"][key], value, rtol=1e-3, atol=1e-4, msg=key)


@pytest.mark.parametrize("name", [*EQUAL, "real_plain", "real_nda"])
def test_the_queue_is_the_same_on_both_ranks(two_ranks: list[dict], name: str) -> None:
    first, second = (seen[name] for seen in two_ranks)
    assert all(torch.equal(a, b) for a, b in zip(first["queues"], second["queues"], strict=True))
    for name in ("moco.queue", "moco.queue_pointer"):
        assert torch.equal(first["state"][name], second["state"][name])
    # It moved, at every step.
    pairs = zip(first["queues"], first["queues"][1:], strict=False)
    assert not any(torch.equal(a, b) for a, b in pairs)


def test_ddp_does_not_send_the_queue_at_every_forward(two_ranks: list[dict]) -> None:
    """32 MB of 65536 keys. Ranks need not be told: they write the same."""
    first, second = (seen["unsent"] for seen in two_ranks)
    assert torch.equal(first[:-1], second[:-1])
    assert first[-1].tolist() == [0] * 4 and second[-1].tolist() == [1] * 4


def test_ranks_stay_together_with_batch_norm_and_shuffling(two_ranks: list[dict]) -> None:
    first, second = (seen["real_nda"]["state"] for seen in two_ranks)
    for name, value in first.items():
        # DDP sends rank 0's running statistics at the start of the next forward.
        if "running" not in name:
            assert torch.equal(value, second[name]), name
    assert any(not torch.equal(value, second[name]) for name, value in first.items())


def test_keys_are_normalised_in_other_company(
    two_ranks: list[dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each rank encodes a random share of all; every key returns to whose it is."""
    companies = [seen["company"] for seen in two_ranks]
    pixels = companies[0]["all"]
    orders = []
    for company in companies:
        same = (company["met"].unsqueeze(1) == pixels.unsqueeze(0)).flatten(2).all(dim=2)
        assert (same.sum(dim=1) == 1).all()
        orders.append(same.int().argmax(dim=1).tolist())
    assert sorted(orders[0] + orders[1]) == list(range(BATCH))
    assert {i // (BATCH // 2) for i in orders[0]} == {0, 1}  # samples of both ranks
    # Rank 0's draw, not rank 1's.
    expected = torch.randperm(BATCH, generator=torch.Generator().manual_seed(0))
    assert orders[0] + orders[1] == expected.tolist()
    monkeypatch.setattr("ndavid.models.moco.build_encoder", build_toy)
    with torch.random.fork_rng():
        moco = build({}, "batch").moco
    keys = torch.empty(BATCH, 4)
    with torch.no_grad():
        for order in orders:
            keys[order] = moco.key_head(moco.key_encoder(pixels[order]))
    for company in companies:
        torch.testing.assert_close(company["keys"], keys)


if __name__ == "__main__":
    ranks.serve(one_rank)
