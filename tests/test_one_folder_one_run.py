"""Whatever writes a folder refuses one that another process is writing, before it does any work."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
import scripts
import torch
from image_files import write_tree
from torch import Tensor, nn

from ndavid.data.folder_annotations import parse_folder
from ndavid.data.preparation import prepare
from ndavid.data.shapes import write_shapes
from ndavid.data.shard_writing import ClipFiles, write_shards
from ndavid.data.synthetic import write_motion_clips
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.run_config import RunConfig
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
from ndavid.locks import LOCK_FILE

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


def test_a_run_keeps_its_folder_for_what_its_caller_writes(tmp_path: Path) -> None:
    class One(Method):
        def forward(self, batch: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
            return {"loss": self.weight + batch["x"].float().mean()}

    run = RunConfig(output=str(tmp_path), batch_size=4, num_workers=0, device="cpu")
    lock = tmp_path / LOCK_FILE
    with contextlib.ExitStack() as held:
        fit(One(), Numbers(), run=run, optim=OptimConfig(), lock=held)
        assert lock.exists()
    assert not lock.exists()
    fit(One(), Numbers(), run=run, optim=OptimConfig())
    assert not lock.exists()


# Says at the end whether the folder is still held when a script writes its last files.
WITNESS = """
import runpy, sys
from pathlib import Path
from ndavid.evaluation import report, run_page

script, sys.argv = sys.argv[1], sys.argv[1:]
output = Path(next(word for word in sys.argv if word.startswith("--run.output=")).split("=")[1])

def told(write):
    def wrapped(*words):
        print("held", (output / ".ndavid.lock").exists())
        return write(*words)
    return wrapped

run_page.RunPage.finish = told(run_page.RunPage.finish)
report.write_outputs = told(report.write_outputs)
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.parametrize("recipe", ["pretrain_moco", "train_classifier", "train_gan"])
def test_a_recipe_holds_its_folder_until_its_last_file(recipe: str, tmp_path: Path) -> None:
    write_tree(tmp_path / "images" / "train", {"a": 8, "b": 8}, size=(32, 32))
    own = {
        "pretrain_moco": ["--model.queue_size=8", "--model.bn_splits=1", "--monitor.every=0"],
        "train_classifier": ["--held_out=0.25"],
        "train_gan": [
            "--model.image_size=32",
            "--model.generator_channels=8",
            "--model.discriminator_channels=8",
        ],
    }
    words = ["--data.source=folder", f"--data.root={tmp_path / 'images'}"]
    words += ["--run.batch_size=4", "--run.max_steps=1", "--run.num_workers=0", "--run.device=cpu"]
    words += own[recipe]
    script = tmp_path / "witness.py"
    script.write_text(WITNESS)
    path = Path(__file__).resolve().parent.parent / "recipes" / f"{recipe}.py"
    done = forked.call(script, str(path), *words, f"--run.output={tmp_path / 'run'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "held True" in done.stdout and "held False" not in done.stdout
