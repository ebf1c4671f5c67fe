"""Which test videos the weights have seen, as the run that made them tells."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ndavid.checkpoint_files import MODEL_FILE
from ndavid.data.config import DataConfig
from ndavid.data.manifest import ClipRecord, Manifest, read_manifest
from ndavid.data.shard_writing import ClipFiles, write_shards
from ndavid.data.union import Part, unite
from ndavid.evaluation.image_views import share_images
from ndavid.evaluation.provenance import checkpoint_of, gallery, trace
from ndavid.models.weights.checkpoint import LoadedCheckpoint


def write_run(folder: Path, manifest: Path, fold: int, spec: str = "jigsaw") -> Path:
    """What a pretraining leaves that tells of its data."""
    (folder / "checkpoints" / "step_3").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        f"data: {{manifest: '{manifest}', fold: {fold}, split: train}}\nnda: {{spec: '{spec}'}}\n"
    )
    return folder


def opened(run: Path) -> LoadedCheckpoint:
    """The weights of a run, without any tensor."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    return LoadedCheckpoint(run / "checkpoints" / "step_3" / MODEL_FILE, "", {}, config)


def test_the_test_videos_of_another_fold_are_a_leak(coloured: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", coloured, fold=1)
    manifest = read_manifest(coloured)
    clean = trace(opened(run), manifest.select("test", 1), manifest.root, 1)
    assert clean.notes == () and clean.details["test_videos_seen"] == 0
    leaky = trace(opened(run), manifest.select("test", 2), manifest.root, 2)
    assert leaky.details["test_videos_seen"] == 6
    assert "LEAK: 6 of the 6 test videos of fold 2" in leaky.notes[0]


def test_a_prepared_copy_is_the_same_video(coloured: Path, tmp_path: Path) -> None:
    copy = tmp_path / "avi"
    copy.mkdir()
    (copy / "manifest.csv").write_text(
        (coloured / "manifest.csv").read_text().replace(".mp4", ".avi")
    )
    (copy / "classes.txt").write_text((coloured / "classes.txt").read_text())
    run = write_run(tmp_path / "run", copy, fold=1)
    found = trace(opened(run), read_manifest(coloured).select("test", 2), coloured, 2)
    assert found.details["test_videos_seen"] == 6


def test_a_union_of_datasets_names_the_same_files_otherwise(coloured: Path, tmp_path: Path) -> None:
    manifest = read_manifest(coloured)
    other = Manifest(tmp_path, ("x",), (dataclasses.replace(manifest.records[0], label=0),))
    union = unite([Part("coloured", manifest), Part("other", other, fold=1)])
    union.write(tmp_path / "union" / "manifest.csv")
    run = write_run(tmp_path / "run", tmp_path / "union", fold=1)
    leaky = trace(opened(run), manifest.select("test", 2), manifest.root, 2)
    assert leaky.details["test_videos_seen"] == 6
    clean = trace(opened(run), manifest.select("test", 1), manifest.root, 1)
    assert clean.details["test_videos_seen"] == 0


def write_union(coloured: Path, folder: Path) -> Manifest:
    """A union with the coloured videos as one part, so that folders come before their paths."""
    manifest = read_manifest(coloured)
    record = dataclasses.replace(manifest.records[0], path="other/only.mp4", label=0)
    other = Manifest(folder, ("x",), (record,))
    union = unite([Part("coloured", manifest), Part("other", other, fold=1)])
    union.write(folder / "manifest.csv")
    assert not {r.path for r in union.records} & {r.path for r in manifest.records}
    return union


def test_a_union_in_shards_has_its_videos(coloured: Path, tmp_path: Path) -> None:
    union = write_union(coloured, tmp_path / "union")
    there = [r for r in union.select("train", 1) if not r.path.endswith("only.mp4")]
    write_shards(
        ClipFiles(there, union.root),
        tmp_path / "shards",
        num_shards=2,
        classes=union.classes,
        split="train",
        fold=1,
    )
    run = write_run(tmp_path / "run", tmp_path / "gone", fold=1)
    config = f"data: {{shards: '{tmp_path / 'shards'}', fold: 1, split: train}}\n"
    (run / "config.yaml").write_text(config)
    manifest = read_manifest(coloured)
    for fold, seen in ((1, 0), (2, 6)):
        found = trace(opened(run), manifest.select("test", fold), manifest.root, fold)
        assert found.details["test_videos_seen"] == seen
        assert any("LEAK" in note for note in found.notes) == bool(seen)


def test_a_union_has_the_videos_of_another_prepared_copy(coloured: Path, tmp_path: Path) -> None:
    write_union(coloured, tmp_path / "union")
    run = write_run(tmp_path / "run", tmp_path / "union", fold=1)
    copy = shutil.copytree(coloured, tmp_path / "elsewhere" / "small")
    text = (copy / "manifest.csv").read_text()
    (copy / "manifest.csv").write_text(text.replace(".mp4", ".avi"))
    manifest = read_manifest(copy)
    for fold, seen in ((1, 0), (2, 6)):
        found = trace(opened(run), manifest.select("test", fold), manifest.root, fold)
        assert found.details["test_videos_seen"] == seen
    # And the other way around: trained on the copy, tested on the union.
    of_copy = write_run(tmp_path / "of_copy", copy, fold=1)
    union = read_manifest(tmp_path / "union")
    tested = union.select("test", 2)
    assert trace(opened(of_copy), tested, union.root, 2).details["test_videos_seen"] == 6


@pytest.mark.parametrize(
    ("trained", "tested", "frames", "seen"),
    [
        ("a.mp4", "a.avi", 31, 1),  # one path, though a copy may have lost a frame
        ("ucf/a.mp4", "a.mp4", 30, 1),
        ("ucf/a.mp4", "a.mp4", 31, 0),  # a name alone
        ("a.mp4", "hmdb/a.mp4", 31, 0),
        ("ucf/x/a.mp4", "x/a.mp4", 31, 1),
        ("ucf/x/a.mp4", "ucf/y/a.mp4", 30, 0),
        ("ucf/xx/a.mp4", "x/a.mp4", 30, 0),
    ],
)
def test_paths_are_compared_from_their_end_by_whole_folders(
    tmp_path: Path, trained: str, tested: str, frames: int, seen: int
) -> None:
    record = ClipRecord(trained, 0, "", 30, 25.0, 8, 8, ("train",))
    Manifest(tmp_path / "set", ("x",), (record,)).write(tmp_path / "set" / "manifest.csv")
    run = write_run(tmp_path / "run", tmp_path / "set", fold=1)
    other = dataclasses.replace(record, path=tested, num_frames=frames)
    found = trace(opened(run), [other], tmp_path / "elsewhere", 1)
    assert found.details["test_videos_seen"] == seen


def test_shards_are_known_by_their_index_not_by_the_manifest_beside_them(
    coloured: Path, tmp_path: Path
) -> None:
    manifest = read_manifest(coloured)
    write_shards(
        ClipFiles(manifest.select("train", 2), manifest.root),
        tmp_path / "shards",
        num_shards=2,
        classes=manifest.classes,
        split="train",
        fold=2,
    )
    run = write_run(tmp_path / "run", tmp_path / "gone", fold=2)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(
        config.replace("data: {", f"data: {{shards: '{tmp_path / 'shards'}', ")
    )
    leaky = trace(opened(run), manifest.select("test", 1), manifest.root, 1)
    assert leaky.details["test_videos_seen"] == 6
    assert f"fold 2 of {tmp_path / 'shards'}" in leaky.notes[0]
    assert (
        trace(opened(run), manifest.select("test", 2), manifest.root, 2).details["test_videos_seen"]
        == 0
    )
    (run / "config.yaml").write_text("data: {source: cifar10, root: x, shards: 'y'}\n")
    (note,) = trace(opened(run), manifest.select("test", 1), manifest.root, 1).notes
    assert "not recorded" in note


def test_a_fine_tuning_run_has_seen_its_train_split(coloured: Path, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", coloured, fold=1)
    (run / "config.yaml").write_text(f"manifest: '{coloured}'\nfold: 2\nmode: finetune\n")
    found = trace(opened(run), read_manifest(coloured).select("test", 1), coloured, 1)
    assert found.details["test_videos_seen"] == 6


def test_what_cannot_be_checked_is_said(coloured: Path, tmp_path: Path) -> None:
    tested = read_manifest(coloured).select("test", 1)
    run = write_run(tmp_path / "run", tmp_path / "gone", fold=1)
    gone = trace(opened(run), tested, coloured, 1)
    assert gone.details["test_videos_seen"] is None and "not checked" in gone.notes[0]
    weights = LoadedCheckpoint(tmp_path / "weights.pth", "", {}, original=True)
    foreign = trace(weights, tested, coloured, 1)
    assert foreign.details == {} and "not recorded" in foreign.notes[0]
    assert trace(None, tested, coloured, 1).notes == ()


def test_one_pretraining_a_fold(coloured: Path, tmp_path: Path) -> None:
    for fold in (1, 2):
        write_run(tmp_path / f"fold{fold}", coloured, fold)
    pattern = str(tmp_path / "fold{fold}")
    manifest = read_manifest(coloured)
    for fold in (1, 2):
        path = checkpoint_of(pattern, fold)
        assert path.endswith(f"fold{fold}")
        assert trace(opened(Path(path)), manifest.select("test", fold), coloured, fold).notes == ()


def test_the_gallery_is_that_of_each_run_once(coloured: Path, tmp_path: Path) -> None:
    for fold in (1, 2):
        write_run(tmp_path / f"fold{fold}", coloured, fold, spec="stitch")
    both = [opened(tmp_path / f"fold{fold}") for fold in (1, 2)]
    assert gallery(both) == [] == gallery([None])
    Image.new("RGB", (4, 4)).save(tmp_path / "fold2" / "negatives.png")
    (picture,) = gallery(both)
    assert picture.image == tmp_path / "fold2" / "negatives.png" and "stitch" in picture.caption
    assert len(gallery([both[1], both[1]])) == 1


@pytest.mark.parametrize(
    ("tested", "trained", "shared"),
    [
        ([], [], True),
        (["ship"], [], True),
        ([], ["ship"], True),
        (["ship", "horse"], ["horse"], True),
        (["ship"], ["horse"], False),
    ],
)
def test_sets_of_some_classes_share_images_where_a_class_is_in_both(
    tested: list[str], trained: list[str], shared: bool
) -> None:
    config = DataConfig(source="cifar10", split="train", classes=tested)
    of_run = {"source": "cifar10", "split": "train", "classes": trained}
    assert share_images(config, of_run) == shared


@pytest.mark.parametrize(
    ("source", "tested", "trained", "shared"),
    [
        ("cifar10", "test", "train", False),
        ("stl10", "train", "train+unlabeled", True),
        ("stl10", "test", "train+unlabeled", False),
        ("celeba", "test", "all", True),
        ("flat", "test", "", True),
        ("flat", "test", "train", False),
        ("folder", "val", "train", False),
    ],
)
def test_a_split_shares_images_with_one_that_holds_it(
    tmp_path: Path, source: str, tested: str, trained: str, shared: bool
) -> None:
    for part in ("train", "test", "val"):
        (tmp_path / part).mkdir()
    config = DataConfig(source=source, root=str(tmp_path), split=tested)  # type: ignore[arg-type]
    of_run = {"source": source, "root": str(tmp_path), "split": trained, "augment_on": "device"}
    assert share_images(config, of_run) == shared
