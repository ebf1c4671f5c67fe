"""The recipes from shards as a user starts them: clips and images, from a folder and a server."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import processes
import pytest
from image_files import encoded, photo
from test_moco_recipe import CLIPS as MOCO_CLIPS
from test_moco_recipe import CONFIGS as MOCO_CONFIGS
from test_moco_recipe import RECIPE as MOCO
from test_moco_recipe import SHORT
from test_recipes import RECIPE as DPC
from test_recipes import TINY, assert_one_clear_line, call

from ndavid.data.image_archive import PackedSplit, read_archive, write_archive
from ndavid.data.manifest import ClipRecord
from ndavid.data.shard_writing import ClipFiles, ImageFiles, write_shards


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Path:
    """Sixteen clips in four shards."""
    root = tmp_path_factory.mktemp("clips")
    records = []
    for k in range(16):
        write_clip(root / f"{k}.mp4", num_frames=24, size=(48, 64))
        records.append(ClipRecord(f"{k}.mp4", 0, f"g{k}", 24, 25.0, 64, 48, ("train",), None))
    samples = ClipFiles(records, root)
    write_shards(samples, root / "shards", num_shards=4, classes=["A"], split="train", fold=1)
    return root / "shards"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen images of two classes in four shards, one of them cut inside its last member."""
    root = tmp_path_factory.mktemp("images")
    files = [encoded(photo(k, 32, 32)) for k in range(16)]
    labels = [k % 2 for k in range(16)]
    write_archive(root / "set.npz", ["a", "b"], {"train": PackedSplit(files, labels)})
    source = ImageFiles(read_archive(root / "set.npz", "train"), quality=95)
    write_shards(source, root / "shards", num_shards=4, classes=["a", "b"], split="train")
    broken = root / "shards" / "000002.tar"
    content = broken.read_bytes()
    broken.write_bytes(content[: content.index(b"000002_000003.jpg") + 700])
    return root / "shards"


@pytest.mark.parametrize(
    "places", [["far"], pytest.param(["near", "far"], marks=pytest.mark.slow)], ids=len
)
def test_dpc_from_a_server_is_dpc_from_a_folder(
    clips: Path, tmp_path: Path, places: list[str]
) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

    handler = partial(Quiet, directory=str(clips))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            for name in places:
                place = url if name == "far" else clips
                words = [f"--data.shards={place}/{{000000..000003}}.tar", "--run.num_workers=2"]
                outcome = call(DPC, *TINY, *words, f"--run.output={tmp_path / name}")
                assert outcome.returncode == 0, outcome.stderr
                assert "leaves out 0 of 16 samples" in outcome.stdout + outcome.stderr
        finally:
            server.shutdown()
            thread.join()
    assert processes.last_step(tmp_path / "far") == 16
    processes.assert_same_run(tmp_path / places[0], tmp_path / "far")
    assert (tmp_path / "far" / "negatives.png").exists()


def test_moco_on_clips(clips: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    outcome = call(MOCO, *MOCO_CLIPS, f"--data.shards={clips}", f"--run.output={output}")
    assert outcome.returncode == 0, outcome.stderr
    assert processes.last_step(output) == 4


def image_options(images: Path, output: Path) -> list[str]:
    return [
        f"--config={MOCO_CONFIGS / 'cifar10_packed_resnet20_nda-jigsaw.yaml'}",
        "--data.augment_on=workers",
        "--run.epochs=2",
        *SHORT,
        f"--data.shards={images}",
        f"--run.output={output}",
    ]


def test_moco_on_images_goes_on_without_a_bad_one(images: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    outcome = call(MOCO, *image_options(images, output), "--run.max_bad_fraction=0.1")
    assert outcome.returncode == 0, outcome.stderr
    assert processes.last_step(output) == 8
    assert "val/knn_top1" in outcome.stdout + outcome.stderr
    with (output / "bad_clips.csv").open() as handle:
        ((path, reason, _),) = list(csv.reader(handle))[1:]
    assert "000002.tar/" in path and "its shard lacks it" in reason


@pytest.mark.slow
def test_more_than_one_bad_in_a_hundred_stop_the_run(images: Path, tmp_path: Path) -> None:
    stopped = call(MOCO, *image_options(images, tmp_path / "run"))
    assert_one_clear_line(stopped, "1 of 16 clips cannot be used", "000002.tar")


@pytest.mark.slow
def test_too_few_shards_are_one_clear_line(clips: Path, tmp_path: Path) -> None:
    words = [f"--data.shards={clips}", "--run.num_workers=5", f"--run.output={tmp_path / 'run'}"]
    outcome = call(DPC, *TINY, *words)
    assert_one_clear_line(outcome, "4 shard(s) cannot feed 5 readers", "at least 5 are needed")
