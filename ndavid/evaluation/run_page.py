"""A run's page and its picture of negatives, there from before the first step.

``negatives.png`` shows a few training samples, augmented as the method sees them, above what the
run's own operation makes of them; TensorBoard shows the same. ``report.html`` is written at the
start and again at checkpoints, while the run goes on. Nothing is drawn from the run's own random
numbers, and no network runs: a run ends with the same weights with and without its page.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torchvision.transforms.functional import pil_to_tensor

from ndavid.collectives import rank
from ndavid.data.video import collate
from ndavid.engine.hooks import HookContext
from ndavid.engine.loader import KeyedDataset, to_device
from ndavid.engine.rng import derive_seed, generator
from ndavid.evaluation.pairs_figure import draw_pairs
from ndavid.evaluation.provenance import GALLERY_FILE
from ndavid.evaluation.report import REPORT_FILE, CurveGroup, Picture, Report, write_report
from ndavid.methods.broken_samples import BrokenSamples

_CLIPS, _IMAGES = 4, 8
# Of a run's time, the page may take so much.
_SHARE_OF_TIME = 0.05

DatasetT = TypeVar("DatasetT")

NO_PICTURES: tuple[Picture, ...] = ()


class BreaksSamples(Protocol):
    """A method with negatives that can be shown (``methods.broken_samples``)."""

    nda: Any

    def broken_samples(
        self, batch: dict[str, Any], *, generator: torch.Generator
    ) -> BrokenSamples | None: ...


class RunPage:
    """Hooks for `fit`: ``start`` before the first step, ``refresh`` at checkpoints.

    Args:
        name: what the run trains, such as "MoCo".
        dataset: training samples by (index, seed), for the picture of negatives; None for a method
            that has none.
        seed: the run's.
        more: folder of the run -> further pictures.
    """

    def __init__(
        self,
        name: str,
        dataset: KeyedDataset | None = None,
        *,
        seed: int = 0,
        more: Callable[[Path], Sequence[Picture]] = lambda output: NO_PICTURES,
    ) -> None:
        self.name = name
        self.dataset = dataset
        self.seed = seed
        self.more = more
        self._spec = ""
        self._written = self._cost = 0.0

    def start(self, context: HookContext) -> dict[str, float]:
        """Draws the negatives, but for a resumed run that has them, and writes the page."""
        if rank() == 0:
            self._spec = str(getattr(getattr(context.method, "nda", None), "spec", ""))
            if context.step == 0 or not (context.output / GALLERY_FILE).exists():
                self._draw(context)
            self._write(context.output, _so_far(context))
        return {}

    def refresh(self, context: HookContext) -> dict[str, float]:
        """Writes the page anew, unless that would take more than a small share of the time."""
        since = time.monotonic() - self._written
        if rank() == 0 and self._cost <= _SHARE_OF_TIME * since:
            self._write(context.output, _so_far(context))
        return {}

    def finish(self, output: Path) -> Path:
        """Writes the page of a run that has ended, and returns its path."""
        return self._write(output, "")

    def _draw(self, context: HookContext) -> None:
        if self.dataset is None or not hasattr(context.method, "broken_samples"):
            return
        method = cast(BreaksSamples, context.method)
        picture = draw_negatives(
            method, self.dataset, device=context.device, seed=self.seed, title=self._spec
        )
        if picture is not None:
            picture.save(context.output / GALLERY_FILE)
            context.show("negatives", pil_to_tensor(picture))

    def _write(self, output: Path, lead: str) -> Path:
        began = time.monotonic()
        pictures = list(self.more(output))
        if (output / GALLERY_FILE).exists() and self._spec:
            title = "The negatives"
            pictures = [Picture(title=title, image=output / GALLERY_FILE, caption=self._spec)] + [
                picture for picture in pictures if picture.title.lower() != "negatives"
            ]
        logged = (output / "metrics.jsonl").exists()
        curves = [CurveGroup(title="Training", runs={output.name: output})] if logged else []
        title = f"{self.name}: {output.name}"
        page = Report(title=title, lead=lead, curves=curves, pictures=pictures)
        written = write_report(page, output / REPORT_FILE)
        self._written = time.monotonic()
        self._cost = self._written - began
        return written


def draw_negatives(
    method: BreaksSamples,
    dataset: KeyedDataset,
    *,
    device: torch.device,
    seed: int,
    title: str,
) -> Any:
    """The picture of a few training samples and their broken versions, a PIL image.

    None for a method without negatives. Samples come from all over the set, or, where it lies in
    shards, out of the first of them.
    """
    if not title.strip():
        return None
    dataset = apart(dataset)
    reach = next(iter(getattr(dataset, "shard_sizes", None) or ()), len(dataset))
    first = _sample(dataset, 0, seed)
    is_clip = "video" in first or ("views" in first and first["views"].ndim == 5)
    count = min(_CLIPS if is_clip else _IMAGES, len(dataset))
    places = torch.linspace(0, max(reach, min(count, len(dataset))) - 1, count).long().tolist()
    samples = [first, *(_sample(dataset, index, seed) for index in places[1:])]
    batch = collate(samples)
    batch.pop("bad", None)
    # Whatever an augmentation of the user's draws from the default generator, it is put back.
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices):
        shown = method.broken_samples(
            to_device(batch, device), generator=generator(seed, "negatives picture")
        )
    if shown is None:
        return None
    before, after = (
        (pixels.float().clamp(0, 1) * 255).round().to(torch.uint8).cpu()
        for pixels in (shown.before, shown.after)
    )
    return draw_pairs(
        before, after, shown.used.tolist(), title=f"Negatives: {title}", note=shown.note
    )


def apart(dataset: DatasetT) -> DatasetT:
    """A dataset to read a few samples of before a run, which leaves no shard in memory.

    A reader keeps the shard that it has read: this process, and the data loading processes forked
    from it, would carry it along for the length of the run.
    """
    in_shards = getattr(dataset, "shard_sizes", None) is not None
    return copy.deepcopy(dataset) if in_shards else dataset


def _sample(dataset: KeyedDataset, index: int, seed: int) -> dict[str, Any]:
    key = (index, derive_seed(seed, "negatives picture", index))
    return {"bad": []} | cast(dict[str, Any], dataset[key])


def _so_far(context: HookContext) -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"Training goes on: step {context.step} of {context.total_steps} at {now}."
