"""What a training sample costs, beside what decoding alone costs.

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
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from av.video.reformatter import VideoReformatter

from ndavid.data.decode import open_reader, probe
from ndavid.data.encode import reencode, write_video
from ndavid.data.manifest import ClipRecord
from ndavid.data.sampling import DpcBlocks
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, collate

SAMPLE_LIMIT, PREPARED_LIMIT = 1.5, 0.6
BATCH = 16


def write_scene(path: Path) -> None:
    """120 frames of 320x240: a camera panning over a textured scene, with sensor noise."""
    generator = torch.Generator().manual_seed(0)
    octaves = (torch.rand(1, 3, 2**k, 2**k, generator=generator) for k in (3, 5, 7))
    scene = sum(F.interpolate(o, size=(360, 560), mode="bicubic") for o in octaves)[0] / 3
    frames = []
    for t in range(120):
        view = scene[:, t // 2 : t // 2 + 240, 2 * t : 2 * t + 320]
        noise = 0.02 * torch.randn(3, 240, 320, generator=generator)
        frames.append(((view + noise).clamp(0, 1) * 255).to(torch.uint8))
    write_video(path, torch.stack(frames), fps=25.0)


def pyav_alone(path: Path, indices: list[int]) -> None:
    """Decodes up to the last index and converts the frames asked for."""
    converter, wanted = VideoReformatter(), set(indices)
    threads = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
    with av.open(str(path), metadata_errors="replace") as container:
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
    with av.open(str(path), metadata_errors="replace") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(stream)):
            if index in wanted:
                frame.to_ndarray(format="rgb24")
            if index == indices[-1]:
                break


def record_of(path: Path, sampler: DpcBlocks) -> ClipRecord:
    """A manifest row that makes the first span of the video the whole of it."""
    info = probe(path)
    if info.num_frames < sampler.span:
        raise SystemExit(f"{path} has {info.num_frames} frames, {sampler.span} are needed")
    return ClipRecord(
        path=path.name,
        label=0,
        group="",
        num_frames=sampler.span,
        fps=info.fps,
        width=info.width,
        height=info.height,
        splits=("train",),
    )


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


def measure(runs: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of processor time of every run, taken in turns."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(rounds + 2):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if turn >= 2:  # the first two warm caches up
                times[name].append((time.process_time() - start) * 1e3)
    return times


def ratio_row(name: str, top: list[float], bottom: list[float], limit: float) -> dict:
    """The ratio of the medians, and the quartiles of the ratios taken turn by turn."""
    low, _, high = statistics.quantiles([a / b for a, b in zip(top, bottom, strict=True)], n=4)
    ratio = statistics.median(top) / statistics.median(bottom)
    return {
        "name": name,
        "ratio": ratio,
        "quartiles": [low, high],
        "limit": limit,
        "ok": ratio <= limit,
    }


def report(times: dict[str, list[float]]) -> dict:
    """Prints the tables and returns what was printed."""
    print(f"{'one core':22s}{'ms':>9s}{'quartiles':>20s}")
    rows = []
    for name, taken in times.items():
        low, median, high = statistics.quantiles(taken, n=4)
        print(f"{name:22s}{median:9.2f}{low:12.2f}{high:8.2f}")
        quartiles = [low, high]
        rows.append({"name": name.strip(), "milliseconds": median, "quartiles": quartiles})
    ratios = [
        ratio_row("sample / PyAV alone", times["sample"], times["PyAV alone"], SAMPLE_LIMIT),
        ratio_row("prepared / sample", times["prepared"], times["sample"], PREPARED_LIMIT),
    ]
    print(f"\n{'ratio':22s}{'':9s}{'quartiles':>20s}{'limit':>8s}")
    for row in ratios:
        low, high = row["quartiles"]
        verdict = "" if row["ok"] else "  OVER"
        print(
            f"{row['name']:22s}{row['ratio']:9.2f}{low:12.2f}{high:8.2f}{row['limit']:8.1f}{verdict}"
        )
    return {"rows": rows, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clip", type=Path, help="a video of 120 frames or more; default: made up")
    parser.add_argument("--backend", default="pyav")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        clip = arguments.clip or Path(folder) / "scene.mp4"
        if not arguments.clip:
            write_scene(clip)
        prepared = Path(folder) / "prepared.mp4"
        reencode(clip, prepared, short_side=128)
        info = probe(clip)
        print(f"{clip.name}: {info.codec}, {info.width}x{info.height}, {info.num_frames} frames\n")
        results = report(measure(stages(clip, prepared, arguments.backend), arguments.rounds))
    if arguments.output:
        facts = {
            "machine": platform.machine(),
            "processor": platform.processor(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "av": av.__version__,
            "backend": arguments.backend,
            "clip": {"name": clip.name, "codec": info.codec, "size": [info.height, info.width]},
            "rounds": arguments.rounds,
        }
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(facts | results, indent=2) + "\n")


if __name__ == "__main__":
    main()
