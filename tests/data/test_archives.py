"""Archives come out where they should, and hostile ones don't come out at all."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
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
