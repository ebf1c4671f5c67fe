"""What a training sample costs: a clip beside decoding alone, image views beside torchvision's.

    python benchmarks/loading.py --output runs/loading.json
    python benchmarks/loading.py --clip VIDEO --backend decord

A sample is DPC's: 40 frames, every third of 120, with the `dpc` augmentation (flip, crop, resize,
gray, colour jitter in every frame) to 128 pixels. Everything runs on one core. Times are processor
time, which other programs cannot add to, and what is compared takes turns.

* "PyAV alone" decodes the span from its start and turns the 40 frames into RGB arrays, with PyAV
  and nothing of ours, single-threaded, one converter for all frames (PyAV's quickest way).
* "PyAV, to_ndarray" is the usual way: `frame.to_ndarray(format="rgb24")`, a converter a frame.
* "sample" is `ClipDataset[0, seed]`: opening, decoding, augmenting, laying out.
* "prepared" is the same from a clip re-encoded as `prepare --short-side 128 --gop 12` does it.

Limits: a sample 1.5x PyAV alone; a prepared sample 0.6x a sample.

Then views of images of 32 pixels with MoCo v2's augmentation without blur, as floats:

* "torchvision v2" transforms image by image and stacks; on tensors, and on PIL images.
* "BatchAugment" is ours for the whole batch.
* "one by one" and "gathered" read stored images, without augmentation, and collate them.

On one core in processor time; on two cores in wall time, torchvision as two processes that share
the images and send nothing back, ours as one process with two threads. Limit: ours takes at most a
fifth of torchvision's time.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import av
import part
import torch
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter
from made_up_video import record_of, write_scene
from timing import in_turns, keep_to_one_core, middle, processor_seconds, ratio_row, wall_seconds
from torchvision.transforms import v2

from ndavid.data.batch_augment import BatchAugment
from ndavid.data.decode import open_reader, probe
from ndavid.data.decoding.pyav_versions import open_video
from ndavid.data.encode import reencode
from ndavid.data.images import ImageDataset, MemoryImages
from ndavid.data.sampling import DpcBlocks
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, collate

SAMPLE_LIMIT, PREPARED_LIMIT, VIEWS_LIMIT = 1.5, 0.6, 1 / 5
BATCH = 16
IMAGES, IMAGE_SIZE = 256, 32


def pyav_alone(path: Path, indices: list[int]) -> None:
    """Decodes up to the last index and converts the frames asked for."""
    converter, wanted = VideoReformatter(), set(indices)
    threads = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
    with open_video(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                converter.reformat(frame, format="rgb24", **threads).to_ndarray()
            if index == indices[-1]:
                break


def pyav_to_ndarray(path: Path, indices: list[int]) -> None:
    """The same as PyAV's examples write it."""
    wanted = set(indices)
    with open_video(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                frame.to_ndarray(format="rgb24")
            if index == indices[-1]:
                break


def stages(path: Path, prepared: Path, backend: str) -> dict[str, Callable[[], object]]:
    """What is timed, by name; each is given the same frames."""
    sampler, transform = DpcBlocks(), train_transform(AugmentConfig(preset="dpc"))
    indices = sampler.sample(sampler.span)
    seeds = iter(range(1_000_000))
    with open_reader(path, backend) as reader:
        frames = reader.read(indices)
    with open_reader(prepared, backend) as reader:
        small_frames = reader.read(indices)

    def dataset(clip: Path) -> ClipDataset:
        records = [record_of(clip, sampler)]
        return ClipDataset(records, clip.parent, sampler, transform, backend=backend)

    def decode(clip: Path) -> None:
        with open_reader(clip, backend, num_frames=sampler.span) as reader:
            reader.read(indices)

    def augment(clip: torch.Tensor) -> torch.Tensor:
        return transform(clip, torch.Generator().manual_seed(next(seeds)))

    whole, small = dataset(path), dataset(prepared)
    batch = [whole[0, seed] for seed in range(BATCH)]
    return {
        "PyAV alone": lambda: pyav_alone(path, indices.tolist()),
        "PyAV, to_ndarray": lambda: pyav_to_ndarray(path, indices.tolist()),
        "sample": lambda: whole[0, next(seeds)],
        "  decode": lambda: decode(path),
        "  augment": lambda: augment(frames),
        "prepared": lambda: small[0, next(seeds)],
        "  decode, prepared": lambda: decode(prepared),
        "  augment, prepared": lambda: augment(small_frames),
        f"collate {BATCH}": lambda: collate(batch),
    }


def torchvision_views(images: list) -> torch.Tensor:
    """MoCo v2's augmentation by torchvision's transforms, image by image, as one float batch."""
    steps = [] if isinstance(images[0], torch.Tensor) else [v2.ToImage()]
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(IMAGE_SIZE, (0.2, 1.0)),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomHorizontalFlip(),
            *steps,
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return torch.stack([transform(image) for image in images])


def made_up_images() -> torch.Tensor:
    """uint8 (IMAGES, 3, 32, 32), smooth as photographs are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, 6, 6, generator=generator)
    return (F.interpolate(coarse, size=IMAGE_SIZE, mode="bicubic").clamp(0, 1) * 255).byte()


def image_stages(images: torch.Tensor) -> dict[str, Callable[[], object]]:
    """What is timed of images on one core."""
    augment = BatchAugment(AugmentConfig(preset="moco_v2_small", size=IMAGE_SIZE))
    tensors, pictures = list(images), [v2.functional.to_pil_image(image) for image in images]
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(len(images), dtype=torch.long)
    stored = ImageDataset(MemoryImages(images, labels, ["any"], origin="made up"))
    keys = [(index, 0) for index in torch.randperm(len(images), generator=generator).tolist()]
    return {
        "torchvision v2": lambda: torchvision_views(tensors),
        "torchvision v2, PIL": lambda: torchvision_views(pictures),
        "BatchAugment": lambda: augment(images, generator),
        "one by one": lambda: collate([stored[key] for key in keys]),
        "gathered": lambda: collate(stored.__getitems__(keys)),
    }


def two_core_stages(
    images: torch.Tensor, pool: ProcessPoolExecutor
) -> dict[str, Callable[[], object]]:
    """The same augmentation on two cores; every process holds its images already."""

    def everywhere(kind: str) -> None:
        list(pool.map(half_the_views, [kind, kind]))

    augment = BatchAugment(AugmentConfig(preset="moco_v2_small", size=IMAGE_SIZE))
    generator = torch.Generator().manual_seed(0)
    return {
        "torchvision v2": lambda: everywhere("tensors"),
        "torchvision v2, PIL": lambda: everywhere("pictures"),
        "BatchAugment": lambda: augment(images, generator),
    }


HALVES: dict[str, list] = {}


def start_worker() -> None:
    torch.set_num_threads(1)
    HALVES["tensors"] = list(made_up_images()[: IMAGES // 2])
    HALVES["pictures"] = [v2.functional.to_pil_image(image) for image in HALVES["tensors"]]


def half_the_views(kind: str) -> None:
    torchvision_views(HALVES[kind])


def report(times: dict[str, list[float]], title: str, limits: dict[str, float]) -> dict:
    """Prints the tables and returns what was printed; `limits` are by "this / that"."""
    print(f"{title:31s}{'ms':>9s}{'quartiles':>20s}")
    rows = []
    for name, taken in times.items():
        milliseconds = [seconds * 1e3 for seconds in taken]
        median, (low, high) = middle(milliseconds)
        print(f"{name:31s}{median:9.2f}{low:12.2f}{high:8.2f}")
        quartiles = [low, high]
        rows.append({"name": name.strip(), "milliseconds": median, "quartiles": quartiles})
    print()
    ratios = []
    for name, limit in limits.items():
        top, bottom = name.split(" / ")
        ratios.append(ratio_row(f"{name}, {title}", times[top], times[bottom], limit))
    part.print_ratios(ratios)
    print()
    return {"rows": rows, "ratios": ratios}


def report_clips(clip: Path, backend: str, rounds: int) -> dict:
    """Times a training sample on one core."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.mp4"
        reencode(clip, prepared, short_side=128)
        info = probe(clip)
        print(f"{clip.name}: {info.codec}, {info.width}x{info.height}, {info.num_frames} frames\n")
        times = in_turns(stages(clip, prepared, backend), rounds, processor_seconds)
    limits = {"sample / PyAV alone": SAMPLE_LIMIT, "prepared / sample": PREPARED_LIMIT}
    facts = {"name": clip.name, "codec": info.codec, "size": [info.height, info.width]}
    return {"clip": facts} | report(times, "one core", limits)


def report_images(rounds: int, cores: set[int]) -> dict:
    """Times views of small images, on the core in use and then on two of `cores`."""
    images = made_up_images()
    ours = {
        f"BatchAugment / {name}": VIEWS_LIMIT for name in ("torchvision v2", "torchvision v2, PIL")
    }
    title = f"{IMAGES} views, "
    times = in_turns(image_stages(images), rounds, processor_seconds)
    results = {"one core": report(times, f"{title}one core", ours | {"gathered / one by one": 1.0})}
    if len(cores) < 2:
        return results
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(2)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn, initializer=start_worker) as pool:
        times = in_turns(two_core_stages(images, pool), rounds, wall_seconds)
    return results | {"two cores": report(times, f"{title}two cores", ours)}


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--clip", type=Path, help="a video of 120 frames or more; default: made up")
    parser.add_argument("--backend", default="pyav")
    parser.add_argument("--rounds", type=int, default=40)
    arguments = parser.parse_args()
    cores = keep_to_one_core()
    with tempfile.TemporaryDirectory() as folder:
        clip = arguments.clip or Path(folder) / "scene.mp4"
        if not arguments.clip:
            write_scene(clip)
        results = report_clips(clip, arguments.backend, arguments.rounds)
    images = report_images(arguments.rounds, cores)
    ratios = [row for found in (results, *images.values()) for row in found["ratios"]]
    part.write(
        arguments.output,
        ratios,
        av=av.__version__,
        backend=arguments.backend,
        rounds=arguments.rounds,
        clips=results,
        images=images,
    )


if __name__ == "__main__":
    main()
