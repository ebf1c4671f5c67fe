"""Shards written and read back: local, by URL or command; whole, cut short, and missing."""

from __future__ import annotations

import io
import json
import tarfile
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
import webdataset
from image_files import encoded, photo

from ndavid.data import shard_store
from ndavid.data.config import DataConfig
from ndavid.data.image_archive import PackedSplit, read_archive, write_archive
from ndavid.data.images import ImageDataset, open_images
from ndavid.data.shard_images import ShardImages, open_shards
from ndavid.data.shard_index import locate
from ndavid.data.shard_store import ShardStore, read_shard
from ndavid.data.shard_urls import expand, shard_name, sibling
from ndavid.data.shard_writing import ImageFiles, check_shards, write_shards
from ndavid.errors import ConfigError, DataError

COUNT = 22


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Twenty-two images of two classes in four shards (6, 6, 5 and 5)."""
    files = [encoded(photo(k, 16, 16)) for k in range(COUNT)]
    labels = [k % 2 for k in range(COUNT)]
    write_archive(tmp_path / "set.npz", ["a", "b"], {"train": PackedSplit(files, labels)})
    source = read_archive(tmp_path / "set.npz", "train")
    write_shards(
        ImageFiles(source, quality=95),
        tmp_path / "shards",
        num_shards=4,
        classes=source.classes,
        split="train",
    )
    return tmp_path / "shards"


@pytest.fixture
def server(shards: Path) -> Iterator[str]:
    """The URL of the folder of shards."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *words: Any) -> None:
            pass

    handler = partial(Quiet, directory=str(shards))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The shards opened, in order."""
    urls: list[str] = []

    def noted(url: str, num_bytes: int) -> shard_store.ShardContents:
        urls.append(url)
        return read_shard(url, num_bytes)

    monkeypatch.setattr(shard_store, "read_shard", noted)
    return urls


def store_of(shards: str | Path) -> ShardStore:
    return ShardStore(locate(str(shards), "images"))


def cut(path: Path, member: str, inside: int) -> None:
    """Cuts a tar ``inside`` bytes into a member, counted from its header."""
    with tarfile.open(path) as tar:
        end = tar.getmember(member).offset + inside
    path.write_bytes(path.read_bytes()[:end])


def test_images_come_out_as_they_went_in(shards: Path, tmp_path: Path) -> None:
    original = read_archive(tmp_path / "set.npz", "train")
    source = open_shards(str(shards / "{000000..000003}.tar"), "train")
    assert len(source) == COUNT and source.classes == ("a", "b")
    assert source.store.sizes == (6, 6, 5, 5)
    places = [int(source.name(k).split("[")[1][:-1]) for k in range(COUNT)]
    # In a random order, each once, with its own label and pixels.
    assert places != sorted(places) and sorted(places) == list(range(COUNT))
    for k, place in enumerate(places):
        assert source.labels[k] == original.labels[place]
        assert torch.equal(source.content(k), original.content(place))
        assert torch.equal(source.read(k), original.read(place))


def test_webdataset_itself_reads_them(shards: Path) -> None:
    dataset = webdataset.WebDataset(str(shards / "000001.tar"), shardshuffle=False)
    samples = [(s["__key__"], json.loads(s["json"]), s["jpg"]) for s in dataset]
    assert [key for key, _, _ in samples] == [f"000001_{k:06d}" for k in range(6)]
    source = open_shards(str(shards), "train")
    for k, (_, facts, content) in enumerate(samples):
        assert facts["label"] == source.labels[6 + k]
        assert content == source.content(6 + k).numpy().tobytes()


@pytest.mark.parametrize(
    "pattern", ["{url}/{{000000..000003}}.tar", "pipe:curl -sf {url}/{{000000..000003}}.tar"]
)
def test_urls_and_commands_give_the_same(shards: Path, server: str, pattern: str) -> None:
    far, near = open_shards(pattern.format(url=server), "train"), open_shards(str(shards), "train")
    assert far.digest == near.digest
    assert all(torch.equal(far.content(k), near.content(k)) for k in range(COUNT))


def test_a_shard_is_read_once_while_its_samples_are_asked_for(
    shards: Path, opened: list[str]
) -> None:
    store = store_of(shards)
    for index in torch.randperm(6, generator=torch.Generator().manual_seed(0)).tolist():
        store.content(index)
    store.content(6)
    assert opened == [str(shards / "000000.tar"), str(shards / "000001.tar")]


def test_some_of_the_shards_keep_their_order_whatever_the_patterns(shards: Path) -> None:
    some = open_shards(str(shards / "{000002,000001}.tar"), "train")
    every = open_shards(str(shards), "train")
    assert [some.name(k) for k in range(11)] == [every.name(6 + k) for k in range(11)]


def samples_of(source: ShardImages) -> list[dict[str, Any]]:
    dataset = ImageDataset(source, on_error="next")
    assert dataset.shard_sizes == source.store.sizes
    return [dataset[index, 7] for index in range(len(dataset))]


def test_a_truncated_shard_gives_what_it_has_and_names_the_rest(
    shards: Path, opened: list[str]
) -> None:
    cut(shards / "000001.tar", "000001_000002.jpg", 600)
    found = samples_of(open_shards(str(shards), "train"))
    lost = [k for k, sample in enumerate(found) if sample["bad"]]
    assert lost == [8, 9, 10, 11]
    for k in lost:
        ((path, reason),) = found[k]["bad"]
        assert "000001.tar/" in path and "its shard lacks it" in reason and "end of data" in reason
    # Others of the same shard stand in, not one for all; no other shard is opened for them.
    assert [found[k]["index"] for k in lost] == [6, 7, 6, 7]
    assert opened == [str(shards / f"00000{k}.tar") for k in range(4)]
    assert [file for file, _ in check_shards(shards)] == ["000001.tar"]


def test_a_shard_cut_between_two_members_gives_those_before(shards: Path) -> None:
    cut(shards / "000001.tar", "000001_000004.jpg", 0)
    found = samples_of(open_shards(str(shards), "train"))
    assert [k for k, sample in enumerate(found) if sample["bad"]] == [10, 11]
    assert "its shard lacks it (it ends early" in found[10]["bad"][0][1]


@pytest.mark.parametrize("damage", ["noise", "empty"])
def test_a_shard_that_is_none_is_left_to_the_next(
    shards: Path, opened: list[str], damage: str
) -> None:
    (shards / "000003.tar").write_bytes(b"" if damage == "empty" else b"no tar" * 1000)
    found = samples_of(open_shards(str(shards), "train"))
    assert [sample["index"] for sample in found[17:]] == [0, 1, 2, 3, 4]
    assert all("its shard gives nothing" in sample["bad"][0][1] for sample in found[17:])
    assert all(len(sample["bad"]) == 1 for sample in found[17:])
    assert opened.count(str(shards / "000003.tar")) == 1


def test_a_shard_that_failed_once_is_tried_in_the_next_epoch(
    shards: Path, opened: list[str]
) -> None:
    file, aside = shards / "000002.tar", shards / "aside"
    source = open_shards(str(shards), "train")
    dataset = ImageDataset(source, on_error="next")
    file.rename(aside)
    first = [dataset[index, 1] for index in range(COUNT)]
    assert [k for k, sample in enumerate(first) if sample["bad"]] == [12, 13, 14, 15, 16]
    assert opened.count(str(file)) == 1
    aside.rename(file)
    again = [dataset[index, 2] for index in range(COUNT)]
    assert not any(sample["bad"] for sample in again)
    assert [sample["index"] for sample in again] == list(range(COUNT))


@pytest.mark.parametrize("kept", [0, 3])
def test_so_it_is_where_a_reader_has_the_same_shard_every_epoch(shards: Path, kept: int) -> None:
    file = shards / "000001.tar"
    whole = file.read_bytes()
    source = open_shards(str(shards), "train")
    dataset = ImageDataset(source, on_error="next")
    if kept:
        cut(file, f"000001_{kept:06d}.jpg", 0)
    else:
        file.write_bytes(b"")
    assert sum(bool(dataset[index, 1]["bad"]) for index in range(6, 12)) == 6 - kept
    file.write_bytes(whole)
    assert not any(dataset[index, 2]["bad"] for index in (7, 11, 6, 9, 8, 10))


def test_a_shard_that_a_server_lacks_is_a_bad_one(shards: Path, server: str) -> None:
    (shards / "000002.tar").unlink()
    source = open_shards(f"{server}/{{000000..000003}}.tar", "train")
    with pytest.raises(DataError, match=r"000002.tar/\[\d+\]: .*404 not found"):
        source.read(12)
    assert source.read(17).shape == (3, 16, 16)


def test_a_failing_command_is_told_with_its_code(shards: Path) -> None:
    with pytest.raises(DataError, match="ended with code 3"):
        locate(f"pipe:cat {shards}/{{000000..000003}}.tar; exit 3", "images")
    contents = read_shard(f"pipe:cat {shards}/000000.tar; exit 3", 1 << 20)
    assert len(contents.members) == 6 and "ended with code 3" in contents.problem


def test_a_bad_member_is_replaced_by_the_one_after_it(shards: Path) -> None:
    file = shards / "000000.tar"
    with tarfile.open(file) as tar:
        members = [(m, tar.extractfile(m).read()) for m in tar]  # type: ignore[union-attr]
    with tarfile.open(file, "w") as tar:
        for member, content in members:
            damaged = b"\xff\xd8no image" if member.name == "000000_000002.jpg" else content
            member.size = len(damaged)
            tar.addfile(member, io.BytesIO(damaged))
    found = samples_of(open_shards(str(shards), "train"))
    assert [k for k, sample in enumerate(found) if sample["bad"]] == [2]
    assert found[2]["index"] == 3 and torch.equal(found[2]["image"], found[3]["image"])


def test_all_shards_bad_is_an_error(shards: Path) -> None:
    for k in range(4):
        (shards / f"00000{k}.tar").write_bytes(b"")
    with pytest.raises(DataError, match="none of the 22 images can be read"):
        samples_of(open_shards(str(shards), "train"))


def test_local_shards_that_are_missing_are_named_at_once(shards: Path) -> None:
    for k in (1, 3):
        (shards / f"00000{k}.tar").unlink()
    with pytest.raises(DataError, match=r"000001.tar: no such shard; 2 of the 4 shards"):
        open_shards(str(shards), "train")
    assert len(open_shards(str(shards / "{000000,000002}.tar"), "train")) == 11


Damage = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda index: index.pop("shards"), "KeyError: 'shards'"),
        (lambda index: index.update(format=9), "is of format 9, this version reads 1"),
        (lambda index: index.update(fields=["path"]), "fields of images must be path, label"),
        (lambda index: index["shards"][0]["samples"][0].pop(), "has not 2 fields"),
        (lambda index: index.update(shards=[]), "lists no samples"),
        (
            lambda index: index["shards"][0]["samples"][0].__setitem__(1, 5),
            "labels run from 0 to 5",
        ),
    ],
)
def test_a_damaged_index_is_told(shards: Path, damage: Damage, words: str) -> None:
    file = shards / "index.json"
    index = json.loads(file.read_text())
    damage(index)
    file.write_text(json.dumps(index))
    with pytest.raises(DataError, match=words):
        open_shards(str(shards), "train")


def test_what_does_not_go_together_is_told(shards: Path) -> None:
    with pytest.raises(ConfigError, match="hold split 'train', and 'test' is asked for"):
        open_shards(str(shards), "test")
    with pytest.raises(ConfigError, match="these shards hold images; clips were expected"):
        locate(str(shards), "clips")
    with pytest.raises(DataError, match=r"does not list 3 of the 5.*such as 000004.tar"):
        open_shards(str(shards / "{000002..000006}.tar"), "train")
    with pytest.raises(ConfigError, match="of several sets"):
        open_shards("{a,b}/000000.tar", "train")
    with pytest.raises(
        DataError, match=r"index.json: no shard index here: no such file; .*shard.py"
    ):
        open_shards(str(shards.parent / "000000.tar"), "train")
    config = DataConfig(shards=str(shards), classes=["a"])
    with pytest.raises(ConfigError, match="leave out classes"):
        open_images(config)
    source = read_archive(shards.parent / "set.npz", "train")
    with pytest.raises(ConfigError, match="already holds shards"):
        write_shards(
            ImageFiles(source, quality=95), shards, num_shards=2, classes="ab", split="train"
        )


def test_the_same_samples_and_seed_give_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    source = read_archive(tmp_path / "set.npz", "train")
    digests = []
    for name, seed in (("again", 0), ("other", 1)):
        written = write_shards(
            ImageFiles(source, quality=95),
            tmp_path / name,
            num_shards=4,
            classes=source.classes,
            split="train",
            seed=seed,
        )
        digests.append([entry.sha256 for entry in written.index.shards])
    first = [entry.sha256 for entry in locate(str(shards), "images").index.shards]
    assert digests[0] == first and set(digests[1]).isdisjoint(first)


@pytest.mark.parametrize(
    ("url", "index"),
    [
        ("data/a/000003.tar", "data/a/index.json"),
        ("https://h/a/000003.tar?key=x.y", "https://h/a/index.json?key=x.y"),
        ("pipe:aws s3 cp s3://b/a-000003.tar -", "pipe:aws s3 cp s3://b/index.json -"),
        ("pipe:cat 'my data/000003.tar'", "pipe:cat 'my data/index.json'"),
    ],
)
def test_the_index_is_looked_for_beside_the_shards(url: str, index: str) -> None:
    assert sibling(url, "index.json") == index
    assert shard_name(url).endswith("000003.tar")


def test_braces_are_expanded(shards: Path) -> None:
    assert expand("a/{0008..0011}.tar") == [f"a/{k:04d}.tar" for k in range(8, 12)]
    for pattern, words in [
        ("a/{0..3.tar", "nbalanced"),
        ("a/{0..3}.zip", "names no .tar"),
        ("a/{0,0}.tar", "twice"),
    ]:
        with pytest.raises(ConfigError, match=words):
            expand(pattern)
