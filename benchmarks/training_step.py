"""Where a training step's time goes: the engine's own loop on real files, with clocks around it.

    python benchmarks/training_step.py --output runs/training_step.json
    python benchmarks/training_step.py --cases dpc --threads 1

`fit` trains for a few steps on prepared clips (made up, 320x240 at first, 128 px short side), with
the engine's, the methods' and the data sets' functions wrapped (spans.py). Shares are of the wall
time from one step's beginning to the next's, the mean over the steps; a span does not count what
lies in another.

* "decode", "augmentation" and "data" (laying out, collating, the loader) are the training
  process's own: there is no worker, so that nothing is hidden. "1 worker" shows what is: there
  "data" is waiting alone.
* "NDA" draws and breaks; "NDA forward" encodes what was broken. Their backward is in "backward",
  and so is DDP's averaging of gradients.
* "gather" is the exchange of features, keys and shuffled clips, "agreements" what the engine's
  loop asks all ranks, waiting for the slower one included; both are 0 on one rank.
* "optimizer" holds the gradient's norm, the update, and MoCo's moving average; "logging" the checks
  for finite numbers and, every fifth step here, the records.

DPC is R18, 8x5x128 px, 2 clips, jigsaw; MoCo R18, 16x112 px, 4 clips of 2 views, frame_shuffle
through the query encoder. Float32, one thread a rank: beside other programs several threads wait
for each other at every operation, and the shares are theirs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import accelerate
import part
import torch
from made_up_video import write_prepared
from spans import REST, Spans
from timing import limited, middle
from torch import nn

import ndavid.collectives
import ndavid.data.video
import ndavid.methods.dpc
import ndavid.methods.moco
import ndavid.models.moco
from ndavid.collectives import rank
from ndavid.data.batch_augment import BatchAugment
from ndavid.data.clip_sets import open_clips
from ndavid.data.config import TrainingDataConfig, ViewsDataConfig
from ndavid.data.sampling import DpcBlocks
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, collate
from ndavid.data.views import open_views
from ndavid.engine import loop, updates
from ndavid.engine.loader import KeyedDataset
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import seeded
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.moco import MocoMethod
from ndavid.methods.nda_config import MocoNdaConfig, NdaConfig
from ndavid.models.dpc import DpcConfig
from ndavid.models.moco import MocoConfig

WARMUP, STEPS, LOG_EVERY = 1, 4, 5
SHORT_SIDE, CLIPS = 128, 64

PARTS = (
    *("decode", "augmentation", "data", "host to device", "NDA", "NDA forward", "forward"),
    *("backward", "gather", "agreements", "optimizer", "logging", REST),
)


class Case(NamedTuple):
    """What is trained, and on how many processes."""

    build: Callable[[str, str], tuple[nn.Module, KeyedDataset]]
    """(manifest, encoder) -> method, dataset"""
    batch: int
    ranks: int = 1
    workers: int = 0


def dpc(manifest: str, encoder: str) -> tuple[nn.Module, KeyedDataset]:
    """DPC with jigsaw negatives, as the UCF101 configs have it."""
    sampler = DpcBlocks()
    found = open_clips(TrainingDataConfig(root=manifest), sampler)
    transform = train_transform(AugmentConfig(preset="dpc", size=128))
    method = DpcMethod(DpcConfig(encoder=encoder), NdaConfig(spec="jigsaw"))
    return method, ClipDataset(found.records, found.root, sampler, transform)


def moco(manifest: str, encoder: str) -> tuple[nn.Module, KeyedDataset]:
    """MoCo on clips with shuffled frames as negatives, as the UCF101 configs have it."""
    data = ViewsDataConfig(root=manifest, frame_stride=1)
    views = open_views(data, AugmentConfig(preset="moco_v2", size=112), 2)
    nda = MocoNdaConfig(spec="frame_shuffle", encoder="query", norm="own")
    return MocoMethod(MocoConfig(encoder=encoder, queue_size=4096), nda), views.dataset


CASES = {
    "dpc": Case(dpc, 2),
    "dpc, 1 worker": Case(dpc, 2, workers=1),
    "dpc, 2 ranks": Case(dpc, 2, ranks=2),
    "moco": Case(moco, 4),
    "moco, 2 ranks": Case(moco, 4, ranks=2),
}


def watch(spans: Spans) -> None:
    """Puts clocks around what a step consists of."""
    spans.wrap(loop._Loop, "_fetch", "data", step_begins=True)
    spans.wrap(ndavid.data.video._RecordedClips, "_read", "decode")
    spans.wrap(ClipDataset, "_clip", "augmentation")
    spans.wrap(BatchAugment, "__call__", "augmentation")
    spans.wrap(updates, "to_device", "host to device")
    spans.wrap(updates.Updates, "_forward", "forward")
    spans.wrap(accelerate.Accelerator, "backward", "backward")
    watch_negatives(spans)
    watch_ranks(spans)
    for owner, name in (
        (updates.Updates, "_gradient_norm"),
        (accelerate.optimizer.AcceleratedOptimizer, "step"),
        (accelerate.optimizer.AcceleratedOptimizer, "zero_grad"),
        (ndavid.models.moco.MoCo, "update_key_encoder"),
    ):
        spans.wrap(owner, name, "optimizer")
    for owner, name in (
        (loop._Loop, "_flush"),
        (loop._Loop, "_check_finite"),
        (loop.FiniteWatch, "note"),
        (loop.StepRecords, "note"),
        (loop.Tracker, "advance"),
    ):
        spans.wrap(owner, name, "logging")


def watch_negatives(spans: Spans) -> None:
    """Breaking, and encoding what was broken, in both methods."""
    methods = ndavid.methods
    for name in ("break_blocks", "without_repeats"):
        spans.wrap(methods.dpc, name, "NDA")
    spans.wrap(DpcMethod, "_used_cells", "NDA")
    spans.wrap(DpcMethod, "_encode_broken", "NDA forward")
    spans.wrap(MocoMethod, "_break", "NDA")
    spans.wrap_surroundings(methods.moco, "without_stat_updates", "NDA forward")


def watch_ranks(spans: Spans) -> None:
    """What ranks send each other, but for DDP's gradients, which travel beside the backward."""
    spans.wrap(ndavid.collectives, "_all_gather", "gather")
    spans.wrap(ndavid.collectives._GatherWithGrad, "backward", "gather")
    spans.wrap(ndavid.models.moco, "broadcast_from_first", "gather")
    spans.wrap(loop, "agree", "agreements")


def train(case: Case, manifest: str, encoder: str, output: Path) -> list[dict[str, float]]:
    """Seconds by part, of every step but those that warm up and the last, which saves."""
    with seeded(0, "init"):
        method, dataset = case.build(manifest, encoder)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = loop.RunConfig(
        output=str(output),
        max_steps=WARMUP + STEPS + 1,
        epochs=1000,
        batch_size=case.batch,
        num_workers=case.workers,
        log_every=LOG_EVERY,
        resume="never",
    )
    spans = Spans(device)
    watch(spans)
    with spans:
        loop.fit(method, dataset, run=run, optim=OptimConfig(), collate=collate)
    # Before the first step there is a stretch of setting up.
    return [dict(step) for step in spans.steps[1 + WARMUP : 1 + WARMUP + STEPS]]


def start(name: str, manifest: str, encoder: str, threads: int, folder: Path) -> list[dict]:
    """Runs a case in processes of its own; returns rank 0's steps."""
    case = CASES[name]
    found = folder / "steps.json"
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={case.ranks}"]
    command = [
        *(sys.executable, *(launcher if case.ranks > 1 else [])),
        *(__file__, "--alone", name, "--manifest", manifest, "--encoder", encoder),
        *("--threads", str(threads if case.ranks == 1 else 1), "--output", str(found)),
    ]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads(found.read_text())["steps"]


def rows_of(name: str, steps: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Mean seconds and shares of a step's parts, in the order of `PARTS`."""
    means = {p: sum(step.get(p, 0.0) for step in steps) / len(steps) for p in PARTS}
    whole = sum(means.values())
    totals = [sum(step.values()) for step in steps]
    return [
        {
            "case": name,
            "part": label,
            "seconds": seconds,
            "share": seconds / whole,
            "spread": middle(
                [step.get(label, 0.0) / total for step, total in zip(steps, totals, strict=True)]
            )[1],
        }
        for label, seconds in means.items()
    ]


def print_rows(name: str, rows: list[dict[str, Any]]) -> None:
    whole = sum(row["seconds"] for row in rows)
    print(f"\n{name}: {whole:.3f} s a step")
    for row in rows:
        print(f"  {row['part']:16s}{row['seconds'] * 1e3:10.1f} ms{row['share']:8.1%}")


def ratios_of(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shares; those under a tenth of a percent are left to the JSON."""
    return [
        limited(
            f"{row['case']}: {row['part']} / step",
            row["share"],
            row["spread"],
            note=f"{row['seconds'] * 1e3:.0f} ms",
        )
        for row in rows
        if row["share"] >= 0.001
    ]


def world_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a step on two ranks takes beside one on one, each rank with the same batch."""
    whole: dict[str, float] = {}
    for row in rows:
        whole[row["case"]] = whole.get(row["case"], 0.0) + row["seconds"]
    return [
        limited(
            f"{alone}: step on 2 ranks / on 1",
            seconds / whole[alone],
            note=f"{seconds:.2f} s, one core a rank",
        )
        for name, seconds in whole.items()
        if (alone := name.removesuffix(", 2 ranks")) != name and alone in whole
    ]


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--encoder", default="resnet2d3d18")
    parser.add_argument("--manifest", default="", help="prepared videos; default: made up")
    parser.add_argument("--threads", type=int, default=1, help="of a case on one rank")
    parser.add_argument("--alone", choices=list(CASES), help="this case, in this process")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.alone:
            case = CASES[arguments.alone]
            steps = train(case, arguments.manifest, arguments.encoder, folder / f"run{rank()}")
            if rank() == 0:
                arguments.output.write_text(json.dumps({"steps": steps}))
            return
        manifest = arguments.manifest or str(write_prepared(folder, CLIPS, SHORT_SIDE))
        rows = []
        for case_name in arguments.cases:
            steps = start(case_name, manifest, arguments.encoder, arguments.threads, folder)
            found = rows_of(case_name, steps)
            print_rows(case_name, found)
            rows += found
    ratios = world_ratios(rows) + ratios_of(rows)
    part.write(arguments.output, ratios, threads=arguments.threads, rows=rows)


if __name__ == "__main__":
    main()
