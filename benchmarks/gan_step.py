"""What broken images add to the two steps of a GAN, beside what their arithmetic costs.

    python benchmarks/gan_step.py --output runs/gan_step.json
    python benchmarks/gan_step.py --threads 1
    python benchmarks/gan_step.py --device cuda

The networks are BigGAN's for 32 px as NDA's CIFAR-10 runs have them, the loss is hinge, the batch
64 images, uint8 and ready; all as `GanMethod` runs it. Everything that is compared takes turns in
one run; a ratio is taken turn by turn.

* A discriminator step makes its generated images, breaks the real ones ("nda"), judges all in one
  pass, goes backward and updates. A generator step goes through both networks and back.
* The ideal ratio is that of the multiplications in convolutions and matrix products, counted while
  a step runs: what a step has beyond it went into breaking and into work on memory.
* "bf16" is autocast. Weights are channels_last.

On the CPU the time is wall time on all cores, and other programs add to it; with ``--threads 1`` it
is processor time on one core, to which they cannot. On a GPU it is wall time of steps that are
waited for.

Limit: a step with broken images 1.15x its ideal.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import part
import torch
from timing import in_turns, limited, middle, stopwatch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ndavid.engine.alternating import train_only
from ndavid.methods.gan import GanMethod
from ndavid.methods.gan_config import AdversarialConfig, GanNdaConfig
from ndavid.models.gan.model import GanConfig

LIMIT = 1.15
SPEC = "jigsaw:grid=2"
PRECISIONS = ("fp32", "bf16")
PLAYERS = ("discriminator", "generator")
KINDS = ("plain", "nda")

Runs = dict[tuple[str, str, str], Callable[[], None]]
"""(precision, network, kind) -> one step"""


def build(kind: str, device: torch.device) -> GanMethod:
    """The GAN, plain or shown broken images."""
    torch.manual_seed(0)
    nda = GanNdaConfig(spec=SPEC if kind == "nda" else "")
    method = GanMethod(GanConfig(), nda, adversarial=AdversarialConfig(discriminator_steps=1))
    return method.to(device, memory_format=torch.channels_last)


def steps_of(method: GanMethod, images: Tensor, precision: str) -> dict[str, Callable[[], None]]:
    """A whole step of either network, as the engine does it."""
    generator = torch.Generator().manual_seed(0)
    groups = {name: groups[0]["params"] for name, groups in method.optimizer_groups().items()}
    optimizers = {n: torch.optim.Adam(p, lr=2e-4, betas=(0.0, 0.999)) for n, p in groups.items()}
    batch = {"image": images}
    updates = dict(method.plan_updates([batch], generator=generator, step=0))

    def autocast() -> torch.autocast:
        return torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16")

    def update(network: str, batches: list[dict]) -> None:
        train_only(network, groups)
        optimizers[network].zero_grad()
        with autocast():
            loss = method(batches[0], generator=generator, step=0)["loss"]
        loss.backward()
        optimizers[network].step()

    def discriminator_step() -> None:
        with autocast():
            fresh = dict(method.plan_updates([batch], generator=generator, step=0))
        update("discriminator", fresh["discriminator"])

    def generator_step() -> None:
        update("generator", updates["generator"])

    return {"discriminator": discriminator_step, "generator": generator_step}


def all_steps(batch: int, device: torch.device) -> Runs:
    """What is timed."""
    g = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, 32, 32), generator=g).to(torch.uint8).to(device)
    runs: Runs = {}
    for precision in PRECISIONS:
        for kind in KINDS:
            for network, run in steps_of(build(kind, device), images, precision).items():
                runs[precision, network, kind] = run
    return runs


def count_flops(run: Callable[[], None]) -> int:
    """Operations in convolutions and matrix products, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def rows_of(times: dict, flops: dict) -> list[dict]:
    """Times, speeds and ratios of every step."""
    rows = []
    for (precision, network, kind), taken in times.items():
        median, spread = middle(taken)
        operations = flops[precision, network, kind]
        row = {
            "precision": precision,
            "step": network,
            "kind": kind,
            "seconds": median,
            "seconds_spread": spread,
            "gflops": operations / 1e9,
            "gflops_per_second": operations / 1e9 / median,
        }
        if kind == "nda":
            plain = times[precision, network, "plain"]
            ratios = [a / b for a, b in zip(taken, plain, strict=True)]
            row["ratio"], row["ratio_spread"] = middle(ratios)
            row["ideal_ratio"] = operations / flops[precision, network, "plain"]
            row["of_ideal"] = row["ratio"] / row["ideal_ratio"]
            row |= {"limit": LIMIT, "ok": row["of_ideal"] <= LIMIT}
        rows.append(row)
    return rows


def ratios_of(rows: list[dict]) -> list[dict]:
    """The final table's rows: steps with broken images beside their ideal."""
    return [
        limited(
            f"NDA step / its ideal, {row['precision']} {row['step']}",
            row["of_ideal"],
            [value / row["ideal_ratio"] for value in row["ratio_spread"]],
            LIMIT,
            note=f"{row['ratio']:.2f} times the plain step",
        )
        for row in rows
        if "of_ideal" in row
    ]


def print_rows(rows: list[dict]) -> None:
    print(
        f"{'':28s}{'s':>8s}{'spread':>16s}{'GFLOP/s':>9s}{'/ plain':>9s}{'spread':>13s}"
        f"{'ideal':>7s}{'/ ideal':>9s}"
    )
    for row in rows:
        name = f"{row['precision']} {row['step']} {row['kind']}"
        low, high = row["seconds_spread"]
        line = f"{name:28s}{row['seconds']:8.3f}{low:8.3f}{high:8.3f}"
        line += f"{row['gflops_per_second']:9.0f}"
        if "ratio" in row:
            low, high = row["ratio_spread"]
            line += f"{row['ratio']:9.2f}{low:7.2f}{high:6.2f}{row['ideal_ratio']:7.2f}"
            line += f"{row['of_ideal']:9.2f}{'' if row['ok'] else '  OVER'}"
        print(line)


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, help="default: 3 on the CPU, 30 on a GPU")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="on the CPU")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    torch.set_num_threads(arguments.threads)
    runs = all_steps(arguments.batch, device)
    # Counting runs each step once, which warms caches up; a GPU wants a few more.
    flops = {name: count_flops(run) for name, run in runs.items()}
    rounds = arguments.rounds or (30 if on_gpu else 3)
    times = in_turns(runs, rounds, stopwatch(device), warmup=3 if on_gpu else 0)
    rows = rows_of(times, flops)
    print_rows(rows)
    part.write(arguments.output, ratios_of(rows), batch=arguments.batch, spec=SPEC, rows=rows)


if __name__ == "__main__":
    main()
