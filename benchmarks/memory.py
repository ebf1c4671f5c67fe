"""Peak memory of DPC's training step: the scores whole and in chunks, activations kept or not.

    python benchmarks/memory.py --output runs/memory.json
    python benchmarks/memory.py --device cuda

A peak is that of one step (forward, backward, Adam) of `DpcMethod`, broken future blocks included,
above what stood before it; each series of growing batches has a fresh process. On Linux's CPU it is
the kernel's own count of resident memory, set back just before the step: oneDNN's scratch space,
which torch's allocator and profiler do not see, is part of it. Malloc is told to give every large
block back when it is freed, or blocks that are free would count. On a GPU it is torch's count of
allocated bytes.

* Scores: an encoder that costs next to nothing (it averages patches) leaves the dense softmax, 48
  rows a clip, as all there is. The exponent is the slope of peak over batch, both as logarithms: 2
  for a square, 1 for what grows with the batch.
* Activations: a 2D3D-R18 on 8 blocks of 5 frames of 128 px; megabytes a clip are the slope between
  batches of 2 and 4. What is left with checkpointing is mostly the first convolution and what
  surrounds it, whose maps are the largest and are all needed at once: deeper networks save more.

What either costs in time is taken in turns in one process, on the CPU as processor time of one
core, without malloc's leash.

Limit: in chunks, an exponent of 1.1.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import part
import torch
import torch.nn.functional as F
from timing import in_turns, limited, ratio_row, stopwatch
from torch import Tensor, nn

from ndavid.methods.dpc import DpcMethod
from ndavid.methods.nda_config import NdaConfig
from ndavid.models.dpc import DpcConfig
from ndavid.models.encoders.base import Encoder

EXPONENT_LIMIT = 1.1
CHUNK_ROWS = 256
BATCHES = {"scores": (16, 32, 64, 128), "activations": (2, 4)}
TIMED = {"scores": 64, "activations": 2}
# glibc then maps each block above 64 KiB by itself, and unmaps it when it is freed.
LEASH = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
MEGABYTE = 2**20


class Series(NamedTuple):
    """Steps that differ in their batch alone."""

    kind: str
    """scores or activations"""
    sparing: bool
    """scores in chunks, or activations checkpointed"""
    encoder: str = "resnet2d3d18"
    """of activations"""

    def build(self, batch: int) -> tuple[DpcMethod, Tensor]:
        """The method, and a batch of clips, uint8."""
        torch.manual_seed(0)
        nda = NdaConfig(spec="stitch")
        if self.kind == "scores":
            config, chunk_rows = DpcConfig(encoder="resnet2d3d10"), CHUNK_ROWS * self.sparing
            method = DpcMethod(config, nda, chunk_rows=chunk_rows)
            method.dpc.encoder = Thumbnails(method.dpc.feature_dim)
            return method, torch.zeros(batch, 3, 40, 32, 32, dtype=torch.uint8)
        config = DpcConfig(encoder=self.encoder, checkpoint_activations=self.sparing)
        return DpcMethod(config, nda), torch.zeros(batch, 3, 40, 128, 128, dtype=torch.uint8)


class Thumbnails(Encoder):
    """Clips (B, 3, T, 32, 32) -> (B, feature_dim, 1, 4, 4): patches averaged, and one matrix."""

    def __init__(self, feature_dim: int) -> None:
        super().__init__("thumbnails")
        self.feature_dim = feature_dim
        self.lift = nn.Conv3d(3, feature_dim, 1)

    def forward(self, clips: Tensor) -> Tensor:
        return self.lift(F.adaptive_avg_pool3d(clips, (1, 4, 4)))


class Step:
    """A training step."""

    def __init__(self, series: Series, batch: int, device: torch.device) -> None:
        method, clips = series.build(batch)
        self.method = method.to(device)
        g = torch.Generator().manual_seed(0)
        self.video = clips.random_(256, generator=g).to(device)
        self.generator = torch.Generator().manual_seed(0)
        self.optimizer = torch.optim.Adam(self.method.parameters())

    def __call__(self, samples: int | None = None) -> None:
        self.optimizer.zero_grad()
        batch = {"video": self.video[:samples]}
        self.method(batch, generator=self.generator, step=0)["loss"].backward()
        self.optimizer.step()


def peaks(series: Series, batches: Sequence[int], device: torch.device) -> list[int]:
    """In this process, which must be fresh: bytes that a step needs above what stood before it."""
    step = Step(series, max(batches), device)
    step(2)  # the optimizer's state, and what libraries allocate once
    return [peak_of(step, batch, device) for batch in batches]


def peak_of(step: Step, batch: int, device: torch.device) -> int:
    """Bytes that a step on so many samples needs above what stands now."""
    step.optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step(batch)
        return torch.cuda.max_memory_allocated(device) - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak becomes what is resident now
    before = resident("VmRSS")
    step(batch)
    return resident("VmHWM") - before


def resident(line: str) -> int:
    """Bytes that Linux counts for this process: VmRSS now, VmHWM at the peak."""
    status = Path("/proc/self/status").read_text().splitlines()
    (found,) = (entry for entry in status if entry.startswith(f"{line}:"))
    return int(found.split()[1]) * 1024


def measure(series: Series, batches: Sequence[int], device: str) -> list[dict[str, Any]]:
    """The peaks of a series, found in a process of its own."""
    command = [sys.executable, __file__, "--device", device]
    command += ["--series", json.dumps(series), "--batches", *map(str, batches)]
    run = subprocess.run(
        command, env=os.environ | LEASH, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise RuntimeError(f"{series}: {run.stderr.strip().splitlines()[-1]}")
    found = json.loads(run.stdout)
    return [
        series._asdict() | {"batch": batch, "bytes": peak}
        for batch, peak in zip(batches, found, strict=True)
    ]


def exponent(rows: Sequence[dict[str, Any]]) -> float:
    """The slope of log peak over log batch, by least squares."""
    x = [math.log(row["batch"]) for row in rows]
    y = [math.log(row["bytes"]) for row in rows]
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return above / sum((a - x_mean) ** 2 for a in x)


def bytes_a_sample(rows: Sequence[dict[str, Any]]) -> float:
    """The slope of the peak between the first and the last batch."""
    first, last = rows[0], rows[-1]
    return (last["bytes"] - first["bytes"]) / (last["batch"] - first["batch"])


def ratios_of(rows: Sequence[dict[str, Any]], times: dict[Series, list[float]]) -> list[dict]:
    """The final table's rows."""

    def of(kind: str, sparing: bool) -> list[dict[str, Any]]:
        return [row for row in rows if row["kind"] == kind and row["sparing"] is sparing]

    whole, chunked = of("scores", False), of("scores", True)
    kept, recomputed = (bytes_a_sample(of("activations", sparing)) for sparing in (False, True))
    return [
        limited("scores whole: exponent of peak in batch", exponent(whole)),
        limited(
            "scores in chunks: exponent of peak in batch", exponent(chunked), None, EXPONENT_LIMIT
        ),
        limited(
            f"scores in chunks / whole, peak, batch {whole[-1]['batch']}",
            chunked[-1]["bytes"] / whole[-1]["bytes"],
            note=f"{megabytes(chunked[-1]['bytes'])} / {megabytes(whole[-1]['bytes'])}",
        ),
        _time_ratio("scores in chunks / whole, time", "scores", times),
        limited(
            "activations checkpointed / kept, peak a clip",
            recomputed / kept,
            note=f"{megabytes(recomputed)} / {megabytes(kept)}",
        ),
        _time_ratio("activations checkpointed / kept, time", "activations", times),
    ]


def _time_ratio(name: str, kind: str, times: dict[Series, list[float]]) -> dict[str, Any]:
    taken = {series.sparing: seconds for series, seconds in times.items() if series.kind == kind}
    return ratio_row(name, taken[True], taken[False], note=f"batch {TIMED[kind]}")


def megabytes(count: float) -> str:
    return f"{count / MEGABYTE:.0f} MiB"


def print_rows(rows: Sequence[dict[str, Any]]) -> None:
    words = {
        ("scores", False): "scores whole",
        ("scores", True): f"scores, {CHUNK_ROWS} rows at a time",
        ("activations", False): "activations kept",
        ("activations", True): "activations checkpointed",
    }
    print(f"{'':30s}{'batch':>7s}{'peak':>12s}{'a clip':>12s}")
    for row in rows:
        name = words[row["kind"], row["sparing"]]
        peak, each = megabytes(row["bytes"]), f"{row['bytes'] / row['batch'] / MEGABYTE:.1f} MiB"
        print(f"{name:30s}{row['batch']:7d}{peak:>12s}{each:>12s}")


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoder", default=Series("", False).encoder, help="of the activations")
    parser.add_argument("--rounds", type=int, default=3, help="of the steps that are timed")
    parser.add_argument("--series", help="for the script itself: which one this process measures")
    parser.add_argument("--batches", type=int, nargs="+", help="of the series")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    if arguments.series:
        series = Series(*json.loads(arguments.series))
        print(json.dumps(peaks(series, arguments.batches, device)))
        return
    every = [Series(k, s, arguments.encoder) for k in BATCHES for s in (False, True)]
    rows = [row for each in every for row in measure(each, BATCHES[each.kind], arguments.device)]
    steps = {series: Step(series, TIMED[series.kind], device) for series in every}
    times = in_turns(steps, arguments.rounds, stopwatch(device), warmup=1)
    print_rows(rows)
    ratios = ratios_of(rows, times)
    part.print_ratios(ratios)
    part.write(arguments.output, ratios, rows=rows, chunk_rows=CHUNK_ROWS)


if __name__ == "__main__":
    main()
