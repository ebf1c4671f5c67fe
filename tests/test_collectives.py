"""Gathering over two real gloo processes. Run as a script, this file is one of the two ranks."""

from __future__ import annotations

from pathlib import Path

import ranks
import torch

from ndavid.collectives import (
    broadcast_from_first,
    gather_with_grad,
    gather_without_grad,
    rank,
    world_size,
)


def one_rank() -> dict:
    index = rank()
    result: dict = {"rank": rank(), "world_size": world_size()}

    x = torch.arange(6.0).reshape(2, 3) + 100 * index
    result["gathered"] = gather_without_grad(x.requires_grad_())
    result["detached"] = not gather_without_grad(x).requires_grad
    result["permuted"] = gather_without_grad(x.T)
    result["mask"] = gather_without_grad(torch.tensor([True, index == 0]))
    result["indices"] = gather_without_grad(torch.tensor([index, 7]))

    # The loss weighs every gathered entry by what this rank thinks of it.
    weights = torch.arange(12.0).reshape(4, 3) * (index + 1)
    (gather_with_grad(x) * weights).sum().backward()
    result["grad"] = x.grad

    # The same incoming gradient tensor goes to the gather and, later (it is the older branch), to
    # another one, which must find it as it was.
    y, other = torch.zeros(2, 3, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    older = other * 1.0
    ((gather_with_grad(y) + older) * weights).sum().backward()
    result["other_grad"] = other.grad

    # Rank 1 has drawn another order; a transposed tensor is not contiguous.
    result["first"] = broadcast_from_first(x)
    result["first_detached"] = not broadcast_from_first(x).requires_grad
    result["first_transposed"] = broadcast_from_first(x.T)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(index))
    result["order"], result["own_order"] = broadcast_from_first(order), order
    return result


def test_one_process_is_the_identity() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert gather_with_grad(x) is x
    assert not gather_without_grad(x).requires_grad
    assert torch.equal(broadcast_from_first(x), x)


def test_two_ranks_gather_values_and_gradients(tmp_path: Path) -> None:
    results = ranks.run(Path(__file__), tmp_path)
    parts = [torch.arange(6.0).reshape(2, 3) + 100 * index for index in range(2)]
    weights = torch.arange(12.0).reshape(4, 3)
    for index, result in enumerate(results):
        assert (result["rank"], result["world_size"]) == (index, 2)
        assert torch.equal(result["gathered"], torch.cat(parts))
        assert result["detached"]
        assert torch.equal(result["permuted"], torch.cat([part.T for part in parts]))
        assert result["mask"].tolist() == [True, True, True, False]
        assert result["indices"].tolist() == [0, 7, 1, 7]
        # Both ranks' losses depend on this rank's x: weights * (1 + 2), this rank's rows.
        assert torch.equal(result["grad"], 3 * weights[2 * index : 2 * index + 2])
        assert torch.equal(result["other_grad"], (index + 1) * weights)
        assert torch.equal(result["first"], parts[0]) and result["first_detached"]
        assert torch.equal(result["first_transposed"], parts[0].T)
        assert torch.equal(result["order"], results[0]["own_order"])
    assert not torch.equal(results[1]["own_order"], results[1]["order"])


if __name__ == "__main__":
    ranks.serve(one_rank)
