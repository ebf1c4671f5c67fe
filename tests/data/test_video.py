"""Samples are functions of their keys, with any number of workers; errors reach the user whole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from ndavid.data.decode import open_reader
from ndavid.data.file_digests import file_facts
from ndavid.data.manifest import ClipRecord
from ndavid.data.sampling import DenseClip, DpcBlocks, uniform_views
from ndavid.data.transforms import AugmentConfig, eval_transform, train_transform
from ndavid.data.video import ClipDataset, MultiViewClips, ViewsDataset, collate
from ndavid.errors import ConfigError, DataError, DecodeError

NUM_CLIPS = 5


def record(path: str, num_frames: int = 60, label: int = 0, **facts) -> ClipRecord:
    return ClipRecord(path, label, "g", num_frames, 25.0, 80, 64, ("train",), **facts)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clip) -> Path:
    path = tmp_path_factory.mktemp("videos")
    for k in range(NUM_CLIPS):
        write_clip(path / f"{k}.mp4", num_frames=60)
    (path / "empty.mp4").write_bytes(b"")
    return path


@pytest.fixture
def records() -> list[ClipRecord]:
    return [record(f"{k}.mp4", label=k % 3) for k in range(NUM_CLIPS)]


def clips(folder: Path, records: list[ClipRecord], **keys) -> ClipDataset:
    sampler = DpcBlocks(num_blocks=4, block_len=3, frame_stride=2)
    return ClipDataset(
        records, folder, sampler, train_transform(AugmentConfig(preset="dpc", size=32)), **keys
    )


def test_digest_tells_what_the_indices_mean(tmp_path: Path) -> None:
    """No file is opened for it: these do not exist."""
    first, second = record("a.mp4", label=0), record("b.mp4", label=1)
    digest = clips(tmp_path, [first, second]).digest
    assert len(digest) == 64 and int(digest, 16)
    others = [
        [second, first],
        [first],
        [first, second, second],
        [first, record("c.mp4", label=1)],
        [first, record("b.mp4", label=2)],
        [first, record("b.mp4", label=1, num_frames=61)],
        [record("b.mp4", label=0), record("a.mp4", label=1)],
    ]
    assert len({digest, *(clips(tmp_path, other).digest for other in others)}) == 1 + len(others)


def test_digest_does_not_see_where_or_how_clips_are_read(tmp_path: Path) -> None:
    known = [record("a.mp4"), record("b.mp4")]
    digest = clips(tmp_path, known).digest
    assert clips(tmp_path / "moved", known, backend="decord", on_error="next").digest == digest
    verified = [record("a.mp4", decord_ok=True), record("b.mp4", decord_ok=False)]
    assert clips(tmp_path, verified).digest == digest
    transform = train_transform(AugmentConfig(preset="none", size=16))
    assert ClipDataset(known, tmp_path, DenseClip(num_frames=4), transform).digest == digest


class Keys:
    """A batch sampler as the engine's: batches of (index, seed)."""

    def __init__(self, batches: list[list[tuple[int, int]]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def loader(dataset, batches, workers: int) -> DataLoader:
    return DataLoader(dataset, batch_sampler=Keys(batches), num_workers=workers, collate_fn=collate)


# --- training clips -------------------------------------------------------------------------------


def test_a_sample_is_a_clip_of_bytes(folder, records) -> None:
    sample = clips(folder, records)[1, 7]
    assert sample["video"].shape == (3, 12, 32, 32)
    assert sample["video"].dtype == torch.uint8 and sample["video"].is_contiguous()
    assert (sample["label"], sample["index"], sample["bad"]) == (1, 1, [])


def test_an_int_gives_the_centred_clip_unchanged(folder, records, read_number) -> None:
    transform = train_transform(AugmentConfig(preset="dpc", size=64))
    dataset = ClipDataset(records, folder, DenseClip(10, 2), transform)
    video = dataset[0]["video"]
    centre = (80 - 64) // 2
    # The middle of 80 columns, as wide as the height; blocks of 10 columns carry the number's bits.
    for place, number in enumerate(range(20, 40, 2)):
        column = video[0, place, 32].float()
        for bit in range(1, 7):
            assert (column[10 * bit + 5 - centre] > 128) == bool(number >> bit & 1)
    assert torch.equal(dataset[0]["video"], video)


def test_seeds_decide_and_nothing_else_does(folder, records) -> None:
    dataset = clips(folder, records)
    torch.manual_seed(1)
    first = dataset[2, 11]["video"]
    torch.manual_seed(2)
    assert torch.equal(dataset[2, 11]["video"], first)
    assert not torch.equal(dataset[2, 12]["video"], first)


def test_workers_change_nothing(folder, records) -> None:
    dataset = clips(folder, records)
    batches = [[(0, 1), (3, 2)], [(4, 3), (1, 4)], [(2, 5), (2, 6)]]
    alone, shared = (list(loader(dataset, batches, workers)) for workers in (0, 2))
    assert len(alone) == len(shared) == 3
    for left, right in zip(alone, shared, strict=True):
        assert torch.equal(left["video"], right["video"])
        assert left["index"].tolist() == right["index"].tolist()
        assert left["label"].dtype == torch.long
    assert alone[0]["video"].shape == (2, 3, 12, 32, 32)


def test_short_videos_loop(folder, read_number, write_clip) -> None:
    write_clip(folder / "short.mp4", num_frames=7)
    short = [record("short.mp4", num_frames=7)]
    transform = train_transform(AugmentConfig(preset="none", size=64))
    video = ClipDataset(short, folder, DenseClip(16), transform)[0]["video"]
    assert torch.equal(video[:, 0], video[:, 7]) and torch.equal(video[:, 1], video[:, 8])
    assert not torch.equal(video[:, 0], video[:, 1])


# --- clips that cannot be read --------------------------------------------------------------------


def test_raise_names_the_file(folder, records) -> None:
    records[1] = record("gone.mp4")
    dataset = clips(folder, records)
    with pytest.raises(DecodeError) as caught:
        dataset[1, 0]
    assert caught.value.path == str(folder / "gone.mp4")
    assert "no such file" in caught.value.reason


def test_next_stands_in_and_tells(folder, records) -> None:
    records[1], records[2] = record("gone.mp4"), record("empty.mp4")
    dataset = clips(folder, records, on_error="next")
    sample = dataset[1, 9]
    assert sample["index"] == 3
    assert [Path(path).name for path, _ in sample["bad"]] == ["gone.mp4", "empty.mp4"]
    assert [reason for _, reason in sample["bad"]] == [
        "no such file",
        "the file is empty (0 bytes)",
    ]
    assert torch.equal(sample["video"], dataset[3, 9]["video"])
    batch = collate([dataset[1, 9], dataset[0, 1]])
    assert batch["video"].shape[0] == 2 and len(batch["bad"]) == 2
    assert batch["index"].tolist() == [3, 0]


def test_the_last_index_wraps_around(folder, records) -> None:
    records[-1] = record("gone.mp4")
    assert clips(folder, records, on_error="next")[NUM_CLIPS - 1, 0]["index"] == 0


def test_a_video_that_has_become_shorter_is_bad(folder, write_clip) -> None:
    write_clip(folder / "cut.mp4", num_frames=20)
    with pytest.raises(DecodeError, match="ends after 20 frames"):
        clips(folder, [record("cut.mp4", num_frames=60)])[0, 0]


def test_all_bad_is_an_error(folder) -> None:
    dataset = clips(folder, [record("gone.mp4"), record("empty.mp4")], on_error="next")
    with pytest.raises(DataError, match=r"none of the 2 clips can be read.*gone\.mp4"):
        dataset[0, 0]


def test_no_clips_at_all(folder) -> None:
    with pytest.raises(DataError, match="selection is empty"):
        clips(folder, [])


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_leave_workers_as_they_are(folder, records, workers) -> None:
    records[1] = record("gone.mp4")
    with pytest.raises(DecodeError) as caught:
        list(loader(clips(folder, records), [[(0, 1), (1, 2)]], workers))
    error = caught.value
    assert type(error) is DecodeError
    assert (error.path, error.backend) == (str(folder / "gone.mp4"), "pyav")
    assert str(error) == f"{folder}/gone.mp4: cannot decode with pyav: no such file"


def test_data_errors_leave_workers_too(folder) -> None:
    dataset = clips(folder, [record("gone.mp4")], on_error="next")
    with pytest.raises(DataError) as caught:
        list(loader(dataset, [[(0, 1)]], workers=1))
    assert type(caught.value) is DataError and "\n" not in str(caught.value)


def test_a_gone_file_is_one_line_for_the_user(folder, tmp_path) -> None:
    """A script that reads a manifest whose video is gone ends with one line and a status."""
    script = """
import sys
from torch.utils.data import DataLoader
from ndavid.data.manifest import read_manifest
from ndavid.data.sampling import DenseClip
from ndavid.data.transforms import eval_transform
from ndavid.data.video import ViewsDataset, collate
from ndavid.errors import NdavidError
try:
    manifest = read_manifest(sys.argv[1])
    data = ViewsDataset(manifest.records, manifest.root, DenseClip(8), 2, eval_transform(32))
    list(DataLoader(data, num_workers=2, collate_fn=collate))
except NdavidError as error:
    sys.exit(f"error: {error}")
"""
    header = "path,label,class,group,frames,fps,width,height,decord_ok,split_1"
    rows = f"# root: {folder}\n{header}\ngone.mp4,0,A,g1,50,25.0,80,64,,train\n"
    (tmp_path / "manifest.csv").write_text(rows)
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    # After it, on Python 3.12, a bare DataLoader of torch 2.11 complains of its own workers' end.
    error = f"error: {folder}/gone.mp4: cannot decode with pyav: no such file"
    assert done.stderr.splitlines()[0] == error


# --- several views of a video ---------------------------------------------------------------------


def views(folder: Path, records: list[ClipRecord], **keys) -> MultiViewClips:
    transform = train_transform(AugmentConfig(preset="moco_v2", size=32))
    return MultiViewClips(records, folder, DenseClip(8), transform, **keys)


def test_views_are_clips_that_differ(folder, records) -> None:
    dataset = views(folder, records, num_views=3)
    sample = dataset[1, 7]
    assert sample["views"].shape == (3, 3, 8, 32, 32) and sample["views"].dtype == torch.uint8
    assert (sample["label"], sample["index"], sample["bad"]) == (1, 1, [])
    assert not torch.equal(sample["views"][0], sample["views"][1])
    assert not torch.equal(sample["views"][1], sample["views"][2])
    assert torch.equal(dataset[1, 7]["views"], sample["views"])
    assert not torch.equal(dataset[1, 8]["views"], sample["views"])
    batch = collate([sample, dataset[0, 1]])
    assert batch["views"].shape == (2, 3, 3, 8, 32, 32) and "video" not in batch
    assert dataset.digest == clips(folder, records).digest


def untouched(folder: Path, records: list[ClipRecord], **keys) -> MultiViewClips:
    """Views whose pixels tell which frames they show."""
    transform = train_transform(AugmentConfig(preset="none", size=64, crop="centre"))
    return MultiViewClips(records, folder, DenseClip(8), transform, **keys)


def test_views_show_the_same_frames_or_their_own(folder, records) -> None:
    same = untouched(folder, records, same_frames=True)
    own = untouched(folder, records)
    seeds = range(12)
    assert all(torch.equal(*same[0, seed]["views"]) for seed in seeds)
    assert sum(not torch.equal(*own[0, seed]["views"]) for seed in seeds) > 8
    # The frames that all views share are drawn too.
    assert any(not torch.equal(same[0, 0]["views"], same[0, seed]["views"]) for seed in seeds)


def test_a_views_frames_are_the_clips(folder, records) -> None:
    """The shared frames are those that a single clip of the same seed shows."""
    transform = train_transform(AugmentConfig(preset="none", size=64, crop="centre"))
    single = ClipDataset(records, folder, DenseClip(8), transform)
    sample = untouched(folder, records, same_frames=True)[2, 5]
    assert torch.equal(sample["views"][0], single[2, 5]["video"])


def test_an_int_gives_equal_centred_views(folder, records) -> None:
    dataset = views(folder, records)
    sample = dataset[0]["views"]
    assert torch.equal(sample[0], sample[1]) and torch.equal(dataset[0]["views"], sample)
    transform = train_transform(AugmentConfig(preset="moco_v2", size=32))
    single = ClipDataset(records, folder, DenseClip(8), transform)
    assert torch.equal(sample[0], single[0]["video"])


def test_a_video_is_opened_once_for_all_views(folder, records, monkeypatch) -> None:
    opened = []

    def counting(path, *words, **keys):
        opened.append(path)
        return open_reader(path, *words, **keys)

    monkeypatch.setattr("ndavid.data.video.open_reader", counting)
    views(folder, records, num_views=4)[3, 1]
    assert opened == [folder / "3.mp4"]


def test_views_of_the_next_video_stand_in(folder, records) -> None:
    records[1] = record("gone.mp4")
    sample = views(folder, records, on_error="next")[1, 9]
    assert sample["index"] == 2 and [reason for _, reason in sample["bad"]] == ["no such file"]
    with pytest.raises(DecodeError, match="no such file"):
        views(folder, records)[1, 9]
    with pytest.raises(ConfigError, match="num_views"):
        views(folder, records, num_views=0)


# --- test views -----------------------------------------------------------------------------------


def test_views_are_the_clips_and_their_crops(folder, records) -> None:
    sampler = DenseClip(num_frames=8, frame_stride=2)
    dataset = ViewsDataset(records, folder, sampler, 3, eval_transform(32, crops=3))
    sample = dataset[1]
    assert sample["video"].shape == (9, 3, 8, 32, 32) and sample["video"].is_contiguous()
    assert (sample["label"], sample["index"]) == (1, 1)

    # Each view on its own, through the plain reader.
    with open_reader(folder / "1.mp4") as reader:
        for k, indices in enumerate(uniform_views(sampler, 60, 3)):
            crops = eval_transform(32, crops=3)(reader.read(indices)).transpose(1, 2)
            assert torch.equal(sample["video"][3 * k : 3 * k + 3], crops)


def test_views_raise_unless_told_to_skip(folder, records) -> None:
    records[1] = record("empty.mp4")
    sampler, transform = DenseClip(8), eval_transform(32)
    with pytest.raises(DecodeError, match="0 bytes"):
        ViewsDataset(records, folder, sampler, 2, transform)[1]
    skipping = ViewsDataset(records, folder, sampler, 2, transform, on_error="skip")
    assert "video" not in skipping[1]
    batch = collate([skipping[0], skipping[1], skipping[2]])
    assert batch["index"].tolist() == [0, 2] and batch["video"].shape[:2] == (2, 2)
    assert batch["bad"] == [(str(folder / "empty.mp4"), "the file is empty (0 bytes)")]
    nothing = collate([skipping[1]])
    assert "video" not in nothing and nothing["label"].numel() == 0


@pytest.mark.parametrize("num_frames", [5, 16, 18, 60])
def test_the_same_views_are_named_and_equal(folder, num_frames) -> None:
    row = record("0.mp4", num_frames=num_frames)
    sampler, transform = DenseClip(16), eval_transform(32, crops=3)
    sample = ViewsDataset([row], folder, sampler, 10, transform)[0]
    indices = uniform_views(sampler, num_frames, 10)
    for view, first in enumerate(sample["same_as"].tolist()):
        assert first <= view and sample["same_as"][first] == first
        assert torch.equal(sample["video"][view], sample["video"][first])
        assert first % 3 == view % 3 and torch.equal(indices[first // 3], indices[view // 3])
    distinct = len(torch.unique(indices, dim=0))
    assert len(sample["same_as"].unique()) == 3 * distinct
    assert distinct == {5: 1, 16: 1, 18: 3, 60: 10}[num_frames]


def test_decord_is_used_where_the_manifest_allows_it(folder, monkeypatch) -> None:
    allowed = record("0.mp4", decord_ok=True)
    refused = record("0.mp4", decord_ok=False)
    plain = clips(folder, [allowed])[0, 5]["video"]
    assert torch.equal(clips(folder, [allowed], backend="decord")[0, 5]["video"], plain)
    with pytest.raises(DecodeError, match="found to misread"):
        clips(folder, [refused], backend="decord")[0, 5]


def test_what_was_found_of_another_file_does_not_count(tmp_path, write_clip, monkeypatch) -> None:
    """decord is trusted with the file that was prepared only; a new one is read by PyAV."""
    path = write_clip(tmp_path / "a.mp4", num_frames=60)
    facts = file_facts(path)
    row = record("a.mp4", decord_ok=True, num_bytes=facts.num_bytes, digest=facts.digest)
    asked = []

    def spy(path, backend="pyav", **keys):
        asked.append((backend, keys["num_frames"], keys["verified"]))
        return open_reader(path, backend, **keys)

    monkeypatch.setattr("ndavid.data.video.open_reader", spy)
    clips(tmp_path, [row], backend="decord")[0, 5]
    assert asked.pop() == ("decord", 60, True)
    write_clip(path, num_frames=75)
    changed = clips(tmp_path, [row], backend="decord")[0, 5]["video"]
    assert asked.pop() == ("pyav", None, None)
    assert torch.equal(changed, clips(tmp_path, [record("a.mp4")])[0, 5]["video"])
