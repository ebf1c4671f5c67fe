"""Headers of a tar that state, or are, more than memory holds are refused before they are read."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from ndavid.data.archives import unpack
from ndavid.data.shard_store import read_shard
from ndavid.data.tar_headers import MAX_HEADER_BYTES
from ndavid.errors import DataError

GIGABYTE = 10**9
SPECIAL = [
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
]


def header(kind: bytes, size: int, name: str = "name") -> bytearray:
    """One block that states a size, signed as it should be."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return bytearray(member.tobuf(tarfile.GNU_FORMAT))


def signed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.fixture(scope="module")
def zeros() -> bytes:
    """A gigabyte of zeros as gzip members of 10 MB: some hundred times less."""
    return gzip.compress(bytes(10**7)) * (GIGABYTE // 10**7)


def in_bounded_memory(path: Path, work: str) -> str:
    """What a process prints that may have half a gigabyte more than it has at its start."""
    code = (
        "import resource, sys\n"
        "from ndavid.data.archives import unpack\n"
        "from ndavid.data.shard_store import read_shard\n"
        "from ndavid.errors import DataError\n"
        "path = sys.argv[1]\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "limit = pages * resource.getpagesize() + 500_000_000\n"
        "resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        f"{work}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-1500:]
    return done.stdout


UNPACK = "try:\n    unpack(path, path + '.out')\nexcept DataError as error:\n    print(error)"
READ = "print(read_shard(path, 10**10).problem)"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="measures memory by /proc")
@pytest.mark.parametrize("work", [UNPACK, READ], ids=["unpack", "read_shard"])
def test_a_header_that_is_a_gigabyte_is_refused_in_little_memory(tmp_path, zeros, work) -> None:
    path = tmp_path / "long.tar.gz"
    path.write_bytes(gzip.compress(bytes(header(tarfile.GNUTYPE_LONGNAME, GIGABYTE))) + zeros)
    said = in_bounded_memory(path, work)
    assert len(said.splitlines()) == 1 and f"a header of {GIGABYTE} bytes" in said


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("size", [MAX_HEADER_BYTES + 1, -512])
def test_each_kind_of_header_is_bounded(tmp_path: Path, kind: bytes, size: int) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(bytes(header(kind, size)) + bytes(header(tarfile.REGTYPE, 0)) + bytes(1024))
    with pytest.raises(DataError, match=f"a header of {size} bytes"):
        unpack(path, tmp_path / "out")
    assert f"a header of {size} bytes" in read_shard(str(path), 10**6).problem


@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_attributes_come_through(tmp_path: Path, layout: int) -> None:
    path, name = tmp_path / "a.tar", "/".join(["d" * 50] * 8)
    with tarfile.open(path, "w", format=layout) as tar:
        member = tarfile.TarInfo(name)
        member.pax_headers = {"SCHILY.xattr.user.note": "x" * 60_000}
        tar.addfile(member)
    (file,) = unpack(path, tmp_path / "out")
    assert file == (tmp_path / "out" / name).resolve()


def test_lists_of_holes_without_an_end_are_refused(tmp_path: Path) -> None:
    old = header(tarfile.GNUTYPE_SPARSE, 0)
    old[482] = 1  # more of it follows
    new = tarfile.TarInfo("zeros")
    new.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    listed = b"%d\n" % 10**9 + b"1\n" * 10**6
    for number, start in enumerate((signed(old), new.tobuf(tarfile.PAX_FORMAT))):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(start + listed + bytes(-len(listed) % 512 + 1024))
        with pytest.raises(DataError, match="a sparse file with a list of holes"):
            unpack(path, tmp_path / "out")


def test_headers_that_go_down_without_end_are_a_problem_of_the_tar(tmp_path: Path) -> None:
    path = tmp_path / "deep.tar"
    level = bytes(header(tarfile.GNUTYPE_LONGNAME, 5)) + b"name\0".ljust(512, b"\0")
    path.write_bytes(level * 2000 + bytes(1024))
    assert "recursion" in read_shard(str(path), 10**7).problem
    with pytest.raises(DataError, match="recursion"):
        unpack(path, tmp_path / "out")
