"""DPC's training step by precision and memory layout, each with the error of its gradients.

    python benchmarks/dpc_step.py --output runs/dpc_step.json
    python benchmarks/dpc_step.py --compile
    python benchmarks/dpc_step.py --device cuda --batch 32 --rounds 20

A step is forward, backward and Adam of `DpcMethod` with a 2D3D-R18 on 2 clips of 8 blocks of 5
frames of 128 px, uint8 and ready. Everything takes turns in one run; ratios are taken turn by turn.
On the CPU all cores work and times are wall time (``--threads 1``: processor time); on a GPU they
are wall time of steps that are waited for. ``--compile`` adds the compiled encoder, which costs 40
seconds and more.

Two errors stand beside each time, both relative to the norm of the right gradient:

* "kernel": each convolution's weight gradient against float64 arithmetic (never oneDNN) on the same
  input and the same gradient from above, the worst layer. It judges the kernel alone and must not
  pass 2%: right kernels of bfloat16 stay below 1%, the broken ones that
  `ndavid.models.cpu_convolutions` guards against are off by 20% to infinity.
* "whole": each parameter's gradient against that of the float32 step, the median and the worst
  parameter. In a deep network of random weights bfloat16's rounding flips ReLUs and adds up to 15%
  to 40% even where every kernel is right.

Limits: the fastest setting with right kernels at least 2 times as fast as float32; broken future
blocks (3 of 8, an ideal of 1.375) at most 1.45 times a plain step. Dropout is off, so that the
gradients can be compared.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import part
import torch
from timing import in_turns, limited, middle, ratio_row, stopwatch
from torch import Tensor, nn

from ndavid.engine.memory_format import to_channels_last
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.nda_config import NdaConfig
from ndavid.models.dpc import DpcConfig

FASTER_LIMIT = 2.0
NDA_LIMIT = 1.45
KERNEL_LIMIT = 0.02
SPEC = "stitch"


class Setting(NamedTuple):
    """How a step is computed."""

    bfloat16: bool = False
    channels_last: bool = False
    compiled: bool = False

    def __str__(self) -> str:
        words = ["bfloat16" if self.bfloat16 else "float32"]
        words += ["channels_last"] * self.channels_last + ["compiled"] * self.compiled
        return " ".join(words)


REFERENCE = Setting()
EAGER = (REFERENCE, Setting(channels_last=True), Setting(bfloat16=True), Setting(True, True))
COMPILED = Setting(True, True, True)


class Workload(NamedTuple):
    """What a batch is and who encodes it."""

    encoder: str = "resnet2d3d18"
    batch: int = 2
    size: int = 128

    def clips(self, device: torch.device) -> Tensor:
        """uint8 (B, 3, 40, size, size)."""
        shape = (self.batch, 3, 8 * 5, self.size, self.size)
        g = torch.Generator().manual_seed(0)
        return torch.randint(256, shape, generator=g).to(torch.uint8).to(device)


class Step:
    """A training step of its own model, as the engine makes it."""

    def __init__(self, work: Workload, setting: Setting, spec: str, device: torch.device) -> None:
        torch.manual_seed(0)
        config = DpcConfig(encoder=work.encoder, dropout=0.0)
        self.method = DpcMethod(config, NdaConfig(spec=spec)).to(device)
        if setting.channels_last:
            to_channels_last(self.method)
        if setting.compiled:
            for target in self.method.compile_targets():
                target.compile()
        self.setting = setting
        self.batch = {"video": work.clips(device)}
        self.generator = torch.Generator().manual_seed(0)
        self.optimizer = torch.optim.Adam(self.method.parameters(), lr=1e-3)

    def backward(self) -> None:
        """Fresh gradients of every parameter."""
        self.optimizer.zero_grad()
        device = self.batch["video"].device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.setting.bfloat16):
            loss = self.method(self.batch, generator=self.generator, step=0)["loss"]
        loss.backward()

    def __call__(self) -> None:
        self.backward()
        self.optimizer.step()

    def gradients(self) -> dict[str, Tensor]:
        """By the parameter's name; of the weights as they are now."""
        self.backward()
        return {name: p.grad.clone() for name, p in self.method.named_parameters()}


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Infinite for garbage, so that it never looks small."""
    error = float((value.double() - truth.double()).norm() / truth.double().norm())
    return error if error == error else float("inf")


@contextmanager
def watched(encoder: nn.Module) -> Iterator[dict[str, list[Any]]]:
    """Inside, each convolution's latest input and the gradient of its output, by its name."""
    seen: dict[str, list[Any]] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(conv: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
            seen[name] = [conv, inputs[0].detach()]
            out.register_hook(seen[name].append)

        return hook

    convs = {n: m for n, m in encoder.named_modules() if isinstance(m, nn.Conv2d | nn.Conv3d)}
    handles = [conv.register_forward_hook(watch(name)) for name, conv in convs.items()]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def kernel_errors(step: Step) -> dict[str, float]:
    """Each convolution's weight gradient against float64 on the same input and gradient."""
    with watched(step.method.dpc.encoder) as seen:
        step.backward()
    errors = {}
    for name, (conv, x, above) in seen.items():
        # Autocast rounds the input on its way into the kernel.
        x = x.bfloat16() if step.setting.bfloat16 else x
        truth = torch.nn.grad.conv3d_weight(
            x.double(), conv.weight.shape, above.double(), conv.stride, conv.padding
        )
        errors[name] = relative_error(conv.weight.grad, truth)
    return errors


def compare(steps: dict[Setting, Step]) -> dict[Setting, dict[str, Any]]:
    """How wrong the gradients of each setting are, before any of them has moved a weight."""
    exact = steps[REFERENCE].gradients()
    found = {}
    for setting, step in steps.items():
        whole = {n: relative_error(g, exact[n]) for n, g in step.gradients().items()}
        report: dict[str, Any] = {
            "whole_median": statistics.median(whole.values()),
            "whole_worst": max(whole.values()),
            "kernel_worst": None,
        }
        if not setting.compiled:  # a graph has no layers to watch
            report["kernel_worst"] = max(kernel_errors(step).values())
        found[setting] = report
    return found


def is_right(errors: dict[str, Any]) -> bool:
    """Whether every kernel was seen to be right."""
    worst = errors["kernel_worst"]
    return worst is not None and worst < KERNEL_LIMIT


def rows_of(times: dict, errors: dict[Setting, dict[str, Any]]) -> list[dict[str, Any]]:
    """Times of every step, plain and with broken blocks, and the errors of the setting."""
    rows = []
    for (setting, spec), taken in times.items():
        seconds, spread = middle(taken)
        row = {"setting": str(setting), "nda": spec, "seconds": seconds, "spread": spread}
        rows.append(row | (errors[setting] if not spec else {}))
    return rows


def ratios_of(times: dict, errors: dict[Setting, dict[str, Any]]) -> list[dict[str, Any]]:
    """The final table's rows."""
    plain = {setting: taken for (setting, spec), taken in times.items() if not spec}
    rows = [
        ratio_row(
            f"float32 step / {setting} step",
            plain[REFERENCE],
            taken,
            note=in_words(errors[setting]),
        )
        for setting, taken in plain.items()
        if setting != REFERENCE
    ]
    best = fastest_right(times, errors)
    rows.append(
        ratio_row(
            "float32 step / fastest with right gradients",
            plain[REFERENCE],
            plain[best],
            FASTER_LIMIT,
            at_least=True,
            note=str(best),
        )
        if best
        else limited("float32 step / fastest with right gradients", None, note="none is right")
    )
    for (setting, spec), taken in times.items():
        if spec:
            name = f"NDA step / plain step, {setting}"
            rows.append(ratio_row(name, taken, plain[setting], NDA_LIMIT, note="ideal 1.375"))
    return rows


def fastest_right(times: dict, errors: dict[Setting, dict[str, Any]]) -> Setting | None:
    """The fastest of the settings other than the reference whose kernels are right."""
    right = [s for s, found in errors.items() if s != REFERENCE and is_right(found)]
    return min(right, key=lambda s: statistics.median(times[s, ""]), default=None)


def in_words(errors: dict[str, Any]) -> str:
    """The errors of a setting in a few words."""
    worst = errors["kernel_worst"]
    kernel = "kernels not seen" if worst is None else f"kernels off by {worst:.2g} at most"
    return f"{kernel}, whole {errors['whole_median']:.2g} (worst {errors['whole_worst']:.2g})"


def print_rows(rows: list[dict[str, Any]]) -> None:
    print(f"{'':44s}{'s':>8s}{'spread':>16s}{'kernel':>10s}{'whole':>10s}{'worst':>10s}")
    for row in rows:
        name = row["setting"] + (f", {row['nda']}" if row["nda"] else "")
        low, high = row["spread"]
        line = f"{name:44s}{row['seconds']:8.3f}{low:8.3f}{high:8.3f}"
        for key in ("kernel_worst", "whole_median", "whole_worst"):
            if key in row:
                line += f"{'-' if row[key] is None else format(row[key], '.2g'):>10s}"
        print(line)


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--encoder", default=Workload().encoder)
    parser.add_argument("--batch", type=int, default=Workload().batch)
    parser.add_argument("--size", type=int, default=Workload().size, help="pixels a side")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="on the CPU")
    parser.add_argument("--compile", action="store_true", help="also the compiled encoder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.backends.cudnn.benchmark = True  # as `fit` has it
    device = torch.device(arguments.device)
    work = Workload(arguments.encoder, arguments.batch, arguments.size)
    settings = (*EAGER, COMPILED) if arguments.compile else EAGER
    steps = {(setting, ""): Step(work, setting, "", device) for setting in settings}
    errors = compare({setting: step for (setting, _), step in steps.items()})
    steps |= {(s, SPEC): Step(work, s, SPEC, device) for s in (REFERENCE, Setting(True, True))}
    times = in_turns(steps, arguments.rounds, stopwatch(device), warmup=1)
    rows = rows_of(times, errors)
    print_rows(rows)
    ratios = ratios_of(times, errors)
    part.print_ratios(ratios)
    part.write(arguments.output, ratios, rows=rows, **work._asdict(), threads=arguments.threads)


if __name__ == "__main__":
    main()
