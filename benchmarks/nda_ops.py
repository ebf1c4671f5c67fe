"""How long each negative augmentation takes, beside a copy of the batch.

    python benchmarks/nda_ops.py --output runs/nda_ops.json
    python benchmarks/nda_ops.py --device cuda

Prints one row per op and shape: the median time of ``op(x, generator=g)``, drawing included, and
its ratio to ``x.clone()``, with which it takes turns. The limit is for "fastest", the ratio of the
fastest runs: a median depends on whether the allocator had memory at hand, for the clone too. The
last line also counts by medians. On a
GPU the time is that of the kernels of ``op.apply`` with the parameters already there: drawing
happens on the CPU meanwhile.

Limits: on the CPU, ops that move content 3x and ops that mix or overwrite 4x; on a GPU 2x. Ops
above their limit are marked, not hidden.
"""

from __future__ import annotations

from collections.abc import Callable

import part
import torch
from timing import Run, in_turns, limited, middle, wall_seconds

from ndavid import nda

SHAPES = ((64, 3, 32, 32), (64, 3, 128, 128), (8, 3, 16, 112, 112))
MOVING = ("jigsaw", "frame_shuffle", "temporal_jigsaw", "frame_repeat", "reverse", "cuboid_jigsaw")
MOVE_LIMIT, MIX_LIMIT, GPU_LIMIT = 3.0, 4.0, 2.0


def seconds_on_gpu(run: Run) -> float:
    """Time of a run's kernels."""
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
    runs: dict[str, Callable[[], object]] = {"clone": x.clone}
    for name, kind in nda.OPS.items():
        op = kind()
        if op.clips_only and x.dim() == 4:
            continue
        if device.type == "cuda":
            params = op.flag(x, op.sample(shape, generator))
            runs[name] = lambda op=op, params=params: op.apply(x, params)
        else:
            runs[name] = lambda op=op: op(x, generator=generator)
    times = in_turns(
        runs, rounds, seconds_on_gpu if device.type == "cuda" else wall_seconds, warmup=5
    )
    return [row_of(name, shape, times, device) for name in times]


def row_of(
    name: str, shape: tuple[int, ...], times: dict[str, list[float]], device: torch.device
) -> dict:
    """What there is to say about one op, or about the copy."""
    limit = GPU_LIMIT if device.type == "cuda" else MOVE_LIMIT if name in MOVING else MIX_LIMIT
    median, quartiles = middle(times[name])
    of_medians = median / middle(times["clone"])[0]
    ratio = limited(
        f"{name} / clone, {'x'.join(map(str, shape))}",
        min(times[name]) / min(times["clone"]),
        limit=1.0 if name == "clone" else limit,
        note=f"ratio and limit are of the fastest runs; of medians {of_medians:.1f}",
    )
    return ratio | {
        "op": name,
        "shape": list(shape),
        "milliseconds": median * 1e3,
        "quartiles_milliseconds": [value * 1e3 for value in quartiles],
        "ratio_of_medians": of_medians,
    }


def print_rows(rows: list[dict]) -> None:
    print(
        f"{'op':18s}{'shape':>18s}{'ms':>9s}{'quartiles':>18s}{'medians':>9s}{'fastest':>9s}"
        f"{'limit':>7s}"
    )
    for row in rows:
        shape = "x".join(map(str, row["shape"]))
        low, high = row["quartiles_milliseconds"]
        print(
            f"{row['op']:18s}{shape:>18s}{row['milliseconds']:9.3f}{low:9.3f}{high:9.3f}"
            f"{row['ratio_of_medians']:9.2f}{row['ratio']:9.2f}{row['limit']:7.1f}"
            f"{'' if row['ok'] else '  OVER'}"
        )


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=200, help="times each op runs per shape")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's own choice")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    rows = [row for shape in SHAPES for row in measure(shape, device, arguments.rounds)]
    print_rows(rows)
    ops = [row for row in rows if row["op"] != "clone"]
    print(
        f"{sum(not row['ok'] for row in ops)} of {len(ops)} rows over their limit by their fastest "
        f"runs, {sum(row['ratio_of_medians'] > row['limit'] for row in ops)} by medians"
    )
    part.write(arguments.output, ops, rows=rows, rounds=arguments.rounds)


if __name__ == "__main__":
    main()
