"""Gathering over two real gloo processes. Run as a script, this file is one of the two ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from ndavid.collectives import gather_with_grad, gather_without_grad, rank, world_size

TIMEOUT_SECONDS = 120


def run_two_ranks(script: Path, output: Path) -> list[dict]:
    """Runs ``script`` as rank 0 and 1 of a gloo group; returns what each saved to its file."""
    processes = []
    for index in range(2):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, str(script), str(index), str(output)]
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        )
    try:
        texts = [p.communicate(timeout=TIMEOUT_SECONDS)[0].decode() for p in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text
    return [torch.load(output / f"rank{index}.pt", weights_only=True) for index in range(2)]


def one_rank(index: int, output: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{output / 'store'}", rank=index, world_size=2
    )
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
    torch.save(result, output / f"rank{index}.pt")
    dist.destroy_process_group()


def test_one_process_is_the_identity() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert (rank(), world_size()) == (0, 1)
    assert gather_with_grad(x) is x
    assert not gather_without_grad(x).requires_grad


def test_two_ranks_gather_values_and_gradients(tmp_path: Path) -> None:
    results = run_two_ranks(Path(__file__), tmp_path)
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


if __name__ == "__main__":
    one_rank(int(sys.argv[1]), Path(sys.argv[2]))
