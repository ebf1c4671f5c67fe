"""What was left out, and what train and test share, stands before the numbers."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from ndavid.data.config import DataConfig
from ndavid.data.file_digests import file_facts
from ndavid.data.manifest import Manifest, read_manifest
from ndavid.data.transforms import AugmentConfig
from ndavid.errors import DataError
from ndavid.evaluation import motion, retrieval
from ndavid.evaluation.finetune import FinetuneConfig
from ndavid.evaluation.finetune import run as run_finetune
from ndavid.evaluation.knn import KnnConfig, run
from ndavid.evaluation.pretrained import ClassifierConfig
from ndavid.evaluation.views import ViewsConfig

MODEL = ClassifierConfig(encoder="resnet2d3d10_half", head="pool")
VIEWS = ViewsConfig(
    sampling="dense", num_frames=4, frame_stride=2, size=32, clips=1, crops=1, num_workers=0
)


def knn(folder: Path, output: Path, **views) -> KnnConfig:
    return KnnConfig(
        data=DataConfig(root=str(folder)),
        output=str(output),
        model=MODEL,
        views=dataclasses.replace(VIEWS, **views),
        ks=[1, 50],
    )


@pytest.fixture
def prepared(coloured: Path, tmp_path: Path) -> Path:
    """A copy of the set whose manifest knows its files."""
    folder = Path(shutil.copytree(coloured, tmp_path / "set"))
    manifest = read_manifest(folder)
    records = []
    for record in manifest.records:
        facts = file_facts(folder / record.path)
        records.append(dataclasses.replace(record, num_bytes=facts.num_bytes, digest=facts.digest))
    dataclasses.replace(manifest, records=tuple(records)).write(folder)
    return folder


def clip(name: str, group: int) -> str:
    return f"{name}/v_{name}_g{group:02d}_c01.mp4"


def spoil(folder: Path) -> Path:
    """Makes everything wrong at once that a result must tell."""
    manifest = read_manifest(folder)
    shutil.copy(folder / clip("Red", 2), folder / clip("Red", 0))  # a copy across the split
    (folder / clip("Red", 1)).write_bytes(b"no video")
    records = []
    for record in manifest.records:
        if record.path == clip("Green", 0):
            record = dataclasses.replace(record, group="g03", damaged=5)
        if record.path == clip("Green", 1):
            record = dataclasses.replace(record, num_frames=6)
        if record.label != 2 or "train" in record.splits[:1]:
            records.append(dataclasses.replace(record, num_bytes=None, digest=""))
    Manifest(folder, manifest.classes, tuple(records)).write(folder)
    return folder


def test_everything_stands_before_the_numbers(prepared: Path, tmp_path: Path, capsys) -> None:
    result = run(knn(spoil(prepared), tmp_path / "out", on_bad="skip", short="drop"))
    lines = capsys.readouterr().out.splitlines()
    assert lines.pop(0).startswith("no checkpoint")
    first = [line for line in lines if line.startswith("warning: ")]
    assert lines[: len(first)] == first, "warnings come first"
    assert [line.removeprefix("warning: ") for line in first] == result.protocol.warnings
    assert set(result.protocol.warnings) <= set(result.protocol.notes)
    text = "\n".join(first)
    for words in (
        "1 of 4 test videos are no longer than a clip and were dropped",
        "1 test videos could not be read and were left out (on_bad: skip)",
        "1 of 3 classes have no test videos",
        ": Blue.",
        "1 of 4 test videos had damaged frames",
        f"1 of 4 test videos are byte copies of training videos, such as {clip('Red', 0)} of "
        f"{clip('Red', 2)}",
        "1 groups lie on both sides of the split, with 1 of 4 test videos: Green g03",
        "accuracy at k 50 cannot be computed: the gallery has only 12 videos",
    ):
        assert words in text, words
    # Red and green are left: one in two, not one in three.
    assert result.chances == {"top1_k1": 0.5} and result.chance == 0.5
    assert any("no digest of 16 of 16 videos" in note for note in result.protocol.notes)


@pytest.mark.parametrize(
    ("asked", "trained", "tested"),
    [
        ("class", "never guessed right", "no part of accuracy or chance"),
        ("neighbours", "never found", "never asked for"),
        ("motion", "not trained on", "not tested"),
    ],
)
def test_a_missing_class_means_what_the_task_asks(
    asked: str, trained: str, tested: str, prepared: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(prepared)
    # Blue is never tested, red never trained on.
    records = [
        record
        for record in manifest.records
        if (manifest.classes[record.label], record.splits[0])
        not in {("Blue", "test"), ("Red", "train")}
    ]
    Manifest(prepared, manifest.classes, tuple(records)).write(prepared)
    values = {
        "data": DataConfig(root=str(prepared)),
        "output": str(tmp_path / "out"),
        "model": MODEL,
    }
    values |= {"model": MODEL, "views": dataclasses.replace(VIEWS, num_frames=8, frame_stride=1)}
    if asked == "motion":
        result = motion.run(motion.MotionConfig(**values))
    elif asked == "neighbours":
        result = retrieval.run(retrieval.RetrievalConfig(ks=[1], **values))
    else:
        result = run(KnnConfig(ks=[1], **values))
    assert [warning for warning in result.protocol.warnings if "classes" in warning] == [
        f"1 of 3 classes have no training videos, and are {trained}: Red.",
        f"1 of 3 classes have no test videos, and are {tested}: Blue.",
    ]


def test_a_sound_set_warns_of_nothing(prepared: Path, tmp_path: Path, capsys) -> None:
    config = knn(prepared, tmp_path / "out")
    config.ks = [1]
    result = run(config)
    assert result.protocol.warnings == []
    assert "warning" not in capsys.readouterr().out


def replaced(folder: Path) -> str:
    path = folder / clip("Blue", 0)
    path.write_bytes((folder / clip("Blue", 3)).read_bytes() + b"\0")
    return clip("Blue", 0)


def finetune(folder: Path, output: Path, **views) -> FinetuneConfig:
    config = FinetuneConfig(
        data=DataConfig(root=str(folder)),
        output=str(output),
        model=MODEL,
        views=dataclasses.replace(VIEWS, **views),
        augment=AugmentConfig(preset="finetune", size=32),
    )
    config.run.device, config.run.max_steps, config.run.num_workers = "cpu", 1, 0
    return config


def test_a_file_that_was_not_prepared_stops_every_evaluation(
    prepared: Path, tmp_path: Path
) -> None:
    name = replaced(prepared)
    match = rf"{name}: is not the file that was prepared \(\d+ bytes where there were \d+\); 1 of"
    with pytest.raises(DataError, match=match) as caught:
        run(knn(prepared, tmp_path / "out"))
    assert "views.on_changed: warn" in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DataError, match=match):
        run_finetune(finetune(prepared, tmp_path / "ft"))
    assert not list(tmp_path.glob("ft/fold_1/*")), "found out before training"


def test_a_changed_file_is_read_where_one_says_so(prepared: Path, tmp_path: Path) -> None:
    before = run(knn(prepared, tmp_path / "out"))
    name = replaced(prepared)
    result = run(knn(prepared, tmp_path / "out", on_changed="warn"))
    (warning,) = [w for w in result.protocol.warnings if "prepared" in w]
    assert name in warning and warning.startswith("1 of 18 videos are not the files")
    assert result.metrics["top1_k1"].n == before.metrics["top1_k1"].n
    cached = sorted((tmp_path / "out" / "features").glob("*.safetensors"))
    assert len(cached) == 3, "test features are not those of the old file"
