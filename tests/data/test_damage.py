"""Frames that the decoder flags as damaged are counted, reported, and bad where a key says so."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import av
import pytest
import torch

from ndavid.data.clip_sets import open_clips
from ndavid.data.config import TrainingDataConfig
from ndavid.data.decode import open_reader, probe
from ndavid.data.folder_annotations import parse_folder
from ndavid.data.manifest import ClipRecord, read_manifest
from ndavid.data.preparation import PrepareSettings, prepare
from ndavid.data.preparation_report import summary
from ndavid.data.sampling import DenseClip
from ndavid.data.shard_index import FIELDS, parse_index
from ndavid.data.shard_writing import ClipFiles, write_shards
from ndavid.data.transforms import AugmentConfig, eval_transform, train_transform
from ndavid.data.video import ClipDataset, ViewsDataset, collate
from ndavid.errors import DataError, DecodeError
from ndavid.evaluation.classify import per_item

NUM_FRAMES, GOP, HIT = 48, 12, 17


def damage(path: Path, frame: int) -> Path:
    """Flips bits of one stored frame, in place, such that the decoder flags it and goes on."""
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][frame]
        start, size = packet.pos, packet.size
    whole = path.read_bytes()
    for place in range(start + size - 1, start + 8, -1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            info = probe(path)
        except DecodeError:
            continue
        if info.damaged and info.num_frames == NUM_FRAMES:
            return path
    raise AssertionError("no change of that frame is flagged: choose another")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clip) -> Path:
    """train/ and test/ with two sound clips and, between them, one whose frame 17 is damaged."""
    root = tmp_path_factory.mktemp("videos")
    whole = write_clip(
        root.parent / "whole.mp4",
        num_frames=NUM_FRAMES,
        gop=GOP,
        options={"x264-params": "bframes=0:scenecut=0"},
    )
    for side in ("train", "test"):
        (root / side / "a").mkdir(parents=True)
        for name in ("0.mp4", "1.mp4", "2.mp4"):
            shutil.copy(whole, root / side / "a" / name)
    damage(root / "train" / "a" / "1.mp4", HIT)
    shutil.copy(root / "train" / "a" / "1.mp4", root / "test" / "a" / "1.mp4")
    return root


def records(side: str, damaged: int | None) -> list[ClipRecord]:
    return [
        ClipRecord(f"{side}/a/{k}.mp4", 0, "", NUM_FRAMES, 25.0, 80, 64, (side,), damaged=known)
        for k, known in enumerate((0, damaged, 0))
    ]


def test_flagged_frames_are_counted(folder) -> None:
    info = probe(folder / "train" / "a" / "1.mp4")
    assert info.num_frames == NUM_FRAMES and 1 <= info.damaged <= GOP - HIT % GOP
    assert probe(folder / "train" / "a" / "0.mp4").damaged == 0


@pytest.mark.parametrize("counted", [None, NUM_FRAMES])
def test_a_reader_tells_of_the_frames_that_it_gave(folder, counted) -> None:
    """Those that build on a damaged one are damaged; after the next keyframe all is well."""
    with open_reader(folder / "train" / "a" / "1.mp4", num_frames=counted) as reader:
        reader.read([0, HIT - 1])
        assert reader.damaged == 0
        reader.read([2 * GOP, NUM_FRAMES - 1])
        assert reader.damaged == 0
        reader.read([HIT, HIT + 1, HIT, 2 * GOP - 1])
        assert reader.damaged == 3
        reader.read([HIT])
        assert reader.damaged == 3


@pytest.mark.parametrize("short_side", [None, 32])
def test_prepare_reports_it_and_keeps_the_clip(folder, tmp_path, short_side) -> None:
    settings = PrepareSettings(short_side=short_side)
    done = prepare(
        parse_folder(folder), folder, tmp_path, settings=settings, num_workers=0, progress=False
    )
    manifest = read_manifest(tmp_path)
    assert not done.bad and len(manifest.records) == 6
    found = {record.path: record.damaged for record in manifest.records}
    hit = [path for path in found if path.endswith("1.mp4")]
    assert [path for path, count in found.items() if count] == hit and len(hit) == 2
    with (tmp_path / "damaged_files.csv").open(newline="") as stream:
        assert [row["path"] for row in csv.DictReader(stream)] == hit
    assert "with damaged frames, but usable: 2 (all in damaged_files.csv)" in summary(done)
    config = TrainingDataConfig(root=str(tmp_path))
    assert "1 with damaged frames" in open_clips(config, DenseClip(8)).summary


def training(folder: Path, known: int | None, damaged: str) -> ClipDataset:
    transform = train_transform(AugmentConfig(preset="none", size=32))
    return ClipDataset(
        records("train", known),
        folder,
        DenseClip(30),
        transform,
        on_error="next",
        damaged=damaged,
    )


@pytest.mark.parametrize("known", [None, 0, 3])
def test_training_reports_it_or_takes_the_next_clip(folder, known) -> None:
    reported = training(folder, known, "report")[1]
    assert reported["index"] == 1 and reported["bad"] == []
    ((path, what),) = reported["damaged"]
    assert path.endswith("train/a/1.mp4") and "frames" in what and "damaged" in what
    refused = training(folder, known, "bad")[1]
    assert refused["index"] == 2 and "damaged" not in refused
    assert "damaged" in refused["bad"][0][1]
    batch = collate([reported, training(folder, known, "report")[0]])
    assert batch["damaged"] == reported["damaged"] and batch["video"].shape[0] == 2
    assert "damaged" not in collate([refused])


def test_damage_of_a_clip_that_cannot_be_read_is_not_told_of_its_stand_in(folder, tmp_path) -> None:
    shutil.copytree(folder / "train", tmp_path / "train")
    (tmp_path / "train" / "a" / "1.mp4").write_bytes(b"no video any more")
    clips = training(tmp_path, 3, "report")
    stand_in = clips[1]
    assert stand_in["index"] == 2 and "damaged" not in stand_in
    ((path, reason),) = stand_in["bad"]
    assert path.endswith("1.mp4") and "damaged" not in reason
    views = ViewsDataset(
        records("test", 3), tmp_path, DenseClip(30), 1, eval_transform(32), on_error="skip"
    )
    skipped = views[1]
    assert skipped["bad"] and "damaged" not in skipped


def from_shards(folder: Path, output: Path, known: int | None, damaged: str) -> ClipDataset:
    """The training clips from one shard; clip 1 is the one that is damaged."""
    if not output.exists():
        samples = ClipFiles(records("train", known), folder)
        write_shards(samples, output, num_shards=1, classes=["a"], split="train", fold=1)
    clips = open_clips(TrainingDataConfig(shards=str(output)), DenseClip(30))
    assert len(clips.records) == 3
    transform = train_transform(AugmentConfig(preset="none", size=32))
    return ClipDataset(
        *(clips.records, clips.root, DenseClip(30), transform),
        on_error="next",
        damaged=damaged,
        store=clips.store,
    )


def place_of_the_damaged(clips: ClipDataset) -> int:
    return [record.path for record in clips.records].index("train/a/1.mp4")


def test_damage_is_found_in_the_bytes_of_a_shard(folder, tmp_path) -> None:
    """With nothing known before: the decoder flags frames of bytes as it does those of files."""
    reported = from_shards(folder, tmp_path / "shards", None, "report")
    hit = place_of_the_damaged(reported)
    sample = reported[hit]
    assert sample["index"] == hit and "frames read are damaged" in sample["damaged"][0][1]
    assert "damaged" not in reported[(hit + 1) % 3]
    refused = from_shards(folder, tmp_path / "shards", None, "bad")[hit]
    assert refused["index"] != hit and "frames read are damaged" in refused["bad"][0][1]


def test_shards_know_of_damage_that_their_frames_do_not_show(folder, tmp_path) -> None:
    """`prepare --short-side` encodes anew what the decoder made up, and nothing is flagged."""
    small = PrepareSettings(short_side=32)
    annotations = parse_folder(folder)
    prepare(annotations, folder, tmp_path, settings=small, num_workers=0, progress=False)
    manifest = read_manifest(tmp_path)
    samples = ClipFiles(manifest.select("train"), manifest.root)
    assert probe(manifest.root / "clips" / "train" / "a" / "1.mp4").damaged == 0
    write_shards(samples, tmp_path / "shards", num_shards=1, classes=["a"], split="train", fold=1)
    config = TrainingDataConfig(shards=str(tmp_path / "shards"))
    clips = open_clips(config, DenseClip(30))
    assert "1 with damaged frames" in clips.summary
    hit = next(k for k, record in enumerate(clips.records) if record.damaged)
    transform = train_transform(AugmentConfig(preset="none", size=32))
    arguments = (clips.records, clips.root, DenseClip(30), transform)
    reported = ClipDataset(*arguments, store=clips.store)[hit]
    assert f"of its {NUM_FRAMES} frames are damaged" in reported["damaged"][0][1]
    refused = ClipDataset(*arguments, store=clips.store, damaged="bad", on_error="next")[hit]
    assert refused["index"] != hit and "frames are damaged" in refused["bad"][0][1]


def test_an_index_without_damage_is_that_of_older_versions(folder, tmp_path) -> None:
    from_shards(folder, tmp_path / "sound", 0, "report")
    from_shards(folder, tmp_path / "hit", 3, "report")
    sound, hit = (json.loads((tmp_path / n / "index.json").read_text()) for n in ("sound", "hit"))
    assert sound["fields"] == list(FIELDS["clips"])
    assert hit["fields"] == [*FIELDS["clips"], "damaged"]
    assert sorted(sample[-1] for sample in hit["shards"][0]["samples"]) == [0, 0, 3]
    hit["shards"][0]["samples"][0][-1] = -1
    with pytest.raises(DataError, match="damaged must be a whole number from 0"):
        parse_index("index.json", json.dumps(hit).encode())


def test_frames_beside_the_damage_are_sound(folder) -> None:
    clips = ClipDataset(
        records("train", None),
        folder,
        DenseClip(8),
        train_transform(AugmentConfig(preset="none", size=32)),
        damaged="bad",
    )
    frames = clips._read(1, torch.arange(2 * GOP, 2 * GOP + 8))
    assert len(frames) == 8
    with pytest.raises(DecodeError, match=r"7 of 8 frames read are damaged"):
        clips._read(1, torch.arange(HIT, HIT + 8) - 1)


def test_another_file_than_the_one_that_was_prepared_is_judged_by_itself(folder, tmp_path) -> None:
    """The damage that the manifest counts is that of the file it was made of."""
    path = tmp_path / "train" / "a" / "1.mp4"
    path.parent.mkdir(parents=True)
    shutil.copy(folder / "train" / "a" / "0.mp4", path)
    row = dataclasses.replace(records("train", 3)[1], num_bytes=1, digest="ends:" + "0" * 32)
    transform = train_transform(AugmentConfig(preset="none", size=32))
    clips = ClipDataset([row], tmp_path, DenseClip(30), transform, damaged="bad")
    assert "damaged" not in clips[0]


@pytest.mark.parametrize("known", [None, 3])
def test_evaluation_uses_it_or_does_as_on_bad_says(folder, known) -> None:
    def score(damaged: str, on_bad: str):
        views = ViewsDataset(
            records("test", known),
            folder,
            DenseClip(30),
            1,
            eval_transform(32),
            on_error="skip",
            damaged=damaged,
        )
        return per_item(
            lambda clips: clips.float().mean((1, 2, 3, 4)).unsqueeze(1),
            views,
            device=torch.device("cpu"),
            on_bad=on_bad,
        )

    found = score("report", "raise")
    assert len(found.indices) == 3 and found.bad == ()
    ((path, what),) = found.damaged
    assert path.endswith("1.mp4") and "damaged" in what
    skipped = score("bad", "skip")
    assert skipped.indices.tolist() == [0, 2] and "damaged" in skipped.bad[0][1]
    with pytest.raises(DataError, match=r"1\.mp4.*damaged"):
        score("bad", "raise")


def test_the_damaged_case(shared_data) -> None:
    path = shared_data.parent / "cases" / "damaged_8.mp4"
    if not path.exists():
        pytest.skip("no shared/cases beside the checkout")
    assert probe(path).damaged == 8
