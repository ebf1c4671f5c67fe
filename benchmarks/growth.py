"""How a step's cost grows in batch, frames, resolution, queue and ranks, and what that would mean.

    python benchmarks/growth.py --output runs/growth.json
    python benchmarks/growth.py --within 300 --between 40 --tflops 300

Measured: whole steps (forward, backward, update) of `DpcMethod` and `MocoMethod` with NDA, at
several sizes of one thing, in turns, on one core in processor time. The exponent e of
``seconds ~ size ** e`` is fitted by least squares on the logarithms: 1 is proportional. "Ranks" is
the loss alone, with the keys of so many ranks as columns; whole steps on one rank and on two
(gloo), with what they exchange, are in training_step.py.

Worked out, for 8 and for 64 GPUs (`exchange_of`), per GPU and step:

* features: every rank gets the others' rows (DPC) or keys (MoCo), and DPC's backward sums the
  gradients of all rows on all ranks (an all-reduce, twice what a reduce-scatter would send);
* pixels: with more than one rank MoCo's shuffled batch norm gathers the key views, as floats;
* gradients: DDP's all-reduce, float32;
* scores: the similarity matrix of a rank's rows with all ranks' rows (DPC) or with the queue.

A ring moves (W - 1) / W of the gathered bytes through each link for a gather, twice that for an
all-reduce. Assumed, and to be set: GB/s a GPU within a node of 8 (``--within``) and between nodes
(``--between``), TFLOP/s a GPU that convolutions reach (``--tflops``), and that nothing overlaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import part
import torch
from timing import in_turns, keep_to_one_core, limited, middle, processor_seconds
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ndavid.losses.contrastive import info_nce
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.moco import MocoMethod
from ndavid.methods.nda_config import MocoNdaConfig, NdaConfig
from ndavid.models.dpc import DpcConfig
from ndavid.models.moco import MocoConfig

GPUS, GPUS_A_NODE = (8, 64), 8
FLOAT = 4
"""bytes"""

Steps = dict[float, Callable[[], object]]
"""size -> one step"""


class Axis(NamedTuple):
    """What grows, and steps at each size."""

    name: str
    steps: Steps


def step_of(method: nn.Module, batch: dict[str, Tensor]) -> Callable[[], None]:
    """A whole step, as the engine does it."""
    parameters = [p for p in method.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.001)
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        optimizer.zero_grad()
        method(batch, generator=generator, step=0)["loss"].backward()
        optimizer.step()

    return run


def pixels(*shape: int) -> Tensor:
    """uint8 noise."""
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).to(torch.uint8)


def dpc(encoder: str, batch: int = 2, block_len: int = 5, size: int = 64) -> Callable[[], None]:
    """A DPC step with jigsaw negatives."""
    torch.manual_seed(0)
    method = DpcMethod(DpcConfig(encoder=encoder, block_len=block_len), NdaConfig(spec="jigsaw"))
    return step_of(method, {"video": pixels(batch, 3, 8 * block_len, size, size)})


def moco(queue_size: int, batch: int = 32) -> Callable[[], None]:
    """A MoCo step on images of 32 px with jigsaw negatives."""
    torch.manual_seed(0)
    config = MocoConfig(encoder="cifar:resnet20", queue_size=queue_size)
    return step_of(
        MocoMethod(config, MocoNdaConfig(spec="jigsaw", encoder="key", norm="own")),
        {"views": pixels(batch, 2, 3, 32, 32)},
    )


def loss_of_ranks(ranks: int, rows: int = 384, dim: int = 256) -> Callable[[], None]:
    """DPC's loss on one rank, forward and backward, with the rows of so many ranks as columns."""
    generator = torch.Generator().manual_seed(0)
    queries = torch.randn(rows, dim, generator=generator, requires_grad=True)
    columns = torch.randn(ranks * rows, dim, generator=generator, requires_grad=True)

    def run() -> None:
        positives = columns[:rows]
        info_nce(queries, positives, columns, temperature=1.0).loss.backward()
        queries.grad = columns.grad = None

    return run


def axes(encoder: str) -> list[Axis]:
    """What is measured."""
    return [
        Axis("DPC step by batch", {n: dpc(encoder, batch=n) for n in (1, 2, 4)}),
        Axis("DPC step by frames a block", {n: dpc(encoder, block_len=n) for n in (4, 8, 16)}),
        Axis("DPC step by pixels", {n * n: dpc(encoder, size=n) for n in (48, 64, 96)}),
        Axis("MoCo step by batch", {n: moco(4096, batch=n) for n in (16, 32, 64)}),
        Axis("MoCo step by queue", {n: moco(n) for n in (4096, 16384, 65536)}),
        Axis("DPC loss by ranks", {n: loss_of_ranks(n) for n in (1, 4, 16)}),
    ]


def exponent(sizes: list[float], seconds: list[float]) -> float:
    """The slope of log seconds over log size, by least squares."""
    xs, ys = [math.log(x) for x in sizes], [math.log(y) for y in seconds]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    covariance = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return covariance / sum((x - mean_x) ** 2 for x in xs)


def measure(axis: Axis, rounds: int) -> dict[str, Any]:
    """Seconds at each size, and the exponent, fitted turn by turn."""
    times = in_turns(axis.steps, rounds, processor_seconds, warmup=1)
    sizes = list(times)
    fits = [exponent(sizes, list(turn)) for turn in zip(*times.values(), strict=True)]
    fitted, spread = middle(fits)
    seconds = [middle(taken)[0] for taken in times.values()]
    return {
        "name": axis.name,
        "sizes": sizes,
        "seconds": seconds,
        "exponent": fitted,
        "spread": spread,
    }


class Job(NamedTuple):
    """What one GPU does in a step; per sample, but for rows and parameters."""

    name: str
    batch: int
    flops: float
    """of one sample's step"""
    parameters: int
    row_bytes: int
    """what a rank gives to the others: rows or keys"""
    columns: Callable[[int], int]
    """ranks -> columns of the score matrix"""
    rows: int
    gathers_with_gradient: bool
    shuffled_bytes: int
    """pixels that a rank gives to the others"""


class Exchange(NamedTuple):
    """Bytes a GPU receives a step, what its scores take, and seconds."""

    features: float
    pixels: float
    gradients: float
    scores: float
    seconds: float
    compute_seconds: float


def exchange_of(job: Job, gpus: int, *, within: float, between: float, tflops: float) -> Exchange:
    """The arithmetic of the module's docstring.

    Args:
        job: what a GPU does.
        gpus: how many there are.
        within: GB/s that a GPU receives inside a node of 8.
        between: GB/s that a GPU receives from other nodes, if there are any.
        tflops: 10^12 operations a second that a GPU reaches.
    """
    gathered = (gpus - 1) / gpus
    whole = gpus * job.row_bytes
    features = gathered * whole * (3 if job.gathers_with_gradient else 1)
    shuffled = gathered * gpus * job.shuffled_bytes
    gradients = 2 * gathered * FLOAT * job.parameters
    link = within if gpus <= GPUS_A_NODE else between
    return Exchange(
        features=features,
        pixels=shuffled,
        gradients=gradients,
        scores=FLOAT * job.rows * job.columns(gpus),
        seconds=(features + shuffled + gradients) / (link * 1e9),
        compute_seconds=job.flops * job.batch / (tflops * 1e12),
    )


def flops(method: nn.Module, batch: dict[str, Tensor], samples: int) -> float:
    """Operations of one sample's forward and backward, counted."""
    with FlopCounterMode(display=False) as counter:
        method(batch, generator=torch.Generator().manual_seed(0), step=0)["loss"].backward()
    return counter.get_total_flops() / samples


def trained(module: nn.Module) -> int:
    """How many numbers DDP averages."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def jobs(batch: int, encoder: str) -> list[Job]:
    """DPC at 8x5x128 px and MoCo at 16x112 px, each with NDA, as the UCF101 configs have them."""
    dpc_method = DpcMethod(DpcConfig(encoder=encoder), NdaConfig(spec="jigsaw"))
    nda = MocoNdaConfig(spec="frame_shuffle", encoder="query", norm="own")
    queue, dim = 16384, 128
    moco_method = MocoMethod(MocoConfig(encoder=encoder, queue_size=queue, dim=dim), nda)
    steps, cells, features = 3, 4 * 4, dpc_method.dpc.feature_dim
    rows = batch * steps * cells
    return [
        Job(
            f"DPC {encoder}, 8x5x128 px, {batch} clips a GPU",
            batch,
            flops(dpc_method, {"video": pixels(2, 3, 40, 128, 128)}, 2),
            trained(dpc_method),
            rows * features * FLOAT,
            lambda gpus: gpus * rows,
            rows,
            True,
            0,
        ),
        Job(
            f"MoCo {encoder}, 16x112 px, {batch} clips a GPU",
            batch,
            flops(moco_method, {"views": pixels(2, 2, 3, 16, 112, 112)}, 2),
            trained(moco_method),
            # Once to undo the shuffle, once into the queue.
            2 * batch * dim * FLOAT,
            lambda gpus: queue,
            batch,
            False,
            batch * 3 * 16 * 112 * 112 * FLOAT,
        ),
    ]


def in_megabytes(found: Exchange) -> str:
    """The bytes in words."""
    names = ("features", "pixels", "gradients", "scores")
    return ", ".join(f"{name} {getattr(found, name) / 1e6:.0f} MB" for name in names)


def print_exchange(job: Job, gpus: int, found: Exchange) -> None:
    print(
        f"{job.name}, {gpus} GPUs, a GPU and step: {in_megabytes(found)}; exchange "
        f"{found.seconds * 1e3:.1f} ms, compute {found.compute_seconds * 1e3:.1f} ms"
    )


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--encoder", default="resnet2d3d10", help="of the measured DPC steps")
    parser.add_argument("--planned", default="resnet2d3d18", help="encoder of the arithmetic")
    parser.add_argument("--batch", type=int, default=32, help="clips a GPU of the arithmetic")
    parser.add_argument("--within", type=float, default=300.0, help="GB/s a GPU in a node")
    parser.add_argument("--between", type=float, default=40.0, help="GB/s a GPU between nodes")
    parser.add_argument("--tflops", type=float, default=200.0, help="TFLOP/s that a GPU reaches")
    arguments = parser.parse_args()
    keep_to_one_core()
    rows, ratios = [], []
    for axis in axes(arguments.encoder):
        row = measure(axis, arguments.rounds)
        rows.append(row)
        shown = ", ".join(
            f"{size:g}: {seconds * 1e3:.0f} ms"
            for size, seconds in zip(row["sizes"], row["seconds"], strict=True)
        )
        ratios.append(
            limited(f"{row['name']}: exponent", row["exponent"], row["spread"], note=shown)
        )
    assumed = {name: getattr(arguments, name) for name in ("within", "between", "tflops")}
    planned = []
    for job in jobs(arguments.batch, arguments.planned):
        for gpus in GPUS:
            found = exchange_of(job, gpus, **assumed)
            print_exchange(job, gpus, found)
            planned.append({"job": job.name, "gpus": gpus, **found._asdict()})
            ratios.append(
                limited(
                    f"{job.name}, {gpus} GPUs: exchange / compute",
                    found.seconds / found.compute_seconds,
                    note=f"worked out: {in_megabytes(found)} a GPU",
                )
            )
    print(f"assumed: {assumed}")
    part.print_ratios(ratios)
    part.write(arguments.output, ratios, rows=rows, planned=planned, assumed=assumed)


if __name__ == "__main__":
    main()
