"""Two ranks with batch B equal one with 2B, in loss and in gradients. This file is also the rank.

Batch norm is in eval mode: its batch statistics differ between the two by nature.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import ranks
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from toys import SwapLeftHalves

from ndavid.collectives import rank
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.nda_config import NdaConfig
from ndavid.models.dpc import DpcConfig

BATCH = 4

CONFIGS = {
    "plain": NdaConfig(),
    "own": NdaConfig(spec="stitch"),
    "batch": NdaConfig(spec="stitch", share="batch", per_sample=2, weight=0.5),
    "batch_all_cells": NdaConfig(spec="stitch", share="batch", align="all", where="all"),
    "batch_context_pooled": NdaConfig(
        spec="stitch", share="batch", where="context", entry="pooled", scale=1.5
    ),
}
# The same, scored three rows at a time: still equal to one rank that scores all at once.
CHUNKED = {f"{name}, in chunks": CONFIGS[name] for name in ("plain", "own", "batch")}


def build(config: NdaConfig, chunk_rows: int = 0) -> DpcMethod:
    torch.manual_seed(0)
    dpc = DpcConfig(
        encoder="resnet2d3d10_half", num_blocks=3, block_len=3, pred_steps=1, dropout=0.0
    )
    method = DpcMethod(dpc, config, chunk_rows=chunk_rows).eval()
    if config.spec:
        method.operation = SwapLeftHalves()
    return method


def videos() -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(256, (BATCH, 3, 9, 64, 64), generator=g, dtype=torch.uint8)


def one_step(name: str, index: int, world: int) -> dict:
    """Loss, gradients and metrics of one rank; with DDP around the method on more than one."""
    chunk_rows = 3 if name in CHUNKED and world > 1 else 0
    method = build((CONFIGS | CHUNKED)[name], chunk_rows)
    wrapped = DistributedDataParallel(method) if world > 1 else method
    share = slice(index * BATCH // world, (index + 1) * BATCH // world)
    result = wrapped({"video": videos()[share]}, generator=torch.Generator(), step=0)
    result["loss"].backward()
    gradients = {key: parameter.grad for key, parameter in method.named_parameters()}
    return {"result": {k: v.detach() for k, v in result.items()}, "gradients": gradients}


def one_rank() -> dict:
    return {name: one_step(name, rank(), 2) for name in CONFIGS | CHUNKED}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return ranks.run(Path(__file__), tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("name", CONFIGS | CHUNKED)
def test_two_ranks_equal_one_with_the_whole_batch(two_ranks: list[dict], name: str) -> None:
    with torch.random.fork_rng():
        alone = one_step(name, 0, 1)
    both = [results[name] for results in two_ranks]
    for key, value in alone["result"].items():
        mean = torch.stack([r["result"][key] for r in both]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6, msg=key)
    # Each rank saw the other's negatives: by itself its loss is another one.
    assert len({float(r["result"]["loss"]) for r in both}) == 2
    for key, gradient in alone["gradients"].items():
        assert torch.equal(both[0]["gradients"][key], both[1]["gradients"][key])
        error = (both[0]["gradients"][key] - gradient).norm() / gradient.norm()
        assert error < 1e-4, f"{key}: {error}"


if __name__ == "__main__":
    ranks.serve(one_rank)
