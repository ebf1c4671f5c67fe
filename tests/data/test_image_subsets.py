"""Label fractions hold every class in proportion, subsets read what their indices say, and chosen
classes are numbered as they were named."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded

from ndavid.data.image_sources import EncodedImages, MemoryImages
from ndavid.data.image_subsets import SubsetImages, class_subset, stratified_indices
from ndavid.errors import ConfigError, DataError


@settings(deadline=None, max_examples=80)
@given(
    labels=st.lists(st.integers(-1, 5), min_size=1, max_size=200),
    fraction=st.floats(0.001, 1.0),
    seed=st.integers(0, 2**40),
)
def test_every_class_has_its_share(labels, fraction, seed) -> None:
    given_labels = torch.tensor(labels)
    chosen = stratified_indices(given_labels, fraction, seed)
    assert chosen.dtype == torch.long
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    for label in range(6):
        members = labels.count(label)
        expected = max(1, round(fraction * members)) if members else 0
        assert (given_labels[chosen] == label).sum() == expected
    assert (given_labels[chosen] >= 0).all()


def test_seeds_differ_and_agree() -> None:
    labels = torch.arange(1000) % 10
    first = stratified_indices(labels, 0.1, 0)
    assert torch.equal(stratified_indices(labels, 0.1, 0), first)
    assert not torch.equal(stratified_indices(labels, 0.1, 1), first)
    # Not the first of each class: sets come sorted.
    assert first.float().mean() > 300


def test_larger_fractions_hold_smaller_ones() -> None:
    labels = torch.arange(1000) % 10
    small, large = (set(stratified_indices(labels, f, 3).tolist()) for f in (0.01, 0.1))
    assert small < large
    assert stratified_indices(labels, 1.0, 3).tolist() == list(range(1000))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_impossible_fractions(fraction) -> None:
    with pytest.raises(ConfigError, match=r"must lie in \(0, 1\]"):
        stratified_indices(torch.zeros(5), fraction, 0)


def source() -> MemoryImages:
    values = torch.arange(6, dtype=torch.uint8).view(6, 1, 1, 1).expand(6, 3, 4, 4)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    return MemoryImages(values, labels, ["a", "b", "c"], origin="made/up", bad={5: "torn"})


def test_a_subset_reads_its_indices() -> None:
    subset = SubsetImages(source(), torch.tensor([4, 0, 5]))
    assert len(subset) == 3
    assert [int(subset.read(k)[0, 0, 0]) for k in (0, 1)] == [4, 0]
    assert subset.labels.tolist() == [1, 0, 2] and subset.classes == ("a", "b", "c")
    assert subset.origin == "made/up" and subset.name(0) == "made/up[4]"
    with pytest.raises(DataError, match=r"made/up\[5\]: torn"):
        subset.read(2)


def test_digests_tell_subsets_apart() -> None:
    whole = source()
    subsets = [[0, 1], [1, 0], [0], [0, 1, 2]]
    digests = {SubsetImages(whole, torch.tensor(indices)).digest for indices in subsets}
    assert len(digests | {whole.digest}) == 5
    assert SubsetImages(source(), torch.tensor([0, 1])).digest in digests


@pytest.mark.parametrize("indices", [[], [6], [-1, 2]])
def test_impossible_indices(indices) -> None:
    with pytest.raises(DataError, match=r"empty|has 6 images"):
        SubsetImages(source(), torch.tensor(indices))


# --- chosen classes -------------------------------------------------------------------------------


def files(labels: list[int]) -> EncodedImages:
    """Small files that are decoded when they are read; file k shows the value 10 * k."""
    contents = [encoded(torch.full((3, 4, 4), 10 * k).byte(), "PNG") for k in range(len(labels))]
    data = torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8)
    offsets = torch.tensor([0, *map(len, contents)]).cumsum(0)
    return EncodedImages(data, offsets, torch.tensor(labels), ["a", "b", "c"], origin="made/up")


def test_classes_are_numbered_as_they_are_named() -> None:
    chosen = class_subset(source(), ["c", "a"])
    assert isinstance(chosen, MemoryImages)
    assert chosen.classes == ("c", "a") and chosen.labels.tolist() == [1, 0, 1, 0]
    assert [int(chosen.read(k)[0, 0, 0]) for k in range(3)] == [0, 2, 3]
    with pytest.raises(DataError, match="torn"):
        chosen.read(3)


def test_classes_of_files_are_read_when_asked_for() -> None:
    chosen = class_subset(files([2, 1, -1, 2, 0]), ["c", "b"])
    assert not isinstance(chosen, MemoryImages) and len(chosen) == 3
    assert chosen.classes == ("c", "b") and chosen.labels.tolist() == [0, 1, 0]
    assert [int(chosen.read(k)[0, 0, 0]) for k in range(3)] == [0, 10, 30]
    assert chosen.name(2) == "made/up[3]"


def test_a_digest_tells_which_classes_and_in_which_order() -> None:
    whole = source()
    chosen = [["a"], ["b"], ["a", "b"], ["b", "a"], ["a", "b", "c"]]
    digests = {class_subset(whole, names).digest for names in chosen}
    assert len(digests | {whole.digest}) == 6
    assert class_subset(source(), ["b", "a"]).digest in digests


def test_the_classes_of_every_kind_of_source_have_one_digest() -> None:
    # A packed archive is decoded into memory or not by its images' size: the digest must not tell.
    stored = files([0, 1, 2])
    pixels = torch.stack([stored.read(k) for k in range(3)])
    memory = MemoryImages(pixels, stored.labels, stored.classes, origin="x", digest=stored.digest)
    assert class_subset(memory, ["c"]).digest == class_subset(stored, ["c"]).digest


@pytest.mark.parametrize(
    ("names", "message"),
    [(["a", "bb"], "made/up has no class 'bb'; did you mean 'b'"), (["a", "a"], "only once")],
)
def test_classes_that_cannot_be_chosen(names, message) -> None:
    with pytest.raises(ConfigError, match=message):
        class_subset(source(), names)


def test_images_without_classes_have_none_to_choose() -> None:
    bare = MemoryImages(source().images, torch.full((6,), -1), (), origin="made/up")
    with pytest.raises(ConfigError, match="has no classes to choose 'a' from"):
        class_subset(bare, ["a"])


def test_a_class_without_images_leaves_nothing_to_read() -> None:
    with pytest.raises(DataError, match="the subset is empty"):
        class_subset(files([0, 1, 1]), ["c"])
