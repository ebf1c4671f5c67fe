"""A test file as two ranks of a gloo group: run in two processes, what each found brought back.

def one_rank() -> dict: ...               # runs on either rank, inside the group

@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    return ranks.run(Path(__file__), tmp_path_factory.mktemp("ranks"))

if __name__ == "__main__":
    ranks.serve(one_rank)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from forked import Forked

TIMEOUT_SECONDS = 240


def run(script: Path, output: Path) -> list[dict[str, Any]]:
    """Runs ``script`` as ranks 0 and 1; returns what `serve` saved of each."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join(path),
    }
    processes = [
        Forked(script, [str(index), str(output)], cwd=script.parent, env=environment)
        for index in range(2)
    ]
    try:
        texts = ["".join(p.communicate(timeout=TIMEOUT_SECONDS)) for p in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, texts, strict=True):
        assert process.returncode == 0, text
    return [torch.load(output / f"rank{index}.pt", weights_only=True) for index in range(2)]


def serve(one_rank: Callable[[], dict[str, Any]]) -> None:
    """On a rank: joins the group, saves the tensors and numbers that ``one_rank`` returns."""
    index, output = int(sys.argv[1]), Path(sys.argv[2])
    store = f"file://{output / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=index, world_size=2)
    torch.save(one_rank(), output / f"rank{index}.pt")
    dist.destroy_process_group()
