"""Mutated videos end as frames or as one line: no crash, no hang, nothing unreported."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

CHILD = Path(__file__).with_name("media_fuzz_child.py")
NUM_FRAMES, PER_KIND, SECONDS = 24, 12, 240
KINDS = {
    "h264.mp4": {"codec": "libx264"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "h264.mkv": {"codec": "libx264"},
    "h264.ts": {"codec": "libx264"},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mpeg1.mpg": {"codec": "mpeg1video"},
    "wmv2.wmv": {"codec": "wmv2"},
    "flv1.flv": {"codec": "flv"},
    "vp9.webm": {"codec": "libvpx-vp9"},
}


def flip_bits(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 4, 16))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def cut_off(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(1, len(data)) :]


def damage_header(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 4, 16))):
        data[draw.randrange(min(800, len(data)))] = draw.randrange(256)


def lose_a_block(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    if draw.random() < 0.5:
        del data[start : start + draw.randrange(1, 300)]
    else:
        data[start : start + 200] = bytes(len(data[start : start + 200]))


def ends(data: bytes) -> tuple[int, bytes, bytes]:
    """What the manifest's digest is of: the size, and 64 KiB at either end."""
    return len(data), data[: 64 << 10], data[-64 << 10 :]


MUTATIONS = (flip_bits, cut_off, damage_header, lose_a_block)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_mutated_videos(tmp_path, write_clip, kind) -> None:
    stem, suffix = kind.split(".")
    whole = tmp_path / f"{stem}.whole.{suffix}"
    write_clip(whole, num_frames=NUM_FRAMES, **KINDS[kind])
    draw = random.Random(kind)
    for number in range(PER_KIND):
        data = bytearray(whole.read_bytes())
        MUTATIONS[number % len(MUTATIONS)](data, draw)
        (tmp_path / f"{stem}.{number:02d}.{suffix}").write_bytes(data)

    try:
        done = subprocess.run(
            [sys.executable, CHILD, tmp_path], capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired as late:
        lines = (late.stdout or b"").splitlines()
        raise AssertionError(f"{kind}: hangs; {lines[-1:]}") from None
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (kind, lines[-1:], done.stderr[-500:])
    found = {line["name"]: line for line in lines if "name" in line}
    assert len(found) == PER_KIND + 1

    sound = found.pop(whole.name)
    assert (sound["frames"], sound["damaged"]) == (NUM_FRAMES, 0) and "refused" not in sound
    assert not sound["changed"] and sound["errors"] == 0
    classes: Counter[str] = Counter()
    for name, facts in found.items():
        assert "odd" not in facts, (name, facts["odd"])
        mutated = (tmp_path / name).read_bytes()
        # By what a manifest holds unless more is asked for, which does not see a file's middle.
        assert bool(facts["changed"]) == (ends(mutated) != ends(whole.read_bytes())), (name, facts)
        if "errors" in facts:
            assert bool(facts["errors"]) >= bool(facts["changed"] or "refused" in facts), name
        if "refused" in facts:
            classes["refused"] += 1
            continue
        # What the decoder flags is reported.
        assert facts["damaged"] == facts["flagged"], (name, facts)
        if facts["digest"] == sound["digest"]:
            classes["same frames"] += 1
        elif facts["damaged"]:
            classes["other frames, flagged"] += 1
        elif facts["changed"]:
            classes["other frames, told by the digest alone"] += 1
        else:
            classes["other frames, told by nothing"] += 1
    print(f"{kind}: {dict(sorted(classes.items()))}")
    assert classes["refused"], "not even a cut-off file is refused: the test reads nothing"
