"""Samples a second from the loader of a run, with 0, 1 and 2 workers.

    python benchmarks/loader.py --output runs/loader.json
    python benchmarks/loader.py --manifest data/ucf101

The engine's own loader and sampler read whole epochs, and nothing trains meanwhile. Two data sets:

* "clips": DPC's samples of prepared videos (40 frames of 120, 128 px, ``dpc`` augmentation);
* "images": two ``moco_v2_small`` views of images of 32 px, made one by one in the loader. (Image
  sets in memory can have them made in batches on the device instead: loading.py compares.)

Samples a second are of wall time. "A core" divides by the processor time of this process and its
workers: what one core does, whoever else uses the others. Loaders take turns. With w workers the
ideal is w times one worker's speed, as far as there are cores.
"""

from __future__ import annotations

import os
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import part
import psutil
import torch
from made_up_video import write_prepared
from timing import middle, ratio_row
from torch.utils.data import DataLoader

from ndavid.data.clip_sets import open_clips
from ndavid.data.config import TrainingDataConfig
from ndavid.data.image_sources import MemoryImages
from ndavid.data.images import MultiViewImages
from ndavid.data.sampling import DpcBlocks
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, collate
from ndavid.engine.loader import KeyedDataset, batches, build_loader, build_sampler, close
from ndavid.engine.sampler import EpochSampler

WORKERS = (0, 1, 2)


class Feed(NamedTuple):
    """A loader and the sampler that leads it."""

    loader: DataLoader[Any]
    sampler: EpochSampler


class Taken(NamedTuple):
    """What an epoch took, in seconds."""

    wall: float
    processor: float


def clips(manifest: str) -> ClipDataset:
    """DPC's training set."""
    sampler = DpcBlocks()
    found = open_clips(TrainingDataConfig(root=manifest), sampler)
    transform = train_transform(AugmentConfig(preset="dpc"))
    return ClipDataset(found.records, found.root, sampler, transform)


def images(number: int) -> MultiViewImages:
    """Two views of made-up images."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (number, 3, 32, 32), generator=generator).to(torch.uint8)
    labels = torch.zeros(number, dtype=torch.long)
    source = MemoryImages(pixels, labels, ["any"], origin="made up")
    return MultiViewImages(source, train_transform(AugmentConfig(preset="moco_v2_small", size=32)))


def feed(dataset: KeyedDataset, batch_size: int, num_workers: int) -> Feed:
    """The loader as `fit` builds it."""
    sampler = build_sampler(
        dataset, batch_size, seed=0, rank=0, world_size=1, num_workers=num_workers
    )
    return Feed(build_loader(dataset, sampler, collate, num_workers=num_workers), sampler)


def processor_time(loader: DataLoader[Any]) -> float:
    """Seconds of processor time of this process and the loader's workers."""
    iterator: Any = loader._iterator
    workers = [] if iterator is None or not loader.num_workers else iterator._workers
    times = [psutil.Process(worker.pid).cpu_times() for worker in workers]
    return time.process_time() + sum(each.user + each.system for each in times)


def read_epoch(one: Feed, epoch: int) -> Taken:
    """Reads all of an epoch."""
    one.sampler.set_position(epoch, 0)
    start, before = time.perf_counter(), processor_time(one.loader)
    for _ in batches(one.loader):
        pass
    return Taken(time.perf_counter() - start, processor_time(one.loader) - before)


def measure(dataset: KeyedDataset, batch_size: int, rounds: int) -> dict[int, list[Taken]]:
    """Epochs by number of workers, taken in turns; the first, which starts the workers, is left."""
    feeds = {workers: feed(dataset, batch_size, workers) for workers in WORKERS}
    taken: dict[int, list[Taken]] = {workers: [] for workers in WORKERS}
    try:
        for epoch in range(rounds + 1):
            for workers, one in feeds.items():
                found = read_epoch(one, epoch)
                if epoch:
                    taken[workers].append(found)
    finally:
        for one in feeds.values():
            close(one.loader)
    return taken


def rows_of(kind: str, samples: int, taken: dict[int, list[Taken]]) -> list[dict[str, Any]]:
    """Speeds by number of workers."""
    rows = []
    for workers, epochs in taken.items():
        speed, spread = middle([samples / each.wall for each in epochs])
        rows.append(
            {
                "data": kind,
                "workers": workers,
                "samples_per_s": speed,
                "spread": spread,
                "samples_per_core_s": middle([samples / each.processor for each in epochs])[0],
            }
        )
    return rows


def ratios_of(kind: str, rows: list[dict[str, Any]], taken: dict) -> list[dict[str, Any]]:
    """Speed beside that of one worker fewer."""
    ratios = []
    for slower, faster in pairwise(WORKERS):
        row = next(row for row in rows if row["workers"] == faster)
        before = "in the process" if slower == 0 else f"{slower} worker"
        ratios.append(
            ratio_row(
                f"speed of {kind}, {faster} worker{'s' * (faster > 1)} / {before}",
                [each.wall for each in taken[slower]],
                [each.wall for each in taken[faster]],
                note=f"{row['samples_per_s']:.0f} samples/s, "
                f"{row['samples_per_core_s']:.0f} a core",
            )
        )
    return ratios


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--manifest", default="", help="prepared videos; default: made up")
    parser.add_argument("--clips", type=int, default=48, help="made-up clips")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, ratios = [], []
    with tempfile.TemporaryDirectory() as folder:
        manifest = arguments.manifest or str(write_prepared(Path(folder), arguments.clips, 128))
        for kind, dataset, batch in (
            ("clips", clips(manifest), 4),
            ("images", images(arguments.images), 128),
        ):
            taken = measure(dataset, batch, arguments.rounds)
            read = len(dataset) // batch * batch
            found = rows_of(kind, read, taken)
            rows += found
            ratios += ratios_of(kind, found, taken)
    print(f"{'':10s}{'workers':>8s}{'samples/s':>11s}{'spread':>18s}{'a core':>9s}")
    for row in rows:
        low, high = row["spread"]
        print(
            f"{row['data']:10s}{row['workers']:8d}{row['samples_per_s']:11.1f}"
            f"{low:10.1f}{high:8.1f}{row['samples_per_core_s']:9.1f}"
        )
    part.print_ratios(ratios)
    part.write(arguments.output, ratios, cores=os.cpu_count(), rows=rows)


if __name__ == "__main__":
    main()
