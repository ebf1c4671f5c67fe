"""A union holds every clip of its parts, once, under one numbering of classes and folds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from ndavid.data.leaks import leaked_groups
from ndavid.data.manifest import ClipRecord, Manifest, read_manifest
from ndavid.data.union import Part, unite
from ndavid.errors import ConfigError


def make(root: Path, classes: tuple[str, ...], folds: tuple[tuple[str, ...], ...]) -> Manifest:
    """One clip a class and entry of ``folds``, which gives the clip's split in each fold."""
    records = tuple(
        ClipRecord(f"{name}/v{k}.mp4", label, f"g{k}", 9, 25.0, 4, 2, splits)
        for label, name in enumerate(classes)
        for k, splits in enumerate(folds)
    )
    return Manifest(root, classes, records)


@pytest.fixture
def small(tmp_path: Path) -> Manifest:
    return make(tmp_path / "small", ("run", "jump"), (("train", "test"), ("test", "train")))


@pytest.fixture
def large(tmp_path: Path) -> Manifest:
    turns = (("train", "train", "test"), ("train", "test", "train"), ("test", "train", "train"))
    return make(tmp_path / "deep" / "large", ("Surf", "run"), turns)


def test_a_fixed_fold_stays_and_the_others_take_turns(small: Manifest, large: Manifest) -> None:
    union = unite([Part("small", small, fold=2), Part("large", large)])
    assert union.num_folds == 3
    for fold in (1, 2, 3):
        for split in ("train", "test"):
            found = Counter(union.root / record.path for record in union.select(split, fold))
            assert found == Counter(
                manifest.root / record.path
                for manifest, own in ((small, 2), (large, fold))
                for record in manifest.select(split, own)
            )
    assert not leaked_groups(union)


def test_what_is_known_of_a_file_goes_with_it(small: Manifest, large: Manifest) -> None:
    known = tuple(
        replace(record, num_bytes=7, digest="ends:" + 32 * "a", damaged=2, decord_ok=True)
        for record in small.records
    )
    union = unite([Part("small", replace(small, records=known), fold=1), Part("large", large)])
    first = union.records[0]
    assert (first.num_bytes, first.digest, first.damaged) == (7, "ends:" + 32 * "a", 2)


def test_labels_follow_each_other_and_shared_names_are_told_apart(
    small: Manifest, large: Manifest, tmp_path: Path
) -> None:
    union = unite([Part("small", small, fold=1), Part("large", large)])
    assert union.classes == ("small/run", "jump", "Surf", "large/run")
    of_class = {record.path: union.classes[record.label] for record in union.records}
    assert of_class["deep/large/run/v0.mp4"] == "large/run"
    assert of_class["small/jump/v1.mp4"] == "jump"
    union.write(tmp_path / "union" / "manifest.csv")
    assert read_manifest(tmp_path / "union").records == union.records


def test_unlabelled_clips_stay_unlabelled(small: Manifest, tmp_path: Path) -> None:
    loose = Manifest(
        tmp_path / "loose", (), (ClipRecord("a.mp4", -1, "", 9, 25.0, 4, 2, ("train", "train")),)
    )
    union = unite([Part("small", small), Part("loose", loose)])
    assert [record.label for record in union.records][-1] == -1


def test_what_cannot_be_united_is_refused(small: Manifest, large: Manifest) -> None:
    with pytest.raises(ConfigError, match="different numbers of folds"):
        unite([Part("small", small), Part("large", large)])
    with pytest.raises(ConfigError, match="small: no fold 3; it has folds 1 to 2"):
        unite([Part("small", small, fold=3), Part("large", large)])
    with pytest.raises(ConfigError, match="two datasets or more"):
        unite([Part("small", small)])
    with pytest.raises(ConfigError, match="of different names"):
        unite([Part("same", small), Part("same", small)])
