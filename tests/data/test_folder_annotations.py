"""One's own folder: which side a clip is on is known or asked, never guessed."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from ndavid.data.folder_annotations import parse_folder
from ndavid.data.split_names import side_called, sides_hinted
from ndavid.errors import DataError
from tests.data.test_annotations import touch


def sides(folder: Path, **arguments) -> dict[str, set[str]]:
    """The names of the clips on each side."""
    (fold,) = parse_folder(folder, **arguments).splits
    found: dict[str, set[str]] = {}
    for clip, entry in fold.items():
        found.setdefault(entry.split, set()).add(Path(clip).stem)
    return found


@pytest.mark.parametrize(
    ("train", "test", "val"),
    [
        ("train", "test", "valid"),
        ("Train", "Test", "Val"),
        ("TRAIN", "TEST", "VALID"),
        ("training", "testing", "validation"),
        ("Training", "Testing", "Validation"),
        ("trainset", "testset", "dev"),
    ],
)
def test_split_folders_under_their_usual_names(tmp_path: Path, train: str, test: str, val: str):
    for place, name in ((train, "seen"), (test, "tested"), (val, "chosen")):
        touch(tmp_path, f"{place}/a/{name}_a.mp4", f"{place}/b/{name}_b.mp4")
    annotations = parse_folder(tmp_path)
    assert annotations.classes == ("a", "b") and annotations.notes == ()
    assert sides(tmp_path) == {
        "train": {"seen_a", "seen_b"},
        "test": {"tested_a", "tested_b"},
        "val": {"chosen_a", "chosen_b"},
    }


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            "extra/a/3.mp4",
            r"folders test, train and, beside them, extra/: .*--layout classes",
        ),
        ("loose.mp4", r"split folders test, train and, beside them, loose\.mp4: .*Move what is"),
        ("train/a/test/3.mp4", r"split folders lie below the top: train/a/test\."),
        ("train/train/a/3.mp4", r"below the top: train/train\. Lay the videos out"),
    ],
)
def test_a_tree_that_is_half_a_split_is_an_error(tmp_path: Path, extra: str, message: str):
    touch(tmp_path, "train/a/1.mp4", "test/a/2.mp4", extra)
    with pytest.raises(DataError, match=message):
        parse_folder(tmp_path)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test/a/1.mp4"], "split folders test, none of them to train on"),
        (["test/a/1.mp4", "val/a/2.mp4"], "test, val, none of them to train on"),
        (["train_videos/a/1.mp4", "test_videos/a/2.mp4"], "test_videos, train_videos may be split"),
        (["myTrain/1.mp4", "myTest/2.mp4", "more/3.mp4"], "myTest, myTrain may be split folders"),
        (["UCF-101-train2/a/1.mp4"], "UCF-101-train2 may be split folders"),
        (["set/train/a/1.mp4", "set/test/a/2.mp4"], "below the top: set/test, set/train"),
        (
            ["a/train/1.mp4", "a/test/2.mp4", "b/train/3.mp4"],
            "top: a/test, a/train, b/train",
        ),
        (["bus/1.mp4", "train/2.mp4"], "split folders train and, beside them, bus/"),
    ],
)
def test_a_tree_that_looks_like_a_split_is_an_error(tmp_path: Path, names, message: str):
    touch(tmp_path, *names)
    with pytest.raises(DataError, match=message) as caught:
        parse_folder(tmp_path)
    assert "--layout classes" in str(caught.value)


def test_whoever_says_that_they_are_classes_gets_classes(tmp_path: Path):
    touch(tmp_path, "bus/1.mp4", "train/2.mp4", "bus/test/3.mp4")
    assert parse_folder(tmp_path, layout="classes").classes == ("bus", "train")
    touch(tmp_path / "split", "train/train/1.mp4", "test/train/2.mp4")
    annotations = parse_folder(tmp_path / "split", layout="splits")
    assert annotations.classes == ("train",)
    assert Counter(e.split for e in annotations.splits[0].values()) == {"train": 1, "test": 1}
    with pytest.raises(DataError, match="holds no split folder and, beside them, split/"):
        parse_folder(touch(tmp_path / "other", "split/1.mp4"), layout="splits")
    with pytest.raises(ValueError, match="no layout 'folds'"):
        parse_folder(tmp_path, layout="folds")  # type: ignore[arg-type]


def test_class_names_with_a_split_word_among_others_are_classes(tmp_path: Path):
    touch(tmp_path, "training dog/1.mp4", "walking/2.mp4", "driving/3.mp4")
    assert parse_folder(tmp_path).classes == ("driving", "training dog", "walking")


def test_empty_class_folders_are_named(tmp_path: Path):
    touch(tmp_path, "a/1.mp4", "b/notes.txt", "c/d/notes.txt", ".hidden/notes.txt")
    annotations = parse_folder(tmp_path)
    assert annotations.classes == ("a",)
    assert annotations.notes == ("2 folders hold no videos, and no clip comes of it: b, c",)
    split = tmp_path / "split"
    touch(split, "train/a/1.mp4", "train/b/1.mp4", "test/a/1.mp4", "test/b/x.txt", "val/x.txt")
    touch(split, "labels/x.txt")
    assert parse_folder(split).notes == (
        "2 folders hold no videos, and no clip comes of it: val, test/b",
    )


def test_a_fraction_is_no_second_test_split(tmp_path: Path):
    touch(tmp_path, *(f"train/a/{k}.mp4" for k in range(4)), "test/a/9.mp4")
    with pytest.raises(DataError, match="has a test split already: leave --test-fraction out"):
        parse_folder(tmp_path, test_fraction=0.5)
    (tmp_path / "test").rename(tmp_path / "val")
    found = sides(tmp_path, test_fraction=0.5)
    assert found["val"] == {"9"} and len(found["test"]) == len(found["train"]) == 2


def test_an_odd_name_is_passed_over_and_an_odd_folder_is_an_error(tmp_path: Path):
    touch(tmp_path, "a/1.mp4", "a/two\nlines.mp4", "a/red\x1b[31m.mp4")
    assert sides(tmp_path) == {"train": {"1"}}
    touch(tmp_path, "b\x1b[2J/1.mp4")
    with pytest.raises(DataError, match="control character; rename it") as caught:
        parse_folder(tmp_path)
    assert str(caught.value).isprintable() and r"'b\x1b[2J'" in str(caught.value)
    only = touch(tmp_path / "only", "two\nlines.mp4")
    with pytest.raises(DataError, match=r"none of its 1 videos can be used; .*control character"):
        parse_folder(only)


def linked(folder: Path, *names: str, to: str, hard: bool = False) -> None:
    """Second names of the files below the folder `to`, by the same path below their own."""
    for name in names:
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        target = folder / to / Path(*Path(name).parts[1:])
        if hard:
            place.hardlink_to(target)
        else:
            place.symlink_to(os.path.relpath(target, place.parent))


@pytest.mark.parametrize("hard", [False, True])
def test_split_folders_of_links_to_a_folder_beside_them_are_refused(tmp_path: Path, hard: bool):
    touch(tmp_path, "all/a/1.mp4", "all/a/2.mp4")
    linked(tmp_path, "train/a/1.mp4", "test/a/2.mp4", to="all", hard=hard)
    with pytest.raises(DataError, match=r"test/ holds nothing but links .*such as test/a/2\.mp4"):
        parse_folder(tmp_path)
    with pytest.raises(DataError, match="give --videos a folder that holds the split folders"):
        parse_folder(tmp_path, layout="splits")
    # The cure that is told.
    kept = (tmp_path / "all").rename(tmp_path.parent / f"{tmp_path.name}-all")
    for place in ("train/a/1.mp4", "test/a/2.mp4"):
        if not hard:
            (tmp_path / place).unlink()
            (tmp_path / place).symlink_to(kept / "a" / Path(place).name)
    assert sides(tmp_path) == {"train": {"1"}, "test": {"2"}}


def test_a_split_folder_of_links_into_another_one_is_refused(tmp_path: Path):
    touch(tmp_path, "train/a/1.mp4", "train/a/2.mp4")
    linked(tmp_path, "test/a/2.mp4", to="train")
    with pytest.raises(DataError, match="test/ holds nothing but links"):
        parse_folder(tmp_path)
    # One file of its own, and the links are left out as everywhere, and told.
    touch(tmp_path, "test/a/3.mp4")
    assert sides(tmp_path) == {"train": {"1", "2"}, "test": {"3"}}


def test_a_split_folder_that_is_a_link_to_another_one_is_refused(tmp_path: Path):
    touch(tmp_path, "train/a/1.mp4", "test/a/2.mp4")
    (tmp_path / "val").symlink_to("test")
    with pytest.raises(DataError, match=r"val/ holds nothing but links .*or take val/ away"):
        parse_folder(tmp_path)
    (tmp_path / "val").unlink()
    assert sides(tmp_path) == {"train": {"1"}, "test": {"2"}}


def test_a_class_of_links_is_no_split(tmp_path: Path):
    touch(tmp_path, "dev/1.mp4", "b/2.mp4")
    linked(tmp_path, "test/1.mp4", to="dev")
    assert parse_folder(tmp_path, layout="classes").classes == ("b", "dev")


def test_names_of_sides():
    assert side_called("Training") == "train" and side_called("VALID") == "val"
    assert side_called("trained") is None and side_called("contest") is None
    assert sides_hinted("UCF101_TrainVideos2") == {"train"}
    assert sides_hinted("my-test") == {"test"} and sides_hinted("heldout") == {"val"}
    assert sides_hinted("contest") == sides_hinted("constrain") == set()
