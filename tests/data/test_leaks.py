"""A source on two sides of a split is found, and only that."""

from __future__ import annotations

from pathlib import Path

from ndavid.data.leaks import leaked_groups, sources_shared_by_classes
from ndavid.data.manifest import ClipRecord, Manifest


def record(path: str, label: int, group: str, *splits: str) -> ClipRecord:
    return ClipRecord(path, label, group, 10, 25.0, 32, 32, splits)


def test_leaks_are_per_class_and_fold():
    manifest = Manifest(
        Path(),
        ("a", "b"),
        (
            record("a/1", 0, "g01", "train", "train"),
            record("a/2", 0, "g01", "train", "test"),
            record("a/3", 0, "g02", "test", ""),
            record("b/1", 1, "g01", "test", "test"),
            record("b/2", 1, "", "test", "test"),
            record("b/3", 1, "", "train", "train"),
        ),
    )
    (leak,) = leaked_groups(manifest)
    assert (leak.fold, leak.class_name, leak.group) == (2, "a", "g01")
    assert str(leak) == "fold 2: a g01: 1 in test, 1 in train"


def test_a_film_in_two_classes_is_counted_apart():
    manifest = Manifest(
        Path(),
        ("a", "b"),
        (
            record("a/1", 0, "Film", "train"),
            record("b/1", 1, "Film", "test"),
            record("a/2", 0, "g01", "train"),
            record("b/2", 1, "g01", "test"),
        ),
    )
    assert leaked_groups(manifest) == ()
    assert sources_shared_by_classes(manifest, 1) == ("Film",)
