"""Reads mutated videos in every way there is and prints, line by line, what became of each.

    media_fuzz_child.py FOLDER    FOLDER holds *.whole.SUFFIX and the files mutated from it

A line is written before a file is touched, so that a crash or a hang names it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import sys
import traceback
from pathlib import Path

from ndavid.data.changed_files import change_of
from ndavid.data.decode import open_reader, probe
from ndavid.data.decoding.pyav_versions import open_video
from ndavid.data.encode import reencode
from ndavid.data.file_digests import file_facts
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.verification import verify
from ndavid.errors import DataError

EVERY = 6  # how many-th file is also re-encoded and verified: that decodes it again and again


def frame_digest(path: Path, num_frames: int) -> str:
    """SHA-256 of all frames, read in portions: files that are mutated may claim large frames."""
    digest = hashlib.sha256()
    with open_reader(path) as reader:
        for index in range(num_frames):
            digest.update(reader.read([index]).contiguous().numpy().tobytes())
    return digest.hexdigest()


def flagged(path: Path) -> int:
    """Frames flagged, counted with nothing of ours."""
    with open_video(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "SLICE", 1
        return sum(frame.is_corrupt for frame in container.decode(stream))


def jump(path: Path, num_frames: int, draw: random.Random) -> None:
    """Reads frames anywhere, with the count known, so that the reader may seek."""
    with open_reader(path, num_frames=num_frames) as reader:
        for _ in range(3):
            reader.read([draw.randrange(num_frames) for _ in range(4)])


def check(path: Path, record: ClipRecord) -> int:
    """Re-encodes one file, which may be refused, and counts what `verify` finds wrong with it."""
    target = path.parent / "again.mp4"
    try:
        reencode(path, target, short_side=32)
    except DataError:
        if target.exists():
            raise AssertionError("a refused file left a copy") from None
    target.unlink(missing_ok=True)
    manifest = Manifest(path.parent, ("a",), (record,)).write(path.parent / "manifest.csv")
    return len(verify(manifest, num_workers=0, num_decoded=None, progress=False).errors)


def examine(path: Path, number: int, whole: ClipRecord) -> dict[str, object]:
    """What became of one file; `whole` is the row of the sound one, as `prepare` writes it."""
    record = dataclasses.replace(whole, path=path.name)
    facts: dict[str, object] = {"changed": change_of(record, path.parent)}
    try:
        info = probe(path)
        facts |= {"frames": info.num_frames, "damaged": info.damaged, "flagged": flagged(path)}
        facts["digest"] = frame_digest(path, info.num_frames)
        jump(path, info.num_frames, random.Random(number))
    except DataError as error:
        facts["refused"] = error.reason
    if number % EVERY == 0:
        facts["errors"] = check(path, record)
    return facts


def record_of(path: Path) -> ClipRecord:
    facts, info = file_facts(path), probe(path)
    size = (info.width, info.height)
    known = (None, facts.num_bytes, facts.digest)
    return ClipRecord(path.name, 0, "", info.num_frames, 25.0, *size, ("train",), *known)


sound = record_of(next(Path(sys.argv[1]).glob("*.whole.*")))
for place, file in enumerate(sorted(Path(sys.argv[1]).glob("*.*.*"))):
    print(json.dumps({"begun": file.name}), flush=True)
    try:
        found = examine(file, place, sound)
    except Exception:
        found = {"odd": traceback.format_exc()[-1500:]}
    print(json.dumps({"name": file.name, **found}), flush=True)
