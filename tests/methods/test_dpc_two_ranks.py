"""Two ranks with batch B equal one with 2B, in loss and in gradients. This file is also the rank.

Batch norm is in eval mode: its batch statistics differ between the two by nature.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from ndavid.methods.dpc import DpcMethod
from ndavid.methods.nda_config import NdaConfig
from ndavid.models.dpc import DpcConfig
from ndavid.nda.base import NegativeAugmentation

TIMEOUT_SECONDS = 180
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


class SwapLeftHalves(NegativeAugmentation):
    """Clips 0 and 1 swap their left halves, clips 2 and 3, ...: the same draw however dealt."""

    name: ClassVar[str] = "swap_left_halves"
    needs_partner: ClassVar[bool] = True
    acts_on: ClassVar[frozenset[str]] = frozenset({"sample"})

    def _draw(self, shape, generator) -> dict[str, Tensor]:
        return {"partner": torch.arange(shape[0]) ^ 1}

    def _apply(self, x: Tensor, params: dict[str, Tensor]) -> Tensor:
        half = x.shape[-1] // 2
        return torch.cat([x[params["partner"]][..., :half], x[..., half:]], dim=-1)

    def changed_mask(self, params: dict[str, Tensor], shape) -> Tensor:
        mask = torch.zeros(shape[0], *shape[2:], dtype=torch.bool)
        mask[..., : shape[-1] // 2] = True
        return mask


def build(config: NdaConfig) -> DpcMethod:
    torch.manual_seed(0)
    dpc = DpcConfig(encoder="resnet2d3d10", num_blocks=3, block_len=3, pred_steps=1, dropout=0.0)
    method = DpcMethod(dpc, config).eval()
    if config.spec:
        method.operation = SwapLeftHalves()
    return method


def videos() -> Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(256, (BATCH, 3, 9, 64, 64), generator=g, dtype=torch.uint8)


def one_step(name: str, index: int, ranks: int) -> dict:
    """Loss, gradients and metrics of one rank; with DDP around the method on more than one."""
    method = build(CONFIGS[name])
    wrapped = DistributedDataParallel(method) if ranks > 1 else method
    share = slice(index * BATCH // ranks, (index + 1) * BATCH // ranks)
    result = wrapped({"video": videos()[share]}, generator=torch.Generator(), step=0)
    result["loss"].backward()
    gradients = {key: parameter.grad for key, parameter in method.named_parameters()}
    return {"result": {k: v.detach() for k, v in result.items()}, "gradients": gradients}


def one_rank(index: int, output: Path) -> None:
    store = f"file://{output / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=index, world_size=2)
    torch.save({name: one_step(name, index, 2) for name in CONFIGS}, output / f"rank{index}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    output = tmp_path_factory.mktemp("ranks")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(index), str(output)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for index in range(2)
    ]
    try:
        texts = [p.communicate(timeout=TIMEOUT_SECONDS)[0].decode() for p in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text
    return [torch.load(output / f"rank{index}.pt", weights_only=True) for index in range(2)]


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_equal_one_with_the_whole_batch(two_ranks: list[dict], name: str) -> None:
    with torch.random.fork_rng():
        alone = one_step(name, 0, 1)
    ranks = [results[name] for results in two_ranks]
    for key, value in alone["result"].items():
        mean = torch.stack([r["result"][key] for r in ranks]).mean()
        torch.testing.assert_close(mean, value, rtol=1e-4, atol=1e-6, msg=key)
    # Each rank saw the other's negatives: by itself its loss is another one.
    assert len({float(r["result"]["loss"]) for r in ranks}) == 2
    for key, gradient in alone["gradients"].items():
        assert torch.equal(ranks[0]["gradients"][key], ranks[1]["gradients"][key])
        error = (ranks[0]["gradients"][key] - gradient).norm() / gradient.norm()
        assert error < 1e-4, f"{key}: {error}"


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), Path(sys.argv[2]))
