"""What each decoder takes for a sample's frames, from original and from prepared clips.

    python benchmarks/decoding.py --output runs/decoding.json
    python benchmarks/decoding.py --clip VIDEO

A sample is DPC's: 40 frames, every third of 120, from the middle of a video of 300 frames, so that
seeking counts. Opening is in the time, as in training; that the decoder was found to read the file
rightly is taken as known, as from a manifest. One core, processor time, everything takes turns.

* "original" is H.264, 320x240, a keyframe every 250 frames; or the video given.
* "prepared" is the same re-encoded as ``prepare.py --short-side 128`` does it: a keyframe every 12.
* "frames" reads folders of JPEGs of the same two sizes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import part
from made_up_video import write_scene
from PIL import Image
from timing import in_turns, keep_to_one_core, middle, processor_seconds, ratio_row
from torch import Tensor

from ndavid.data.decode import BACKENDS, open_reader, probe, verify_backend
from ndavid.data.encode import EncodeSettings, reencode
from ndavid.data.sampling import DpcBlocks
from ndavid.errors import NdavidError

FRAMES, SHORT_SIDE = 300, 128
ORIGINAL, PREPARED = "original", "prepared"


def write_frames(video: Path, folder: Path) -> Path:
    """Every frame of a video as a JPEG."""
    folder.mkdir()
    with open_reader(video) as reader:
        for index in range(len(reader)):
            picture = Image.fromarray(reader.read([index])[0].permute(1, 2, 0).numpy())
            picture.save(folder / f"img_{index + 1:05d}.jpg", quality=90)
    return folder


def sources(clip: Path, folder: Path) -> dict[tuple[str, str], Path]:
    """(backend, kind) -> what it reads; only backends that are installed and read it rightly."""
    prepared = folder / "prepared.mp4"
    reencode(clip, prepared, short_side=SHORT_SIDE)
    found: dict[tuple[str, str], Path] = {}
    for kind, video in ((ORIGINAL, clip), (PREPARED, prepared)):
        for backend in BACKENDS:
            if backend == "frames":
                found[backend, kind] = write_frames(video, folder / f"{kind}_frames")
            elif reads(video, backend):
                found[backend, kind] = video
    return found


def reads(video: Path, backend: str) -> bool:
    """Whether a backend is there and gives the reference's frames; says so if not."""
    try:
        right = verify_backend(video, backend)
    except NdavidError as error:
        print(f"{backend} left out: {error}")
        return False
    if not right:
        print(f"{backend} left out: it misreads {video.name}")
    return right


def reading(path: Path, backend: str, num_frames: int, indices: Tensor) -> Callable[[], None]:
    """Opens a video and reads the frames of a sample."""

    def run() -> None:
        with open_reader(path, backend, num_frames=num_frames, verified=True) as reader:
            reader.read(indices)

    return run


def ratios_of(times: dict[tuple[str, str], list[float]]) -> list[dict]:
    """Each decoder beside PyAV on the original, and prepared beside original."""
    rows = []
    for (backend, kind), taken in times.items():
        note = f"{middle(taken)[0] * 1e3:.1f} ms"
        if kind == PREPARED and (backend, ORIGINAL) in times:
            name = f"{backend}: prepared / original"
            rows.append(ratio_row(name, taken, times[backend, ORIGINAL], note=note))
        elif backend != "pyav":
            name = f"{backend} / pyav, {kind}"
            rows.append(ratio_row(name, taken, times["pyav", kind], note=note))
    return rows


def main() -> None:
    parser = part.arguments_of(__doc__)
    parser.add_argument("--clip", type=Path, help="a video; default: made up")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    keep_to_one_core()
    sampler = DpcBlocks()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        clip = arguments.clip or folder / "original.mp4"
        if not arguments.clip:
            write_scene(clip, FRAMES, EncodeSettings(gop=250))
        info = probe(clip)
        indices = sampler.sample(info.num_frames)
        runs = {
            (backend, kind): reading(path, backend, info.num_frames, indices)
            for (backend, kind), path in sources(clip, folder).items()
        }
        times = in_turns(runs, arguments.rounds, processor_seconds)
    rows = [
        {"backend": backend, "kind": kind, "milliseconds": middle(taken)[0] * 1e3}
        for (backend, kind), taken in times.items()
    ]
    print(f"{info.codec}, {info.width}x{info.height}, {info.num_frames} frames; one core")
    for row in rows:
        print(f"{row['backend']:12s}{row['kind']:10s}{row['milliseconds']:9.1f} ms")
    ratios = ratios_of(times)
    part.print_ratios(ratios)
    facts = {"codec": info.codec, "size": [info.height, info.width], "frames": info.num_frames}
    part.write(arguments.output, ratios, clip=facts, rounds=arguments.rounds, rows=rows)


if __name__ == "__main__":
    main()
