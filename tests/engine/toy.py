"""A small training run to kill, starve and feed with NaN. A script, and a module for fixtures.

python tests/engine/toy.py --run.output DIR --run.epochs 3 --pause 0.02
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndavid.collectives import gather_without_grad, rank
from ndavid.config import parse, run_main
from ndavid.engine.hooks import Hook, HookContext
from ndavid.engine.loop import RunResult, fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import seeded
from ndavid.engine.run_config import RunConfig
from ndavid.errors import DataError

CLASSES = 4


@dataclass(kw_only=True)
class ToyConfig:
    """A run of a few seconds."""

    run: RunConfig = field(
        default_factory=lambda: RunConfig(
            epochs=3,
            batch_size=4,
            num_workers=0,
            save_every_steps=3,
            log_every=1,
            device="cpu",
        )
    )
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.01, milestones=[1, 2]))
    samples: int = 43
    plain: bool = False
    """no dropout, batch norm or random draws: the loss of a batch is the mean over its samples"""
    pause: float = 0.0
    """seconds each step takes longer"""
    nan_step: int = -1
    """0-based step at which the loss is NaN"""
    nan_rank: int = 0
    bad: list[int] = field(default_factory=list)
    damaged: list[int] = field(default_factory=list)
    """clips that cannot be decoded"""
    broken: list[int] = field(default_factory=list)
    """clips that raise"""


class ToyMethod(nn.Module):
    """A 3-D conv net with everything that could break an exact resume."""

    queue: Tensor
    position: Tensor

    def __init__(self, config: ToyConfig) -> None:
        super().__init__()
        self.config = config
        plain = config.plain
        self.encoder = nn.Sequential(
            nn.Conv3d(3, 8, 3),
            nn.Identity() if plain else nn.BatchNorm3d(8),
            nn.GELU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Identity() if plain else nn.Dropout(0.3),
        )
        self.head = nn.Linear(8, CLASSES)
        self.register_buffer("queue", torch.zeros(16, 8))
        self.register_buffer("position", torch.zeros((), dtype=torch.long))

    def forward(
        self, batch: dict[str, Tensor], *, generator: torch.Generator, step: int
    ) -> dict[str, Tensor]:
        if self.config.pause:
            time.sleep(self.config.pause)
        video = batch["video"].float() / 64 - 1.5
        if not self.config.plain:
            video = video + 0.1 * torch.randn(video.shape, generator=generator).to(video.device)
        features = self.encoder(video)
        self._enqueue(gather_without_grad(features))
        logits = self.head(features)
        if not self.config.plain:
            logits = logits + features @ self.queue.mean(0).unsqueeze(1)
        loss = F.cross_entropy(logits, batch["label"])
        if step == self.config.nan_step and rank() == self.config.nan_rank:
            loss = loss * float("nan")
        accuracy = (logits.argmax(1) == batch["label"]).float().mean()
        return {"loss": loss, "top1": accuracy, "brightness": video.detach().mean()}

    @torch.no_grad()
    def _enqueue(self, keys: Tensor) -> None:
        places = (self.position + torch.arange(len(keys), device=keys.device)) % len(self.queue)
        self.queue[places] = keys.to(self.queue.dtype)
        self.position += len(keys)


class ToyDataset:
    """Clips of noise around a brightness that tells the class; a pure function of the key."""

    def __init__(self, config: ToyConfig) -> None:
        self.config = config
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.config.samples

    def __getitem__(self, key: tuple[int, int]) -> dict[str, object]:
        index, seed = key
        self.read.append(index)
        if index in self.config.broken:
            raise DataError(f"clip_{index}.mp4", "every clip after it is bad too")
        label = index % CLASSES
        noise = torch.Generator().manual_seed(index if self.config.plain else seed)
        video = torch.randint(0, 100, (3, 4, 8, 8), generator=noise) + 40 * label
        bad = [(f"clip_{index}.mp4", "zero bytes")] if index in self.config.bad else []
        sample = {"video": video.to(torch.uint8), "label": label, "index": index, "bad": bad}
        if index in self.config.damaged:
            sample["damaged"] = [(f"clip_{index}.mp4", "2 of its 9 frames are damaged")]
        return sample


def collate(samples: list[dict[str, object]]) -> dict[str, object]:
    batch: dict[str, object] = torch.utils.data.default_collate(
        [{k: v for k, v in s.items() if k not in ("bad", "damaged")} for s in samples]
    )
    batch["bad"] = [bad for sample in samples for bad in sample["bad"]]  # type: ignore[attr-defined]
    if damaged := [clip for sample in samples for clip in sample.get("damaged", ())]:
        batch["damaged"] = damaged
    return batch


def validate(end: HookContext) -> dict[str, float]:
    torch.rand(3)  # a hook may use the default generator as it likes
    return {"weight": float(sum(p.detach().abs().sum() for p in end.method.parameters()))}


def train(
    config: ToyConfig, dataset: ToyDataset | None = None, hook: Hook = validate
) -> tuple[RunResult, ToyMethod]:
    with seeded(config.run.seed, "init"):
        method = ToyMethod(config)
    return train_method(method, config, dataset, hook), method


def train_method(
    method: nn.Module,
    config: ToyConfig,
    dataset: ToyDataset | None = None,
    hook: Hook = validate,
) -> RunResult:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the net is too small for more to help
    try:
        return fit(
            method,
            dataset or ToyDataset(config),
            config=config,
            run=config.run,
            optim=config.optim,
            collate=collate,
            on_epoch_end=hook,
        )
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    config = parse(ToyConfig)
    print(f"pid {os.getpid()}", flush=True)
    result, _ = train(config)
    print(f"done {result.steps}", flush=True)


if __name__ == "__main__":
    run_main(main)
