"""Which files make a run's checkpoint, and whether they are still what was written.

``run/checkpoints/step_N/complete.json`` is written last and names the size and SHA-256 of every
other file in its folder. Whoever reads weights asks here first: a file that a disk or a copy has
changed can still load, into a model that is silently another one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ndavid.errors import CheckpointError
from ndavid.files import file_sha256

FOLDER = "checkpoints"
COMPLETE_FILE = "complete.json"
MODEL_FILE = "model.safetensors"
EMA_FILE = "ema.safetensors"


def step_folders(run_dir: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first, whole or not."""
    folder = run_dir / FOLDER
    found = folder.iterdir() if folder.is_dir() else iter(())
    steps = {int(m[1]): p for p in found if (m := re.fullmatch(r"step_(\d+)", p.name))}
    return [steps[step] for step in sorted(steps, reverse=True)]


def verify(
    folder: Path, needed: Iterable[str] = (MODEL_FILE,), *, keep: Iterable[str] = ()
) -> dict[str, bytes]:
    """Checks that every file of a checkpoint is there as it was written.

    Args:
        folder: a ``step_N``.
        needed: files that it must have.
        keep: files whose content is returned, so that nobody has to read them again.

    Raises:
        CheckpointError: names the file and what became of it.
    """
    try:
        index = read_index(folder)
        files = {str(name): (int(f["bytes"]), f["sha256"]) for name, f in index["files"].items()}
        int(index["step"])
    except FileNotFoundError as error:
        reason = f"not a checkpoint, or one not written to the end: no {COMPLETE_FILE}"
        raise CheckpointError(f"{folder}: {reason}") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: {COMPLETE_FILE} cannot be read: {error}") from error
    if missing := set(needed) - files.keys():
        raise CheckpointError(f"{folder}: {COMPLETE_FILE} does not name {sorted(missing)}")
    kept: dict[str, bytes] = {}
    for name, (size, expected) in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if (found := file.stat().st_size) != size:
            raise CheckpointError(f"{file}: has {found} bytes instead of {size}")
        if name in keep:
            kept[name] = file.read_bytes()
            same = hashlib.sha256(kept[name]).hexdigest() == expected
        else:
            same = file_sha256(file) == expected
        if not same:
            raise CheckpointError(f"{file}: its content changed after it was written")
    return kept


def read_index(folder: Path) -> dict[str, Any]:
    """What ``complete.json`` of a checkpoint says, unchecked: ``step``, ``files``, ``encoder``."""
    found: dict[str, Any] = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8-sig"))
    return found


def newest_whole(
    run_dir: Path,
    *,
    needed: Iterable[str] = (MODEL_FILE,),
    say: Callable[[str], object] | None = None,
) -> Path | None:
    """The newest checkpoint of a run that passes `verify`, or None.

    Args:
        run_dir: the run's folder.
        needed: files that it must have.
        say: is told, in one line each, which newer ones were passed over and why.
    """
    found = read_newest_whole(run_dir, needed=needed, say=say)
    return None if found is None else found[0]


def read_newest_whole(
    run_dir: Path,
    *,
    needed: Iterable[str] = (MODEL_FILE,),
    keep: Iterable[str] = (),
    say: Callable[[str], object] | None = None,
) -> tuple[Path, dict[str, bytes]] | None:
    """The folder of `newest_whole`, and the content of the files named in ``keep``."""
    for folder in step_folders(run_dir):
        try:
            return folder, verify(folder, needed, keep=keep)
        except CheckpointError as error:
            if say is not None:
                say(f"passed over a damaged checkpoint: {error}")
    return None
