"""Trains where /dev/shm is what the caller mounted; says in JSON how each run ended."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import get_worker_info

from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.run_config import RunConfig
from ndavid.errors import NdavidError
from ndavid.evaluation.classify import per_item

MEGABYTE = 1 << 20


class Sum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: dict[str, Tensor], **_: object) -> dict[str, Tensor]:
        return {"loss": self.weight * batch["x"].float().mean()}


class Pictures:
    """A megabyte each; the first may be small, so that an estimate from it is wrong.

    ``hidden`` ones are small where no data loading process reads them.
    """

    def __init__(self, first: int = MEGABYTE, hidden: bool = False) -> None:
        self.first = first
        self.hidden = hidden

    def __len__(self) -> int:
        return 32

    def __getitem__(self, key: tuple[int, int] | int) -> dict[str, object]:
        index = key if isinstance(key, int) else key[0]
        size = self.first if index == 0 else MEGABYTE
        if self.hidden and get_worker_info() is None:
            raise OSError("not to be read here")
        return {"x": torch.ones(size, dtype=torch.uint8), "index": index}


def collate(samples: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {"x": torch.cat([sample["x"] for sample in samples])}


def collate_test(samples: list[dict[str, Tensor]]) -> dict[str, object]:
    pictures = torch.stack([sample["x"] for sample in samples])
    shape = (len(samples), 1, 1, 1, 1024, 1024)
    index = torch.tensor([sample["index"] for sample in samples])
    return {"video": pictures.view(shape), "label": index, "index": index, "bad": []}


def train(output: Path, workers: int, first: int = MEGABYTE) -> None:
    run = RunConfig(
        output=str(output), batch_size=4, num_workers=workers, max_steps=3, device="cpu"
    )
    fit(Sum(), Pictures(first), run=run, optim=OptimConfig(), collate=collate)


def evaluate(hidden: bool) -> None:
    import ndavid.evaluation.classify as classify

    classify.collate = collate_test  # type: ignore[assignment]
    per_item(
        lambda views: views.flatten(1).float().mean(1, keepdim=True),
        Pictures(hidden=hidden),  # type: ignore[arg-type]
        device=torch.device("cpu"),
        views_per_batch=16,
        num_workers=2,
    )


def main() -> None:
    output = Path(sys.argv[1])
    ended = {}
    for name, call in {
        "estimated": lambda: train(output / "a", 2),
        "met": lambda: train(output / "b", 2, first=1),
        "without": lambda: train(output / "c", 0),
        "evaluation": lambda: evaluate(True),
        "evaluation_estimated": lambda: evaluate(False),
    }.items():
        try:
            call()
            ended[name] = "well"
        except NdavidError as error:
            ended[name] = f"{type(error).__name__}: {error}"
    print(json.dumps(ended))


if __name__ == "__main__":
    main()
