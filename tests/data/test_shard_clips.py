"""Clips from shards are the clips from files: the same frames, draws, labels and rules."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ndavid.data.clip_sets import ClipSet, open_clips
from ndavid.data.config import TrainingDataConfig, ViewsDataConfig
from ndavid.data.decode import open_reader
from ndavid.data.file_digests import content_facts
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.sampling import DenseClip
from ndavid.data.shard_writing import ClipFiles, write_shards
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset
from ndavid.data.views import open_views
from ndavid.errors import ConfigError, DataError, DecodeError

LENGTHS = [30, 12, 40, 9, 25, 31, 33]
SAMPLER = DenseClip(8, 2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Path:
    """Seven clips of two classes, their manifest, and three shards of them in `shards`."""
    root = tmp_path_factory.mktemp("prepared")
    records = []
    for k, length in enumerate(LENGTHS):
        path = f"{'AB'[k % 2]}/clip_{k}.{'avi' if k == 2 else 'mp4'}"
        codec = "mpeg4" if k == 2 else "libx264"
        write_clip(root / path, num_frames=length, size=(48, 64), codec=codec)
        records.append(
            ClipRecord(path, k % 2, f"g{k}", length, 25.0, 64, 48, ("test", "train"), None)
        )
    manifest = Manifest(root, ("A", "B"), tuple(records))
    manifest.write(root)
    write_shards(
        ClipFiles(manifest.select("train", 2), root),
        root / "shards",
        num_shards=3,
        classes=manifest.classes,
        split="train",
        fold=2,
    )
    return root


def config_of(prepared: Path, **changes: object) -> TrainingDataConfig:
    config = TrainingDataConfig(root=str(prepared), shards=str(prepared / "shards"), fold=2)
    return dataclasses.replace(config, **changes)  # type: ignore[arg-type]


def dataset_of(clips: ClipSet, sampler: DenseClip = SAMPLER) -> ClipDataset:
    transform = train_transform(AugmentConfig(size=32))
    return ClipDataset(clips.records, clips.root, sampler, transform, store=clips.store)


def test_a_sample_is_that_of_the_file(prepared: Path) -> None:
    far = open_clips(config_of(prepared), SAMPLER)
    near = open_clips(config_of(prepared, shards=""), SAMPLER)
    place = {record.path: k for k, record in enumerate(near.records)}
    assert sorted(record.path for record in far.records) == sorted(place)
    sharded, plain = dataset_of(far), dataset_of(near)
    assert sharded.shard_sizes == (3, 2, 2) and plain.shard_sizes is None
    for k, record in enumerate(far.records):
        other = near.records[place[record.path]]
        assert dataclasses.replace(record, splits=()) == dataclasses.replace(other, splits=())
        for seed in (0, 1):
            mine, theirs = sharded[k, seed], plain[place[record.path], seed]
            assert torch.equal(mine["video"], theirs["video"])
            assert mine["label"] == theirs["label"] and mine["index"] == k
    assert "3 shards" in far.summary


@pytest.mark.parametrize("index", [0, 2])
def test_bytes_decode_as_their_file_does_with_jumps_and_back(prepared: Path, index: int) -> None:
    record = open_clips(config_of(prepared, shards=""), SAMPLER).records[index]
    path, wanted = prepared / record.path, [record.num_frames - 1, 3, 29, 0]
    with open_reader(path, num_frames=record.num_frames) as reader:
        expected = reader.read(wanted)
    content = path.read_bytes()
    with open_reader("x/y.tar/clip", num_frames=record.num_frames, content=content) as reader:
        assert torch.equal(reader.read(wanted), expected)
        assert len(reader) == record.num_frames
        with pytest.raises(DecodeError, match=r"x/y.tar/clip: .*frame 99 was asked for"):
            reader.read([99])
        assert torch.equal(reader.read([3]), expected[1:2])
    for damaged, words in [(b"", "0 bytes"), (content[:40], "not a video")]:
        with pytest.raises(DecodeError, match=f"x/y.tar/clip: .*{words}"):
            open_reader("x/y.tar/clip", num_frames=4, content=damaged)


def test_short_clips_are_dropped_from_their_shards(prepared: Path) -> None:
    sampler = DenseClip(8, 2, "drop")
    clips = open_clips(config_of(prepared), sampler)
    assert sorted(record.num_frames for record in clips.records) == [25, 30, 31, 33, 40]
    dataset = dataset_of(clips, sampler)
    assert dataset.shard_sizes is not None and sum(dataset.shard_sizes) == 5
    assert "2 shorter than 16 frames (drop)" in clips.summary
    for k, record in enumerate(clips.records):
        assert dataset[k]["label"] == record.label
        assert clips.store is not None and clips.store.name(k).endswith(record.path)


def test_the_digest_knows_the_shards_but_not_where_they_lie(prepared: Path, tmp_path: Path) -> None:
    first = dataset_of(open_clips(config_of(prepared), SAMPLER)).digest
    (tmp_path / "moved").symlink_to(prepared / "shards")
    moved = open_clips(config_of(prepared, shards=str(tmp_path / "moved")), SAMPLER)
    assert dataset_of(moved).digest == first
    some = config_of(prepared, shards=str(prepared / "shards" / "{000000..000001}.tar"))
    assert dataset_of(open_clips(some, SAMPLER)).digest != first


def test_two_views_come_from_shards(prepared: Path) -> None:
    augment = AugmentConfig(preset="moco_v2", size=32)
    config = ViewsDataConfig(**vars(config_of(prepared)), num_frames=4)
    views = open_views(config, augment, 2)
    sample = views.dataset[0, 5]
    assert sample["views"].shape == (2, 3, 4, 32, 32)
    assert not torch.equal(sample["views"][0], sample["views"][1])
    assert views.dataset.shard_sizes == (3, 2, 2)
    assert views.plain[3]["label"] == views.labels[3]
    assert views.groups is not None and len(set(views.groups)) == 7


def test_what_would_train_on_something_else_is_refused(prepared: Path) -> None:
    with pytest.raises(ConfigError, match=r"train split of fold 2.*asks for train of fold 1"):
        open_clips(config_of(prepared, fold=1), SAMPLER)
    with pytest.raises(ConfigError, match=r"decord reads files; shards are decoded by pyav"):
        open_clips(config_of(prepared, backend="decord"), SAMPLER)
    with pytest.raises(ConfigError, match=r"data\.root is empty"):
        open_clips(TrainingDataConfig(), SAMPLER)


def test_a_file_that_changed_since_it_was_prepared_is_left_out(prepared: Path, tmp_path: Path):
    """Its frames and size in the index would be those of another file."""
    content = (prepared / "A" / "clip_0.mp4").read_bytes()
    facts = content_facts(content)
    for name in ("same.mp4", "longer.mp4"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "longer.mp4").write_bytes(content + b"more")
    records = [
        ClipRecord(name, 0, "", 30, 25.0, 64, 48, ("train",), None, facts.num_bytes, facts.digest)
        for name in ("same.mp4", "longer.mp4")
    ]
    clips = ClipFiles(records, tmp_path)
    assert clips.item(0).content == content
    with pytest.raises(DataError, match=f"not the file that was prepared.*{facts.num_bytes}"):
        clips.item(1)


def test_what_is_no_video_file_is_left_out(prepared: Path, tmp_path: Path) -> None:
    (tmp_path / "A").mkdir()
    (tmp_path / "A" / "whole.mp4").write_bytes((prepared / "A" / "clip_0.mp4").read_bytes())
    (tmp_path / "A" / "empty.mp4").touch()
    (tmp_path / "A" / "frames").mkdir()
    records = [
        ClipRecord(f"A/{name}", 0, "", 30, 25.0, 64, 48, ("train",), None)
        for name in ("gone.mp4", "frames", "whole.mp4", "empty.mp4")
    ]
    written = write_shards(
        ClipFiles(records, tmp_path),
        tmp_path / "out",
        num_shards=2,
        classes=["A"],
        split="train",
        fold=1,
    )
    assert sum(len(entry.samples) for entry in written.index.shards) == 1
    reasons = {Path(path).name: reason for path, reason in written.bad}
    assert reasons == {
        "gone.mp4": "no such file",
        "frames": "is a folder; shards hold video files",
        "empty.mp4": "the file is empty (0 bytes)",
    }
    with pytest.raises(DataError, match="none of the 1 clips can be read"):
        write_shards(
            ClipFiles(records[:1], tmp_path),
            tmp_path / "none",
            num_shards=1,
            classes=["A"],
            split="train",
        )
    assert not (tmp_path / "none").exists()
