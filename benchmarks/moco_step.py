"""What NDA negatives add to a step of MoCo, beside what encoding them alone costs.

    python benchmarks/moco_step.py --output runs/moco_step.json
    python benchmarks/moco_step.py --device cuda

A step is forward, backward and SGD update of `MocoMethod` with one NDA negative a sample, its views
uint8 and ready. Everything that is compared takes turns in one run; a ratio is taken turn by turn.

* "plain" is MoCo without NDA, "key, NORM" breaks the key view and encodes it with the key encoder,
  under each of the statistics that `nda.norm` offers; "query, own" encodes it with gradient.
* The ideal step costs what the plain one does and the bare encoding of one more batch: "key
  forward" without gradient, "query forward and backward" with it. What a step has beyond the ideal
  went into breaking, normalising, shuffling and the longer softmax.

On the CPU one core runs it all and times are processor time, which other programs cannot add to; on
a GPU they are wall time of steps that are waited for, of larger networks and batches.

Limit: a step 1.15x its ideal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import part
import torch
from timing import in_turns, keep_to_one_core, limited, middle, stopwatch
from torch import Tensor

from ndavid.methods.moco import MocoMethod
from ndavid.methods.nda_config import MocoNdaConfig
from ndavid.models.batchnorm import without_stat_updates
from ndavid.models.moco import MocoConfig

LIMIT = 1.15
KEY, QUERY = "key forward", "query forward and backward"
IDEAL_OF = {
    "key, own": KEY,
    "key, running": KEY,
    "key, shared": KEY,
    "query, own": QUERY,
}


class Workload(NamedTuple):
    """What a batch is and who encodes it."""

    encoder: str
    shape: tuple[int, ...]
    """(B, C, [T,] H, W)"""
    spec: str


ON_CPU = (
    Workload("cifar:resnet20", (32, 3, 32, 32), "jigsaw"),
    Workload("resnet2d3d10", (4, 3, 8, 64, 64), "frame_shuffle"),
)
ON_GPU = (
    Workload("cifar:resnet18", (256, 3, 32, 32), "jigsaw"),
    Workload("resnet2d3d18", (32, 3, 16, 112, 112), "frame_shuffle"),
)


def build(workload: Workload, device: torch.device, **nda: str) -> MocoMethod:
    """MoCo as on small data: dimension 128, 4096 keys."""
    torch.manual_seed(0)
    config = MocoConfig(encoder=workload.encoder, queue_size=4096)
    return MocoMethod(config, MocoNdaConfig(weight=1.0, **nda)).to(device)


def training_step(method: MocoMethod, views: Tensor) -> Callable[[], None]:
    """A whole step, as the engine does it."""
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        optimizer.zero_grad()
        method({"views": views}, generator=generator, step=1)["loss"].backward()
        optimizer.step()

    return run


def bare_encodings(method: MocoMethod, views: Tensor) -> dict[str, Callable[[], None]]:
    """One more batch through either encoder, and nothing else."""
    moco, pixels = method.moco, method.pixels(views[:, 1])

    def through_key() -> None:
        with torch.no_grad(), without_stat_updates(moco):
            moco.key_head(moco.key_encoder(pixels))

    def through_query() -> None:
        with without_stat_updates(moco):
            moco.queries(pixels)[:, 0].sum().backward()

    return {KEY: through_key, QUERY: through_query}


def runs_of(workload: Workload, device: torch.device) -> dict[str, Callable[[], None]]:
    """What is timed, by name."""
    g = torch.Generator().manual_seed(0)
    batch, *sample = workload.shape
    views = torch.randint(256, (batch, 2, *sample), generator=g).to(torch.uint8).to(device)
    runs = {"plain": training_step(build(workload, device), views)}
    for name in IDEAL_OF:
        encoder, norm = name.split(", ")
        method = build(workload, device, spec=workload.spec, encoder=encoder, norm=norm)
        runs[name] = training_step(method, views)
    return runs | bare_encodings(build(workload, device), views)


def rows_of(workload: Workload, times: dict[str, list[float]]) -> list[dict]:
    """Times and ratios: a step beside the plain one, its ideal, and the one beside the other."""
    rows = []
    for name, taken in times.items():
        milliseconds, quartiles = middle([seconds * 1e3 for seconds in taken])
        row = {
            "encoder": workload.encoder,
            "shape": list(workload.shape),
            "spec": workload.spec,
            "run": name,
            "milliseconds": milliseconds,
            "quartiles_milliseconds": quartiles,
        }
        if name in IDEAL_OF:
            plain = times["plain"]
            ideal = [a + b for a, b in zip(plain, times[IDEAL_OF[name]], strict=True)]
            for key, top, bottom in (
                ("ratio", taken, plain),
                ("ideal_ratio", ideal, plain),
                ("of_ideal", taken, ideal),
            ):
                ratios = [a / b for a, b in zip(top, bottom, strict=True)]
                row[key], row[f"{key}_quartiles"] = middle(ratios)
            row |= {"limit": LIMIT, "ok": row["of_ideal"] <= LIMIT}
        rows.append(row)
    return rows


def ratios_of(rows: list[dict]) -> list[dict]:
    """The final table's rows: steps with negatives beside their ideal."""
    return [
        limited(
            f"NDA step / its ideal, {row['encoder']}, {row['run']}",
            row["of_ideal"],
            row["of_ideal_quartiles"],
            LIMIT,
            note=f"{row['ratio']:.2f} times the plain step",
        )
        for row in rows
        if "of_ideal" in row
    ]


def print_rows(workload: Workload, rows: list[dict]) -> None:
    shape = "x".join(map(str, workload.shape))
    print(f"\n{workload.encoder}, {shape}, {workload.spec}")
    print(
        f"{'':28s}{'ms':>9s}{'quartiles':>17s}{'/ plain':>9s}{'quartiles':>13s}{'ideal':>7s}"
        f"{'/ ideal':>9s}{'quartiles':>13s}"
    )
    for row in rows:
        low, high = row["quartiles_milliseconds"]
        line = f"{row['run']:28s}{row['milliseconds']:9.1f}{low:9.1f}{high:8.1f}"
        if "ratio" in row:
            low, high = row["ratio_quartiles"]
            line += f"{row['ratio']:9.2f}{low:7.2f}{high:6.2f}{row['ideal_ratio']:7.2f}"
            low, high = row["of_ideal_quartiles"]
            line += f"{row['of_ideal']:9.2f}{low:7.2f}{high:6.2f}{'' if row['ok'] else '  OVER'}"
        print(line)


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    if not on_gpu:
        keep_to_one_core()
    rows: list[dict] = []
    for workload in ON_GPU if on_gpu else ON_CPU:
        times = in_turns(runs_of(workload, device), arguments.rounds, stopwatch(device))
        found = rows_of(workload, times)
        print_rows(workload, found)
        rows += found
    part.write(arguments.output, ratios_of(rows), rounds=arguments.rounds, rows=rows)


if __name__ == "__main__":
    main()
