"""Files that are written whole, under names at which nobody can plant a link, and digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from image_files import encoded, photo

from ndavid import files
from ndavid.data.image_archive import PackedSplit, write_archive
from ndavid.data.image_sources import FileImages
from ndavid.data.shard_writing import ImageFiles, write_shards
from ndavid.errors import DataError
from ndavid.files import file_sha256, whole_file, whole_path, whole_text, write_whole_text


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / ("x" * 250 + ".txt")
    with whole_file(target) as stream:
        stream.write(b"one")
        assert not target.exists()
    assert target.read_bytes() == b"one"
    with pytest.raises(ZeroDivisionError), whole_file(target) as stream:
        stream.write(bytes([1 // 0]))
    assert target.read_bytes() == b"one" and len(os.listdir(tmp_path)) == 1


def test_a_text_appears_as_it_was_written_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_whole_text(target, "one\r\nzwei ü\n")
    assert target.read_bytes() == "one\r\nzwei ü\n".encode()
    with pytest.raises(ZeroDivisionError), whole_text(target) as stream:
        stream.writelines("half" * 10_000 + str(1 // (3 - k)) for k in range(4))
    assert target.read_bytes()[:3] == b"one" and os.listdir(tmp_path) == ["a.txt"]


def test_a_name_that_exists_is_never_written_on(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(files.secrets, "token_hex", lambda _: "guessed")
    precious = tmp_path / "precious"
    (tmp_path / ".a.guessed.partial").symlink_to(precious)
    with pytest.raises(FileExistsError), whole_file(tmp_path / "a"):
        pass
    assert not precious.exists()


def write_images(folder: Path) -> None:
    write_archive(folder / "a.npz", ["a"], {"train": PackedSplit([encoded(photo(0))], [0])})


def write_tars(folder: Path) -> None:
    (folder.parent / "0.jpg").write_bytes(encoded(photo(0)))
    source = FileImages(folder.parent, ["0.jpg"], torch.tensor([0]), ["a"])
    write_shards(ImageFiles(source, quality=95), folder, num_shards=1, classes=["a"], split="train")


PLANTED = {
    write_images: [f".a.{os.getpid()}.partial.npz", ".a.npz.partial", "a.npz"],
    write_tars: [".000000.tar.partial", "000000.tar", ".index.json.partial"],
}


@pytest.mark.parametrize("write", PLANTED)
def test_links_in_the_output_are_not_followed(tmp_path: Path, write: Callable) -> None:
    folder, precious = tmp_path / "out", tmp_path / "precious"
    folder.mkdir()
    precious.write_bytes(b"precious")
    for name in PLANTED[write]:
        (folder / name).symlink_to(precious)
    write(folder)
    assert precious.read_bytes() == b"precious"


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".000001.tar.0123456789abcdef.partial").write_bytes(b"half")
    write_tars(tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["000000.tar", "index.json"]


def test_a_file_that_another_library_opens_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "clip.mp4"
    with whole_path(target) as partial:
        assert partial.suffix == ".mp4" and partial.parent == tmp_path
        partial.write_bytes(b"one")
        assert not target.exists()
    with pytest.raises(ZeroDivisionError), whole_path(target) as partial:
        partial.write_bytes(bytes([1 // 0]))
    assert target.read_bytes() == b"one" and os.listdir(tmp_path) == ["clip.mp4"]


def test_a_digest_is_of_the_whole_file_and_names_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(b"x" * 3_000_000).hexdigest()
    with pytest.raises(DataError, match="gone: cannot read it: No such file"):
        file_sha256(tmp_path / "gone")
