"""Image folders: which part is trained on is known, never guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from ndavid.data.image_folders import open_flat, open_tree
from ndavid.errors import DataError


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Train", "TEST"), ("training", "Testing")]
)
def test_splits_are_found_under_their_usual_names(tmp_path: Path, train: str, test: str):
    pictures(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{test}/a/3.png", f"{test}/b/4.png")
    seen, tested = open_tree(tmp_path, "train"), open_tree(tmp_path, "test")
    assert seen.classes == tested.classes == ("a", "b")
    assert [Path(seen.name(i)).name for i in range(len(seen))] == ["1.png", "2.png"]
    assert [Path(tested.name(i)).name for i in range(len(tested))] == ["3.png", "4.png"]
    flat = open_flat(tmp_path, "train")
    assert [Path(flat.name(i)).name for i in range(len(flat))] == ["1.png", "2.png"]


def test_a_folder_that_carries_the_very_name_comes_first(tmp_path: Path):
    pictures(tmp_path, "train/a/1.png", "training/b/2.png")
    assert open_tree(tmp_path, "train").classes == ("a",)
    pictures(tmp_path, "valid/a/1.png", "Validation/a/2.png")
    with pytest.raises(DataError, match="which is val: Validation, valid"):
        open_tree(tmp_path, "val")


def test_split_folders_are_no_classes(tmp_path: Path):
    pictures(tmp_path, "Train/a/1.png", "Test/a/2.png", "more/a/3.png")
    with pytest.raises(DataError, match="split folders Test, Train, which are no classes"):
        open_tree(tmp_path, "")
    # Whoever lists them says that they are.
    (tmp_path / "list.txt").write_text("Train\nmore\n")
    assert open_tree(tmp_path, "", str(tmp_path / "list.txt")).classes == ("Train", "more")
    vehicles = pictures(tmp_path / "vehicles", "train/1.png", "bus/2.png")
    assert open_tree(vehicles, "").classes == ("bus", "train")


def test_test_images_are_not_trained_on_for_want_of_a_training_folder(tmp_path: Path):
    pictures(tmp_path, "mine/1.png", "2.png")
    assert len(open_flat(tmp_path, "train")) == 2
    pictures(tmp_path, "Test/3.png")
    with pytest.raises(DataError, match=r"no folder train, and Test would be trained on"):
        open_flat(tmp_path, "train")
    assert len(open_flat(tmp_path, "")) == 3


def test_a_class_without_images_is_named_escaped(tmp_path: Path):
    pictures(tmp_path, "a/1.png")
    (tmp_path / "b\x1b[2J").mkdir()
    (note,) = open_tree(tmp_path, "").notes
    assert note == r"classes without images: 1 (b\x1b[2J)"


def test_a_missing_split_names_those_that_are_there(tmp_path: Path) -> None:
    for name in ("train", "test"):
        (tmp_path / name / "cat").mkdir(parents=True)
    with pytest.raises(DataError, match=r"holds test, train: name a split \(data\.split, test_spl"):
        open_tree(tmp_path, "val")
