"""An index of shards comes from anywhere: nothing in it is opened, started or trained on unseen."""

from __future__ import annotations

import copy
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import encoded, photo
from watched import watching

from ndavid.data.clip_sets import clip_records
from ndavid.data.image_sources import FileImages
from ndavid.data.shard_images import ShardImages
from ndavid.data.shard_index import FIELDS, locate, parse_index
from ndavid.data.shard_store import ShardStore, read_shard
from ndavid.data.shard_writing import ImageFiles, check_shards, write_shards
from ndavid.errors import ConfigError, DataError, NdavidError

CLIPS = [["a/x.mp4", 0, "g1", 30, 25.0, 64, 48], ["b/y.mp4", 1, "", 40, 0, 64, 48]]
IMAGES = [["a/x.jpg", 0], ["b/y.jpg", 1], ["[3]", -1]]
# What the tars below hold: one member, of two bytes.
TAR_BYTES = 10_240


def index_of(kind: str) -> dict[str, Any]:
    samples = CLIPS if kind == "clips" else IMAGES
    files = ["000000.tar", "000001.tar"]
    parts = [samples[:1], samples[1:]]
    return {
        "format": 1,
        "kind": kind,
        "split": "train",
        "fold": int(kind == "clips"),
        "source": {"digest": "abc"},
        "classes": ["a", "b"],
        "fields": list(FIELDS[kind]),
        "shards": [
            {"file": file, "bytes": TAR_BYTES, "sha256": "0" * 64, "samples": part}
            for file, part in zip(files, copy.deepcopy(parts), strict=True)
        ],
    }


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_set(folder: Path, index: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for k in range(2):
        write_tar(folder / f"00000{k}.tar", {f"00000{k}_000000.jpg": b"hi"})
    content = index if isinstance(index, bytes) else json.dumps(index).encode()
    (folder / "index.json").write_bytes(content)
    return folder


@pytest.mark.parametrize("kind", ["clips", "images"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_a_sound_index_is_read(kind: str, mark: bytes) -> None:
    text = mark + json.dumps(index_of(kind)).encode()
    found = parse_index("index.json", text)
    expected = tuple(tuple(sample) for sample in (CLIPS if kind == "clips" else IMAGES))
    assert tuple(sample for shard in found.shards for sample in shard.samples) == expected
    assert parse_index("index.json", found.to_json().encode()) == found


def test_an_index_that_counts_damaged_frames_is_read() -> None:
    index = index_of("clips")
    index["fields"].append("damaged")
    for shard, damaged in zip(index["shards"], (None, 4), strict=True):
        shard["samples"][0].append(damaged)
    found = parse_index("index.json", json.dumps(index).encode())
    assert [record.damaged for record in clip_records(found)] == [None, 4]
    assert parse_index("index.json", found.to_json().encode()) == found
    older = parse_index("index.json", json.dumps(index_of("clips")).encode())
    assert [record.damaged for record in clip_records(older)] == [None, None]
    del index["shards"][1]["samples"][0][-1]
    with pytest.raises(DataError, match=r"a sample of 000001\.tar has not 8 fields"):
        parse_index("index.json", json.dumps(index).encode())


OUTSIDE = [
    "pipe:touch started; cat 000000.tar",
    "pipe:touch started;.tar",
    "../000000.tar",
    "/tmp/000000.tar",
    "sub/000000.tar",
    "..\\000000.tar",
    "C:000000.tar",
    "file:000000.tar",
    "https://host/000000.tar",
    "$(touch started).tar",
    "a b.tar",
    "-rf.tar",
    ".tar",
    "000000.tar\n",
    "000000.zip",
    "",
    None,
    7,
    ["000000.tar"],
]


@pytest.mark.parametrize("file", OUTSIDE, ids=repr)
@pytest.mark.parametrize("typed", ["folder", "index", "dot"])
def test_a_shard_is_a_plain_name_beside_the_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Any, typed: str
) -> None:
    index = index_of("images")
    index["shards"][0]["file"] = file
    folder = write_set(tmp_path / "set", index)
    monkeypatch.chdir(folder)
    shards = {"folder": str(folder), "index": "index.json", "dot": "."}[typed]
    with watching() as seen, pytest.raises(DataError, match=r"must be a plain name") as caught:
        ShardStore(locate(shards, "images")).content(0)
    assert "\n" not in str(caught.value)
    assert not seen.started and not seen.opened_outside(folder)
    assert not (folder / "started").exists()


def test_commands_that_the_user_types_still_run(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "set", index_of("images"))
    store = ShardStore(locate(f"pipe:cat {folder}/{{000000..000001}}.tar", "images"))
    assert store.content(0) == b"hi"
    # An index that a command brings names its shards to that command, as plain names.
    store = ShardStore(locate(f"pipe:cat {folder}/index.json", "images"))
    assert store.content(0) == b"hi"


def test_a_folder_named_like_a_shard(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "all.tar", index_of("images"))
    assert ShardStore(locate(str(folder), "images")).content(0) == b"hi"


def put(*keys: Any) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    """put("shards", 0, "bytes")(3) gives what sets that value in an index."""

    def of(value: Any) -> Callable[[dict[str, Any]], None]:
        def change(index: dict[str, Any]) -> None:
            place: Any = index
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = value

        return change

    return of


SHARD = ("shards", 0)
FIRST = (*SHARD, "samples", 0)
WRONG = [
    ("images", put("format")(True), "is of format True"),
    ("images", put("kind")("films"), "kind must be clips or images"),
    ("images", put("kind")(["images"]), "kind must be clips or images"),
    ("images", put("fields")("path"), "fields of images must be"),
    ("images", put("split")(3), "split must be text, not 3"),
    ("images", put("split")("tr\x1bain"), "holds a control character"),
    ("images", put("fold")(True), "fold must be a whole number from 0 to 10000, not True"),
    ("images", put("fold")(-1), "fold must be a whole number"),
    ("images", put("source")([]), "'source' must be an object"),
    ("images", put("classes")("ab"), "classes must be a list, not 'ab'"),
    ("images", put("classes")(["a", "a"]), "class 'a' is listed twice"),
    ("images", put("classes")(["a", "b\n"]), "holds a control character"),
    ("images", put("classes")(["a", ""]), "class name is empty"),
    ("images", put("classes")(["a"]), "labels run from -1 to 1, but there are 1 classes"),
    ("images", put("shards")({}), "shards must be a list"),
    ("images", put(*SHARD)("000000.tar"), "a shard must be an object"),
    ("images", put(*SHARD, "file")("000001.tar"), "shard '000001.tar' is listed twice"),
    ("images", put(*SHARD, "bytes")(-1), "bytes of 000000.tar must be a whole number"),
    ("images", put(*SHARD, "bytes")(1.5), "bytes of 000000.tar must be a whole number"),
    ("images", put(*SHARD, "bytes")(10**30), "bytes of 000000.tar must be a whole number"),
    ("images", put(*SHARD, "sha256")("0" * 63), "sha256 of 000000.tar must be 64"),
    ("images", put(*SHARD, "sha256")("Z" * 64), "sha256 of 000000.tar must be 64"),
    ("images", put(*SHARD, "samples")(3), "samples of 000000.tar must be a list"),
    ("images", put(*FIRST)("ab"), "a sample of 000000.tar has not 2 fields"),
    ("images", put(*FIRST, 0)("../x.jpg"), "sample 0 of 000000.tar: the name .* leaves its folder"),
    ("images", put(*FIRST, 0)("/x.jpg"), "is absolute"),
    ("images", put(*FIRST, 0)("a\x1b[2Jb"), "holds a control character"),
    ("images", put(*FIRST, 0)("\ud800"), "holds a control character"),
    ("images", put(*FIRST, 0)(3), "path must be text, not 3"),
    ("images", put(*FIRST, 0)("b/y.jpg"), "sample 'b/y.jpg' is listed twice"),
    ("images", put(*FIRST, 1)(True), "label must be a whole number from -1"),
    ("images", put(*FIRST, 1)(2), "labels run from -1 to 2, but there are 2 classes"),
    ("images", put(*FIRST, 1)(-2), "label must be a whole number from -1"),
    ("clips", put(*FIRST, 1)(2), "labels run from 1 to 2, but there are 2 classes"),
    ("clips", put(*FIRST, 2)(7), "group must be text, not 7"),
    ("clips", put(*FIRST, 3)(0), "num_frames must be a whole number from 1"),
    ("clips", put(*FIRST, 3)(10**12), "num_frames must be a whole number from 1"),
    ("clips", put(*FIRST, 3)(30.0), "num_frames must be a whole number from 1"),
    ("clips", put(*FIRST, 4)(-1), "fps must be a number from 0"),
    ("clips", put(*FIRST, 4)(10**400), "fps must be a number from 0"),
    ("clips", put(*FIRST, 4)(float("nan")), "NaN is no number"),
    ("clips", put(*FIRST, 4)(True), "fps must be a number from 0"),
    ("clips", put(*FIRST, 5)(0), "width must be a whole number from 1"),
    ("clips", put(*FIRST, 6)(2**40), "height must be a whole number from 1"),
]


@pytest.mark.parametrize(("kind", "change", "reason"), WRONG, ids=range(len(WRONG)))
def test_a_value_that_is_not_sound_is_told(kind: str, change, reason: str) -> None:
    index = index_of(kind)
    change(index)
    with pytest.raises(DataError, match=reason) as caught:
        parse_index("index.json", json.dumps(index).encode())
    assert str(caught.value).startswith("index.json: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "Expecting value"),
        (b"[1]", "must be an object"),
        (b"\xff\xfe\x00", "no shard index"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"format": 1, "format": 1}', "key 'format' is listed twice"),
        (b'{"format": ' + b"9" * 5000 + b"}", "no shard index"),
    ],
    ids=["empty", "list", "no text", "deep", "twice", "digits"],
)
def test_text_that_is_no_index_is_told(text: bytes, reason: str) -> None:
    with pytest.raises(DataError, match=reason) as caught:
        parse_index("index.json", text)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_shard_that_unfolds_beyond_its_size_stays_out_of_memory(tmp_path: Path) -> None:
    """Holes and compression make a small file of any size."""
    plain, packed = tmp_path / "plain.tar", tmp_path / "packed.tar"
    write_tar(plain, {"000000_000000.jpg": b"ok"})
    with tarfile.open(packed, "w:gz") as tar:
        for k, size in enumerate((2, 10_000_000)):
            member = tarfile.TarInfo(f"000000_{k:06d}.jpg")
            member.size = size
            tar.addfile(member, io.BytesIO(b"0" * size))
    assert os.stat(packed).st_size < TAR_BYTES * 2
    assert read_shard(str(plain), TAR_BYTES).problem == ""
    found = read_shard(str(packed), TAR_BYTES)
    assert list(found.members) == ["000000_000000"]
    assert "more than its index says" in found.problem


def test_what_an_index_could_not_name_is_left_out_of_the_shards(tmp_path: Path) -> None:
    names = ["a\x1b[2J.jpg", "b.jpg"]
    for name in names:
        (tmp_path / name).write_bytes(encoded(photo(0, 16, 16)))
    source = FileImages(tmp_path, names, torch.tensor([0, 0]), ["a"])
    samples = ImageFiles(source, quality=95)
    written = write_shards(
        samples, tmp_path / "out", num_shards=1, classes=["a"], split="train", fold=0
    )
    assert [sample[0] for sample in written.index.shards[0].samples] == ["b.jpg"]
    ((path, reason),) = written.bad
    assert path == str(tmp_path / names[0]) and "control character" in reason
    assert locate(str(tmp_path / "out"), "images").index == written.index
    with pytest.raises(DataError, match="class 'a' is listed twice"):
        write_shards(
            samples, tmp_path / "twice", num_shards=1, classes=["a", "a"], split="train", fold=0
        )


# Values that have made readers stumble, in any place.
NASTY: list[Any] = [
    *(None, True, False, -1, 0, 2, 10**9, 10**19, 10**400, 1.5, -0.0, 1e308, float("nan")),
    *(float("inf"), "", " ", "a", "..", "../../etc/passwd", "/etc/passwd", "pipe:touch started"),
    *("pipe:touch started;.tar", "file:///etc/passwd", "http://127.0.0.1:9/x.tar", "\x1b[2J"),
    *("a\nb", "\x00", "\ud800", "x" * 100_000, "000000.tar", "000001.tar", "~/x.tar"),
    *([], {}, [[]], [["a", 0]], {"a": 1}, [None], "`touch started`.tar", "-x.tar", "C:\\x.tar"),
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in a tree of JSON."""
    keys = (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    )
    return [found for key in keys for found in ((value, key), *places(value[key]))]


def mutated(kind: str, draw: random.Random) -> bytes:
    index = index_of(kind)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        found = places(index)
        container, key = draw.choice(found)
        deed = draw.randrange(4)
        if deed == 0:
            del container[key]
        elif deed == 1 and isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
        else:
            container[key] = copy.deepcopy(draw.choice(NASTY))
        if not index:
            break
    text = bytearray(json.dumps(index).encode())
    for _ in range(draw.choice((0, 0, 0, 1, 8))):
        text[draw.randrange(len(text))] = draw.randrange(256)
    end = draw.randrange(len(text)) if draw.random() < 0.25 else len(text)
    return bytes(text[:end])


def use_all(folder: Path, kind: str) -> list[DataError]:
    """Everything that training and checking do with an index; errors of single samples."""
    found = []
    located = locate(str(folder), kind)  # type: ignore[arg-type]
    if kind == "images":
        ShardImages(located).digest  # noqa: B018
    else:
        clip_records(located.index)
    store = ShardStore(located)
    for index in range(min(len(store), 4)):
        try:
            store.content(index)
        except DataError as error:
            found.append(error)
    check_shards(folder)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["clips", "images"])
def test_mutated_indices_end_in_one_line(tmp_path: Path, kind: str, seed: int) -> None:
    draw = random.Random(f"{kind} {seed}")
    refused = 0
    for number in range(150):
        content = mutated(kind, draw)
        folder = write_set(tmp_path / "set", content)
        with watching() as seen:
            errors: list[NdavidError] = []
            try:
                errors += use_all(folder, kind)
            except (DataError, ConfigError) as error:
                errors.append(error)
                refused += 1
        for line in map(str, errors):
            assert line.isprintable() and len(line) < 2000, (number, content, line)
        assert not seen.started, (number, content)
        assert not seen.opened_outside(folder), (number, content)
        assert sorted(os.listdir(tmp_path)) == ["set"]
        assert sorted(os.listdir(folder)) == ["000000.tar", "000001.tar", "index.json"]
    # Most are refused; some are still sound, or the test would not reach what reads the shards.
    assert 75 < refused < 150
