"""How well a GPU is used: samples a second, share of its peak, what costs most, waiting for clips.

    python benchmarks/gpu.py --output runs/gpu.json
    python benchmarks/gpu.py --batch 64 --workers 12 --compile

DPC with jigsaw negatives (8x5x128 px), bfloat16 autocast, channels_last, Adam. Without a GPU it
says so and measures nothing; ``--device cpu`` runs it all the same, for a look at the script.

* "step" is a whole step on a batch that lies on the device; its operations are those of
  convolutions and matrix products, counted; the peak is the device's, dense bfloat16, from its data
  sheet, or ``--peak``.
* "kernels" is the part of a step in which the device computes, from a profile's sum: what is left
  of 1 it waits for the next kernel.
* "largest costs" are the kernels (on the CPU the operators) with the most time in that profile.
* "NDA step" is that step, "plain step" the same without negatives.
* "waiting" is the part of a run's time that `fit` spends waiting for the loader, with prepared
  clips (made up, 128 px). The device may still be busy then: it waits no longer than that. Batches
  that were ready at the start last so long that a short run need not wait for a slow loader.
* So "run / loader alone" is what decides: samples a second of that run against those of the same
  loader with nothing else to do. Above 0.95, the limit, the loader is what bounds the run, or would
  in a longer one.

Limits: waiting 5% of the time; the run at 0.95 of the loader; NDA 1.45 plain steps.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import part
import torch
from made_up_video import write_prepared
from timing import in_turns, limited, middle, ratio_row, stopwatch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ndavid.data.clip_sets import open_clips
from ndavid.data.config import TrainingDataConfig
from ndavid.data.sampling import DpcBlocks
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, collate
from ndavid.engine.loader import build_loader, build_sampler
from ndavid.engine.loader import close as close_loader
from ndavid.engine.loop import fit
from ndavid.engine.memory_format import to_channels_last
from ndavid.engine.optim import OptimConfig, build_optimizer
from ndavid.engine.run_config import RunConfig
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.nda_config import NdaConfig
from ndavid.models.dpc import DpcConfig

WAITING_LIMIT, LOADER_LIMIT, NDA_LIMIT = 0.05, 0.95, 1.45
WARMUP_STEPS, FED_STEPS = 10, 40
PREFETCHED = 2  # batches that each of DataLoader's workers makes ahead
SPEC = "jigsaw"

# Dense bfloat16 with float32 sums, 10^12 operations a second, from the makers' data sheets.
PEAK_TFLOPS = {
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 4090": 165.0,
    "RTX 3090": 71.0,
}


def peak_of(name: str) -> float | None:
    """The peak of a device by its name, TFLOP/s; None where it is not in the table."""
    return next((peak for key, peak in PEAK_TFLOPS.items() if key in name), None)


def build(encoder: str, spec: str = SPEC) -> DpcMethod:
    """DPC with these negatives."""
    torch.manual_seed(0)
    return DpcMethod(DpcConfig(encoder=encoder), NdaConfig(spec=spec))


def step_of(method: nn.Module, device: torch.device, batch: int, size: int) -> Callable[[], None]:
    """A whole step on clips that are there already."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, 40, size, size)
    video = torch.randint(256, shape, generator=generator).to(torch.uint8).to(device)
    optimizer = build_optimizer(method, OptimConfig())

    def run() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = method({"video": video}, generator=generator, step=0)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def count_flops(run: Callable[[], None]) -> int:
    """Operations in convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def kernels_of(run: Callable[[], None], device: torch.device) -> tuple[float, list[dict]]:
    """Seconds of a step in kernels (on the CPU operators), and each one's share, largest first."""
    on_gpu, steps = device.type == "cuda", 3
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        for _ in range(steps):
            run()
        if on_gpu:
            torch.cuda.synchronize(device)
    costs: dict[str, float] = {}
    for event in found.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        # Operators count their kernels' time too, and so do annotations: kernels alone are wanted.
        kernel = event.device_type.name == "CUDA" and not event.is_user_annotation
        if own > 0 and (kernel or not on_gpu):
            costs[event.key] = costs.get(event.key, 0.0) + own
    whole = sum(costs.values())
    largest = sorted(costs.items(), key=lambda item: item[1], reverse=True)
    microseconds = 1e-6
    return whole / steps * microseconds, [{"name": n, "share": own / whole} for n, own in largest]


def fed(method: nn.Module, arguments: Any) -> dict[str, float]:
    """Trains on prepared clips; means of what its records say after warming up, and the loader's.

    "loader_samples_per_s" are the samples a second of the same loader alone.
    """
    batch, size, workers = arguments.batch, arguments.size, arguments.workers
    # What the workers made while cuDNN tried its algorithms says nothing of their speed.
    warmup = WARMUP_STEPS + PREFETCHED * workers
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        # One epoch: each begins with empty hands, and a short one has no batch for some workers.
        clips = write_prepared(folder, batch * (warmup + arguments.steps), size)
        sampler = DpcBlocks()
        found = open_clips(TrainingDataConfig(root=str(clips)), sampler)
        transform = train_transform(AugmentConfig(preset="dpc", size=size))
        dataset = ClipDataset(found.records, found.root, sampler, transform)
        run = RunConfig(
            output=str(folder / "run"),
            epochs=1,
            batch_size=batch,
            num_workers=workers,
            precision="bf16",
            channels_last=True,
            log_every=5,
            resume="never",
        )
        fit(method, dataset, run=run, optim=OptimConfig(), collate=collate)
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
        alone = loader_alone(dataset, batch, workers)
    records = [record for record in map(json.loads, lines) if record["step"] > warmup]
    names = ("samples_per_s", "seconds_data", "seconds_compute")
    found = {name: sum(record[name] for record in records) / len(records) for name in names}
    return found | {"loader_samples_per_s": alone}


def loader_alone(dataset: ClipDataset, batch: int, workers: int) -> float:
    """Samples a second of a loader of which nothing is asked but batches, once it is under way."""
    sampler = build_sampler(dataset, batch, seed=0, rank=0, world_size=1, num_workers=workers)
    loader = build_loader(dataset, sampler, collate, num_workers=workers)
    try:
        batches = iter(loader)
        for _ in range(PREFETCHED * workers + 1):
            next(batches)
        start = time.perf_counter()
        taken = sum(1 for _ in batches)
        return taken * batch / (time.perf_counter() - start)
    finally:
        close_loader(loader)


def report(device: torch.device, arguments: Any) -> tuple[list[dict], dict[str, Any]]:
    """Rows for the table, and everything else."""
    # As `fit` has it.
    torch.backends.cudnn.benchmark = True
    runs = {}
    for name, spec in (("NDA", SPEC), ("plain", "")):
        method = build(arguments.encoder, spec).to(device)
        to_channels_last(method)
        if arguments.compile:
            for target in method.compile_targets():
                target.compile()
        runs[name] = step_of(method, device, arguments.batch, arguments.size)
    times = in_turns(runs, arguments.rounds, stopwatch(device), warmup=5)
    seconds, spread = middle(times["NDA"])
    two = step_of(build(arguments.encoder).to(device), device, 2, arguments.size)
    operations = count_flops(two) / 2 * arguments.batch
    in_kernels, costs = kernels_of(runs["NDA"], device)
    ready = arguments.batch / seconds
    reached = operations / seconds / 1e12
    found: dict[str, Any] = {
        "batch": arguments.batch,
        "size": arguments.size,
        "compiled": arguments.compile,
        "seconds": seconds,
        "seconds_in_kernels": in_kernels,
        "samples_per_s": ready,
        "tflops": reached,
        "peak_tflops": arguments.peak,
        "largest_costs": costs[:15],
        "workers": arguments.workers,
    }
    note = f"{reached:.1f} TFLOP/s, {ready:.1f} samples/s, batch {arguments.batch} ready"
    ratios = []
    if arguments.peak:
        peaks = [operations / value / 1e12 / arguments.peak for value in reversed(spread)]
        ratios.append(limited("step / peak bfloat16", reached / arguments.peak, peaks, note=note))
    ratios += [
        ratio_row("NDA step / plain step", times["NDA"], times["plain"], NDA_LIMIT, note=note),
        limited("kernels / step", in_kernels / seconds, note=f"{1e3 * seconds:.1f} ms a step"),
    ]
    ratios += [
        limited(f"largest cost {i + 1} / kernels", cost["share"], note=cost["name"][:80])
        for i, cost in enumerate(costs[:3])
    ]
    if arguments.steps:
        speed = fed(build(arguments.encoder), arguments)
        found["fed"] = speed
        ratios += rows_of_feeding(speed, ready, arguments.workers)
    return ratios, found


def rows_of_feeding(speed: dict[str, float], ready: float, workers: int) -> list[dict]:
    """Whether the loader keeps up with a device that takes ``ready`` samples a second."""
    waiting = speed["seconds_data"] / (speed["seconds_data"] + speed["seconds_compute"])
    made, alone = speed["samples_per_s"], speed["loader_samples_per_s"]
    note = f"{made:.1f} samples/s, {workers} workers; {ready:.1f} with the batch ready"
    of_loader = f"{alone:.1f} samples/s, {alone / workers:.1f} a worker"
    if made / alone > LOADER_LIMIT:
        of_loader += ": decoding and augmentation bound the run"
    return [
        limited("waiting for clips / training", waiting, limit=WAITING_LIMIT, note=note),
        limited("run / loader alone", made / alone, limit=LOADER_LIMIT, note=of_loader),
    ]


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--encoder", default="resnet2d3d18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument(
        "--steps", type=int, default=FED_STEPS, help="of the run that reads clips; 0: no such run"
    )
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--peak", type=float, help="TFLOP/s; default: by the device's name")
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        part.write(arguments.output, [limited("no GPU here", None, note="nothing was measured")])
        return
    if device.type == "cuda" and not arguments.peak:
        arguments.peak = peak_of(torch.cuda.get_device_name(device))
    ratios, found = report(device, arguments)
    part.print_ratios(ratios)
    part.write(arguments.output, ratios, device=str(device), found=found)


if __name__ == "__main__":
    main()
