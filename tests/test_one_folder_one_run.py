"""Whatever writes a folder refuses one that another process is writing, before it does any work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import scripts
import torch
from torch import Tensor, nn

from ndavid.data.folder_annotations import parse_folder
from ndavid.data.preparation import prepare
from ndavid.data.shapes import write_shapes
from ndavid.data.shard_writing import ClipFiles, write_shards
from ndavid.data.synthetic import write_motion_clips
from ndavid.engine.optim import OptimConfig
from ndavid.engine.runner import RunConfig, fit
from ndavid.errors import ConfigError
from ndavid.evaluation import (
    anomaly,
    detection,
    finetune,
    generation,
    image_finetune,
    image_knn,
    image_linear,
    knn,
    linear,
    motion,
    ood,
    retrieval,
)

HOLDER = """
import contextlib, sys
from ndavid.locks import hold, hold_file
with hold(sys.argv[1]), hold_file(sys.argv[1] + "/images.npz"):
    print("held", flush=True)
    sys.stdin.read()
"""

EVALUATORS = {
    module.__name__.rsplit(".", 1)[-1]: (module, config)
    for module, config in [
        (anomaly, anomaly.AnomalyConfig),
        (detection, detection.DetectionConfig),
        (finetune, finetune.FinetuneConfig),
        (generation, generation.GenerationConfig),
        (image_finetune, image_finetune.ImageFinetuneConfig),
        (image_knn, image_knn.ImageKnnConfig),
        (image_linear, image_linear.ImageLinearConfig),
        (knn, knn.KnnConfig),
        (linear, linear.LinearConfig),
        (motion, motion.MotionConfig),
        (ood, ood.OodConfig),
        (retrieval, retrieval.RetrievalConfig),
    ]
}

# What a config has to name before it is one.
NEEDED: dict[str, dict[str, Any]] = {"anomaly": {"nda": ["jigsaw"]}, "ood": {"nda": ["jigsaw"]}}


@pytest.fixture(scope="module")
def taken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A folder that another process holds, and the id of that process."""
    folder = tmp_path_factory.mktemp("taken")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield folder, process.pid
    process.communicate("")
    assert list(folder.iterdir()) == []


class Method(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, batch: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        raise AssertionError("it must not come to a step")


class Numbers:
    def __len__(self) -> int:
        return 4

    def __getitem__(self, key: tuple[int, int]) -> dict[str, int]:
        return {"x": key[0]}


def train(output: Path) -> None:
    run = RunConfig(output=str(output), batch_size=2, num_workers=0, device="cpu")
    fit(Method(), Numbers(), run=run, optim=OptimConfig())


def prepare_folder(output: Path) -> None:
    videos = output.parent / "videos"
    for name in ("A/v1.avi", "B/v2.avi"):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        (videos / name).write_bytes(b"x")
    prepare(parse_folder(videos), videos, output, progress=False)


def script(name: str, *words: str) -> Callable[[Path], None]:
    def call(output: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [name, *(w.replace("OUT", str(output)) for w in words)])
            scripts.load(scripts.ROOT / name).main()

    return call


@pytest.mark.parametrize(
    "write",
    [
        train,
        prepare_folder,
        write_motion_clips,
        write_shapes,
        lambda output: write_shards(
            ClipFiles([], output), output, num_shards=1, classes=(), split="train"
        ),
        script("datasets/download.py", "ucf101", "--output", "OUT", "--mirror", "file:///nowhere"),
        script(
            "datasets/pack_images.py", "flat", *("--root", "none", "--splits", ""),
            *("--output", "OUT/images.npz"),
        ),
    ],
    ids=["fit", "prepare", "motion_clips", "shapes", "shards", "download", "pack_images"],
)  # fmt: skip
def test_a_writer_refuses_a_folder_in_use(
    taken: tuple[Path, int], write: Callable[[Path], object]
) -> None:
    folder, pid = taken
    with pytest.raises(ConfigError, match=f"is in use by process {pid} on "):
        write(folder)


@pytest.mark.parametrize("name", EVALUATORS)
def test_an_evaluation_refuses_a_folder_in_use(taken: tuple[Path, int], name: str) -> None:
    folder, pid = taken
    module, config = EVALUATORS[name]
    with pytest.raises(ConfigError, match=f"is in use by process {pid} on "):
        module.run(config(output=str(folder), **NEEDED.get(name, {})))


def test_of_several_ranks_only_the_first_holds_the_folder(
    taken: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConfigError, match="checkpoint is empty"):
        anomaly.run(anomaly.AnomalyConfig(output=str(taken[0]), **NEEDED["anomaly"]))
