"""What each of two ranks sees, written as JSON for tests/test_distributed.py.

torchrun --nproc_per_node 2 tests/engine/two_ranks.py --run.output DIR
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import toy
from torch import nn

from ndavid.collectives import rank
from ndavid.config import parse, run_main
from ndavid.engine.distributed import agree, from_main, gather_objects, mean_over_ranks
from ndavid.engine.hooks import HookContext
from ndavid.errors import NdavidError


def main() -> None:
    base = parse(toy.ToyConfig)
    root = Path(base.run.output)
    seen: dict[str, Any] = {}

    def attempt(name: str, change: Callable[[toy.ToyConfig], None]) -> None:
        config = parse(toy.ToyConfig)
        config.run.output = str(root / name)
        change(config)
        at_epoch_ends: list[Any] = []

        def hook(end: HookContext) -> dict[str, float]:
            averaged = None if end.ema is None else as_lists(end.ema)
            at_epoch_ends.append([as_lists(end.method), averaged])
            return toy.validate(end)

        try:
            result, method = toy.train(config, hook=hook)
        except (NdavidError, OSError) as error:
            seen[name] = {"error": type(error).__name__, "message": str(error)}
            return
        seen[name] = {
            "steps": result.steps,
            "bad_clips": result.bad_clips,
            "last_metrics": result.last_metrics,
            "head": method.head.weight.detach().tolist(),
            "queue": method.queue.tolist(),
            "state": as_lists(method),
            "at_epoch_ends": at_epoch_ends,
        }

    attempt("plain", plain)
    attempt("accumulated", accumulated)
    attempt("random", lambda config: None)
    attempt("averaged", averaged)
    attempt("nan_on_one", nan_on_one)
    attempt("bad", bad)
    attempt("too_bad", too_bad)
    attempt("full_disk", full_disk)
    attempt("broken_on_one", broken_on_one)
    attempt("no_room_for_records", no_room_for_records)
    seen["agree"] = agree(rank(), 5 - rank())
    seen["from_main"] = from_main({"rank": rank()})
    seen["gathered"] = gather_objects(f"rank {rank()}")
    seen["mean"] = mean_over_ranks({"a": float(rank()), "b": 2.0})
    (root / f"rank{rank()}.json").write_text(json.dumps(seen))


def as_lists(module: nn.Module) -> dict[str, Any]:
    return {name: value.tolist() for name, value in module.state_dict().items()}


def averaged(config: toy.ToyConfig) -> None:
    # The last epoch is cut short: the run ends without a hook.
    config.run.ema_decay, config.run.max_steps, config.run.log_every = 0.9, 13, 4


def plain(config: toy.ToyConfig) -> None:
    config.plain = True


def accumulated(config: toy.ToyConfig) -> None:
    config.plain = True
    config.run.batch_size, config.optim.accumulate_steps = 2, 2


def nan_on_one(config: toy.ToyConfig) -> None:
    config.nan_step, config.nan_rank = 7, 1


def bad(config: toy.ToyConfig) -> None:
    config.bad, config.run.max_bad_fraction = [3, 5, 8], 0.1


def too_bad(config: toy.ToyConfig) -> None:
    config.bad, config.run.max_bad_fraction = [3], 0.01


def full_disk(config: toy.ToyConfig) -> None:
    # A file where the folder of checkpoints should be: only rank 0 meets it.
    if rank() == 0:
        folder = Path(config.run.output)
        folder.mkdir(parents=True)
        (folder / "checkpoints").write_text("")


def broken_on_one(config: toy.ToyConfig) -> None:
    config.broken, config.run.log_every = [3], 100


def no_room_for_records(config: toy.ToyConfig) -> None:
    # Only rank 0 writes.
    if rank() == 0:
        (Path(config.run.output) / "bad_clips.csv").mkdir(parents=True)
    config.bad, config.run.max_bad_fraction = [3], 0.1


if __name__ == "__main__":
    run_main(main)
