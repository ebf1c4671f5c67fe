"""Archives come out where they should, and hostile ones don't come out at all."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import tarfile
import time
import zipfile
from pathlib import Path

import pytest

from ndavid.data.archives import unpack, unpack_nested
from ndavid.errors import DataError


def make_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def everything_below(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


@pytest.fixture
def bsdtar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH on which the only rar tool is `bsdtar`, played by tar: it takes the same options."""
    tools = tmp_path / "tools"
    tools.mkdir()
    tar, gzip = shutil.which("tar"), shutil.which("gzip")
    if tar is None or gzip is None:
        pytest.skip("needs tar and gzip")
    (tools / "bsdtar").symlink_to(tar)
    (tools / "gzip").symlink_to(gzip)
    monkeypatch.setenv("PATH", str(tools))
    return tools


@pytest.mark.parametrize("make", [(make_zip, "a.zip"), (make_tar, "a.tar.gz")])
def test_members_come_out_with_their_content(tmp_path: Path, make):
    writer, name = make
    archive = writer(tmp_path / name, {"one/a.txt": b"A", "two/b b!.txt": b"B" * 100_000})
    files = unpack(archive, tmp_path / "out")
    assert everything_below(tmp_path / "out") == ["one/a.txt", "two/b b!.txt"]
    assert sorted(p.read_bytes()[:1] for p in files) == [b"A", b"B"]


@pytest.mark.parametrize("make", [(make_zip, "a.zip"), (make_tar, "a.tar.gz")])
@pytest.mark.parametrize(
    "name", ["../evil.txt", "good/../../evil.txt", "/abs/evil.txt", "..\\evil.txt", "C:\\evil.txt"]
)
def test_a_name_that_leaves_the_folder_is_refused_before_anything_is_written(
    tmp_path: Path, make, name
):
    writer, file = make
    archive = writer(tmp_path / file, {"good.txt": b"1", name: b"2"})
    before = everything_below(tmp_path)
    with pytest.raises(DataError, match="refused"):
        unpack(archive, tmp_path / "deep" / "out")
    assert everything_below(tmp_path) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_tar_links_and_devices_are_refused(tmp_path: Path, kind: bytes):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("innocent.txt")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"innocent\.txt.*refused"):
        unpack(tmp_path / "a.tar", tmp_path / "out")
    assert everything_below(tmp_path / "out") == []


def test_zip_links_are_refused(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        member = zipfile.ZipInfo("link")
        member.create_system, member.external_attr = 3, 0o120777 << 16
        archive.writestr(member, "/etc/passwd")
    with pytest.raises(DataError, match="refused"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


def test_a_link_that_lies_in_the_target_is_not_followed_out(tmp_path: Path):
    outside, target = tmp_path / "outside", tmp_path / "out"
    outside.mkdir()
    target.mkdir()
    (target / "sub").symlink_to(outside)
    archive = make_zip(tmp_path / "a.zip", {"sub/evil.txt": b"x"})
    with pytest.raises(DataError, match="refused"):
        unpack(archive, target)
    assert everything_below(outside) == []


@pytest.mark.parametrize("name", ["a.zip", "a.tar.gz"])
def test_what_is_no_archive_is_a_data_error(tmp_path: Path, name):
    (tmp_path / name).write_bytes(b"<html>not found</html>")
    with pytest.raises(DataError, match=name):
        unpack(tmp_path / name, tmp_path / "out")
    with pytest.raises(DataError, match="none of"):
        unpack(tmp_path / "a.lzh", tmp_path / "out")


def test_rar_without_a_tool_says_what_to_install(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"unrar, bsdtar or 7z.*apt-get install"):
        unpack(tmp_path / "a.rar", tmp_path / "out")


def test_rar_goes_through_the_tool_at_hand(tmp_path: Path, bsdtar):
    make_tar(tmp_path / "a.rar", {"one/a.avi": b"A", "b.avi": b"B"}, mode="w")
    files = unpack(tmp_path / "a.rar", tmp_path / "out")
    assert everything_below(tmp_path / "out") == ["b.avi", "one/a.avi"]
    assert all(path.is_file() for path in files)


def test_rar_names_that_climb_out_are_refused_before_extracting(tmp_path: Path, bsdtar):
    make_tar(tmp_path / "a.rar", {"ok": b"1", "../../evil": b"2"}, mode="w")
    with pytest.raises(DataError, match="refused"):
        unpack(tmp_path / "a.rar", tmp_path / "deep" / "out")
    assert everything_below(tmp_path / "deep") == []


def test_rar_links_are_refused_after_extracting_and_nothing_stays(tmp_path: Path, bsdtar):
    with tarfile.open(tmp_path / "a.rar", "w") as archive:
        member = tarfile.TarInfo("link")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        archive.addfile(member)
    with pytest.raises(DataError, match="link"):
        unpack(tmp_path / "a.rar", tmp_path / "out")
    assert os.listdir(tmp_path / "out") == []


def test_a_failing_tool_is_quoted(tmp_path: Path, bsdtar):
    (tmp_path / "a.rar").write_bytes(b"not an archive at all")
    with pytest.raises(DataError, match=r"a\.rar: bsdtar ended with"):
        unpack(tmp_path / "a.rar", tmp_path / "out")


def test_inner_archives_are_unpacked_where_they_lie_and_removed(tmp_path: Path):
    inner = make_zip(tmp_path / "wave.zip", {"wave/a.avi": b"A"}).read_bytes()
    outer = make_zip(tmp_path / "all.zip", {"wave.zip": inner, "readme.txt": b"hi"})
    files = unpack_nested(outer, tmp_path / "out")
    assert everything_below(tmp_path / "out") == ["readme.txt", "wave/a.avi"]
    assert len(files) == 2


# --- names, links and sizes that an archive may not choose ----------------------------------------


@pytest.mark.parametrize("make", [(make_zip, "a.zip"), (make_tar, "a.tar")])
@pytest.mark.parametrize("planted", [".a.txt.partial", ".a.txt.PID.partial", "a.txt"])
def test_a_link_that_was_planted_is_not_written_through(tmp_path: Path, make, planted: str):
    writer, name = make
    archive = writer(tmp_path / name, {"a.txt": b"new"})
    target, precious = tmp_path / "out", tmp_path / "out" / "precious"
    target.mkdir()
    precious.write_bytes(b"precious")
    (target / planted.replace("PID", str(os.getpid()))).symlink_to(precious)
    unpack(archive, target)
    assert precious.read_bytes() == b"precious"
    assert (target / "a.txt").read_bytes() == b"new" and not (target / "a.txt").is_symlink()


def test_names_with_control_characters_are_refused(tmp_path: Path):
    archive = make_tar(tmp_path / "a.tar", {"ok": b"1", "a\x1b[2Jb": b"2"}, mode="w")
    with pytest.raises(DataError, match=r"control character.*refused"):
        unpack(archive, tmp_path / "out")
    assert everything_below(tmp_path / "out") == []


def deflated(path: Path, size: int) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros", bytes(size))
    return path


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "sparse"])
def test_more_bytes_than_allowed_are_refused_before_any_is_written(tmp_path: Path, kind: str):
    size = 3_000_000
    if kind == "zip":
        archive = deflated(tmp_path / "a.zip", size)
    elif kind == "tar.gz":
        archive = make_tar(tmp_path / "a.tar.gz", {"zeros": bytes(size)})
    else:  # a hole of that size takes no bytes in the archive
        archive = tmp_path / "a.tar"
        member = tarfile.TarInfo("zeros")
        member.type = tarfile.GNUTYPE_SPARSE
        header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        header[483:495] = b"%011o\0" % size
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
        archive.write_bytes(bytes(header) + bytes(1024))
    assert archive.stat().st_size < 20_000
    with pytest.raises(DataError, match=r"more than the 0\.00299999 GB"):
        unpack(archive, tmp_path / "out", max_bytes=size - 10)
    assert everything_below(tmp_path / "out") == []
    (file,) = unpack(archive, tmp_path / "out", max_bytes=size)
    assert file.stat().st_size == size


def test_inner_archives_share_what_is_allowed(tmp_path: Path):
    inner = {f"{k}.zip": deflated(tmp_path / f"{k}.zip", 1000).read_bytes() for k in range(3)}
    outer = make_zip(tmp_path / "all.zip", inner)
    assert len(unpack_nested(outer, tmp_path / "whole", max_bytes=3000)) == 3
    with pytest.raises(DataError, match="more than the 999 bytes that are allowed"):
        unpack_nested(outer, tmp_path / "out", max_bytes=2999)


def test_a_tool_that_writes_too_much_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "bsdtar").write_text(
        "#!/bin/sh\n[ $1 = -tf ] && echo zeros && exit\n"
        "while :; do echo 0123456789 >> zeros; /bin/sleep 0.01; done\n"
    )
    (tools / "bsdtar").chmod(0o755)
    monkeypatch.setenv("PATH", str(tools))
    (tmp_path / "a.rar").touch()
    started = time.monotonic()
    with pytest.raises(DataError, match="more than the 100 bytes that are allowed"):
        unpack(tmp_path / "a.rar", tmp_path / "out", max_bytes=100)
    assert time.monotonic() - started < 30
    assert os.listdir(tmp_path / "out") == []


def edited(path: Path, local: int, central: int, value: int) -> Path:
    """A zip of one member with one byte set in its local and in its central header."""
    content = bytearray(make_zip(path, {"a.txt": b"text"}).read_bytes())
    content[local] = value
    content[content.index(b"PK\x01\x02") + central] = value
    path.write_bytes(content)
    return path


def test_an_encrypted_zip_is_one_line(tmp_path: Path):
    archive = edited(tmp_path / "a.zip", 6, 8, 0x1)
    with pytest.raises(DataError, match=r"a\.zip: 'a\.txt' is encrypted"):
        unpack(archive, tmp_path / "out")


def test_a_zip_of_an_unknown_method_is_one_line(tmp_path: Path):
    archive = edited(tmp_path / "a.zip", 8, 10, 97)
    with pytest.raises(DataError, match=r"'a\.txt' is packed by method 97, which Python cannot"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_damaged_archives_are_data_errors_or_whole(tmp_path: Path, kind: str):
    make = make_zip if kind == "zip" else make_tar
    members = {"a/b.txt": b"text" * 100, "c.txt": b"more"}
    whole = make(tmp_path / f"whole.{kind}", members).read_bytes()
    failed = 0
    for place in range(0, len(whole), 3):
        content = bytearray(whole)
        content[place] ^= 0xFF
        archive = tmp_path / f"a.{kind}"
        archive.write_bytes(content)
        try:
            for file in unpack(archive, tmp_path / "out"):
                assert file.read_bytes() in members.values(), place
        except DataError:
            failed += 1
        shutil.rmtree(tmp_path / "out")
    assert failed > 20


def test_a_tar_with_more_behind_its_end_than_is_allowed_is_refused(tmp_path: Path):
    for count, refused in ((100_000, False), (3_000_000, True)):
        archive = make_tar(tmp_path / "a.tar.gz", {"a.txt": b"text"})
        with gzip.open(archive, "ab") as stream:
            stream.write(bytes(count))
        if refused:
            with pytest.raises(DataError, match="more than the"):
                unpack(archive, tmp_path / "refused", max_bytes=4)
            assert everything_below(tmp_path / "refused") == []
        else:
            assert len(unpack(archive, tmp_path / "out", max_bytes=4)) == 1
