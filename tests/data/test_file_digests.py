"""A digest tells files apart: by both ends, or by every byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndavid.data.file_digests import content_facts, file_facts, kind_of, size_of
from ndavid.errors import DataError

LONG = bytes(range(256)) * 1024  # 256 KiB: longer than both ends together


@pytest.mark.parametrize("content", [b"x", LONG[: 64 * 1024], LONG[: 100 * 1024], LONG])
@pytest.mark.parametrize("kind", ["ends", "sha256"])
def test_a_change_at_either_end_is_seen(tmp_path: Path, content: bytes, kind) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    first = file_facts(path, kind)
    assert first == content_facts(content, kind) and kind_of(first.digest) == kind
    assert first.num_bytes == len(content) == size_of(path)
    changed = {
        content_facts(other, kind).digest
        for other in (
            bytes([content[0] ^ 1]) + content[1:],
            content[:-1] + bytes([content[-1] ^ 1]),
            content + b"\0",
        )
    }
    assert first.digest not in changed
    path.rename(tmp_path / "b.bin")
    assert file_facts(tmp_path / "b.bin", kind) == first


def test_only_the_full_digest_sees_the_middle() -> None:
    other = LONG[:130_000] + b"\xff" + LONG[130_001:]
    assert other != LONG
    assert content_facts(other).digest == content_facts(LONG).digest
    assert content_facts(other, "sha256").digest != content_facts(LONG, "sha256").digest


@pytest.mark.parametrize("kind", ["ends", "sha256"])
def test_a_folder_of_frames_has_facts_too(tmp_path: Path, kind) -> None:
    for name in ("b.jpg", "a.jpg"):
        (tmp_path / name).write_bytes(name.encode())
    first = file_facts(tmp_path, kind)
    assert first.num_bytes == 10 == size_of(tmp_path)
    (tmp_path / "c.jpg").write_bytes(b"more")
    assert file_facts(tmp_path, kind).digest != first.digest


def test_what_is_not_there_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read it"):
        file_facts(tmp_path / "gone.mp4")
