"""How long each negative augmentation takes, beside a copy of the batch.

    python benchmarks/nda_ops.py --output runs/nda_ops.json
    python benchmarks/nda_ops.py --device cuda

Prints one row per op and shape: the median time of ``op(x, generator=g)``, drawing included, and
its ratio to ``x.clone()`` in the same run. Clone and ops take turns, so that whatever else the
machine does falls on both; "fastest" is the ratio of the fastest runs, for a machine that is busy
all the same. On a GPU the time is that of the kernels of ``op.apply`` with the parameters already
there: drawing happens on the CPU meanwhile.

Limits: on the CPU, ops that move content 3x and ops that mix or overwrite 4x; on a GPU 2x. Ops
above their limit are marked, not hidden.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from ndavid import nda

SHAPES = ((64, 3, 32, 32), (64, 3, 128, 128), (8, 3, 16, 112, 112))
MOVING = ("jigsaw", "frame_shuffle", "temporal_jigsaw", "frame_repeat", "reverse", "cuboid_jigsaw")
MOVE_LIMIT, MIX_LIMIT, GPU_LIMIT = 3.0, 4.0, 2.0


def seconds_on_cpu(run: Callable[[], Tensor]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def seconds_on_gpu(run: Callable[[], Tensor]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    # A queue of idle work first, so that launches are not what is measured.
    torch.cuda._sleep(1_000_000)
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


def measure(shape: tuple[int, ...], device: torch.device, rounds: int) -> list[dict]:
    """One row per op that takes this shape, timed in turns with a clone."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator).to(device)
    runs: dict[str, Callable[[], Tensor]] = {"clone": x.clone}
    for name, kind in nda.OPS.items():
        op = kind()
        if op.clips_only and x.dim() == 4:
            continue
        if device.type == "cuda":
            params = op.flag(x, op.sample(shape, generator))
            runs[name] = lambda op=op, params=params: op.apply(x, params)
        else:
            runs[name] = lambda op=op: op(x, generator=generator)
    clock = seconds_on_gpu if device.type == "cuda" else seconds_on_cpu
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(5):
        for run in runs.values():
            run()
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(clock(run))
    copy = statistics.median(times["clone"])
    rows = []
    for name, taken in times.items():
        quarter, median, three_quarters = statistics.quantiles(taken, n=4)
        limit = GPU_LIMIT if device.type == "cuda" else MOVE_LIMIT if name in MOVING else MIX_LIMIT
        rows.append(
            {
                "op": name,
                "shape": list(shape),
                "milliseconds": median * 1e3,
                "quartiles_milliseconds": [quarter * 1e3, three_quarters * 1e3],
                "ratio": median / copy,
                "ratio_of_fastest": min(taken) / min(times["clone"]),
                "limit": 1.0 if name == "clone" else limit,
                "ok": name == "clone" or median / copy <= limit,
            }
        )
    return rows


def print_rows(rows: list[dict]) -> None:
    print(
        f"{'op':18s}{'shape':>18s}{'ms':>9s}{'quartiles':>18s}{'ratio':>8s}{'fastest':>9s}"
        f"{'limit':>7s}"
    )
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        low, high = row["quartiles_milliseconds"]
        print(
            f"{row['op']:18s}{shape:>18s}{row['milliseconds']:9.3f}{low:9.3f}{high:9.3f}"
            f"{row['ratio']:8.2f}{row['ratio_of_fastest']:9.2f}{row['limit']:7.1f}"
            f"{'' if row['ok'] else '  OVER'}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=200, help="times each op runs per shape")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    parser.add_argument("--output", type=Path, help="also write the rows as JSON")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    rows = [row for shape in SHAPES for row in measure(shape, device, arguments.rounds)]
    print_rows(rows)
    over = sum(not row["ok"] for row in rows)
    print(f"{over} of {len(rows) - len(SHAPES)} rows over their limit")
    if arguments.output:
        on_gpu = device.type == "cuda"
        report = {
            "device": torch.cuda.get_device_name(device) if on_gpu else platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "rounds": arguments.rounds,
            "rows": rows,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
