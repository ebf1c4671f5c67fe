"""How well a GPU is used: samples a second, share of its peak, what costs most, waiting for clips.

    python benchmarks/gpu.py --output runs/gpu.json
    python benchmarks/gpu.py --batch 64 --workers 12 --compile

DPC with jigsaw negatives (8x5x128 px), bfloat16 autocast, channels_last, Adam. Without a GPU it
says so and measures nothing; ``--device cpu`` runs it all the same, for a look at the script.

* "step" is a whole step on a batch that lies on the device; its operations are those of
  convolutions and matrix products, counted; the peak is the device's, dense bfloat16, from its data
  sheet, or ``--peak``.
* "largest costs" are the kernels (on the CPU the operators) with the most time in a profile.
* "waiting" is the part of a run's time that `fit` spends waiting for the loader, with prepared
  clips (made up, 128 px). The device may still be busy then: it waits no longer than that.

Limit: waiting 5% of the time.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import part
import torch
from made_up_video import write_prepared
from timing import in_turns, limited, middle, stopwatch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from ndavid.data.clip_sets import open_clips
from ndavid.data.sampling import DpcBlocks
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, VideoDataConfig, collate
from ndavid.engine.memory_format import to_channels_last
from ndavid.engine.optim import OptimConfig, build_optimizer
from ndavid.engine.runner import RunConfig, fit
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.nda_config import NdaConfig
from ndavid.models.dpc import DpcConfig

WAITING_LIMIT = 0.05
WARMUP_STEPS, FED_STEPS = 10, 20

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


def build(encoder: str) -> DpcMethod:
    """DPC with negatives."""
    torch.manual_seed(0)
    return DpcMethod(DpcConfig(encoder=encoder), NdaConfig(spec="jigsaw"))


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


def largest_costs(run: Callable[[], None], device: torch.device, number: int = 3) -> list[dict]:
    """What takes most of a step's time, by kernel or operator, with its share."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as found:
        for _ in range(3):
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
    largest = sorted(costs.items(), key=lambda item: item[1], reverse=True)[:number]
    return [{"name": name, "share": own / whole} for name, own in largest]


def fed(method: nn.Module, batch: int, size: int, workers: int, steps: int) -> dict[str, float]:
    """Trains on prepared clips; means of what the run's records say after warming up."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clips = write_prepared(folder, max(64, 2 * batch), size)
        sampler = DpcBlocks()
        found = open_clips(VideoDataConfig(manifest=str(clips)), sampler)
        transform = train_transform(AugmentConfig(preset="dpc", size=size))
        dataset = ClipDataset(found.records, found.root, sampler, transform)
        run = RunConfig(
            output=str(folder / "run"),
            epochs=1000,
            max_steps=WARMUP_STEPS + steps,
            batch_size=batch,
            num_workers=workers,
            precision="bf16",
            channels_last=True,
            log_every=WARMUP_STEPS,
            resume="never",
        )
        fit(method, dataset, run=run, optim=OptimConfig(), collate=collate)
        lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if record["step"] > WARMUP_STEPS]
    names = ("samples_per_s", "seconds_data", "seconds_compute")
    return {name: sum(record[name] for record in records) / len(records) for name in names}


def report(device: torch.device, arguments: Any) -> tuple[list[dict], dict[str, Any]]:
    """Rows for the table, and everything else."""
    method = build(arguments.encoder).to(device)
    to_channels_last(method)
    if arguments.compile:
        for target in method.compile_targets():
            target.compile()
    run = step_of(method, device, arguments.batch, arguments.size)
    operations = count_flops(
        step_of(build(arguments.encoder).to(device), device, 2, arguments.size)
    )
    operations = operations / 2 * arguments.batch
    times = in_turns({"step": run}, arguments.rounds, stopwatch(device), warmup=5)["step"]
    seconds, spread = middle(times)
    costs = largest_costs(run, device)
    run_speed = fed(method, arguments.batch, arguments.size, arguments.workers, arguments.steps)
    waiting = run_speed["seconds_data"] / (run_speed["seconds_data"] + run_speed["seconds_compute"])
    reached = operations / seconds / 1e12
    found = {
        "batch": arguments.batch,
        "seconds": seconds,
        "samples_per_s": arguments.batch / seconds,
        "tflops": reached,
        "peak_tflops": arguments.peak,
        "largest_costs": costs,
        "fed": run_speed,
        "workers": arguments.workers,
    }
    ratios = [
        limited(
            "waiting for clips / training",
            waiting,
            limit=WAITING_LIMIT,
            note=f"{run_speed['samples_per_s']:.1f} samples/s, {arguments.workers} workers",
        )
    ]
    if arguments.peak:
        note = f"{reached:.1f} TFLOP/s, {arguments.batch / seconds:.1f} samples/s, batch ready"
        peaks = [operations / value / 1e12 / arguments.peak for value in reversed(spread)]
        ratios.append(limited("step / peak bfloat16", reached / arguments.peak, peaks, note=note))
    ratios += [
        limited(f"largest cost {i + 1} / step", cost["share"], note=cost["name"][:80])
        for i, cost in enumerate(costs)
    ]
    return ratios, found


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--encoder", default="resnet2d3d18")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=128, help="pixels")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=FED_STEPS, help="of the run that reads clips")
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
