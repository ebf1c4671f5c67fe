"""Checkpoints that are whole or not there, and that never run code when read.

``checkpoints/step_N/`` holds

- ``model.safetensors``: ``method.state_dict()``: parameters, queues, running statistics;
- ``ema.safetensors``: the same of the averaged weights, where a run keeps them;
- ``state.pt``: optimizer, gradient scaler and counters; plain values that load with weights_only;
- ``complete.json``: step, and size and SHA-256 of each of the above.

It is written under a temporary name, every file and the folder synced, then renamed. A kill, a full
disk or a lost machine leaves the earlier checkpoints as they were, and no half of a new one.

Later steps than the one being saved are left from a run that resumed before them because they were
damaged: they become ``.damaged-step_N``, for their owner to look at, and are never resumed from.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ndavid.checkpoint_files import (
    COMPLETE_FILE,
    EMA_FILE,
    FOLDER,
    MODEL_FILE,
    newest_whole,
    step_folders,
    verify,
)
from ndavid.errors import CheckpointError, DataError
from ndavid.files import file_sha256, sync_to_disk

STATE_FILE = "state.pt"
NEEDED = (MODEL_FILE, STATE_FILE)
FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds, on the CPU."""

    path: Path
    step: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor] | None
    state: dict[str, Any]
    digest: str
    """SHA-256 of model.safetensors"""


def save(
    run_dir: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    state: Mapping[str, Any],
    ema: Mapping[str, Tensor] | None = None,
    keep: int = 0,
) -> Path:
    """Writes ``run_dir/checkpoints/step_N``; of the earlier ones, whole ones stay up to ``keep``.

    Args:
        run_dir: the run's folder.
        step: optimizer steps done.
        model: tensors by name.
        state: plain containers, numbers, strings and tensors.
        ema: averaged tensors by name.
        keep: how many whole checkpoints stay, this one included; 0 keeps all.

    Raises:
        CheckpointError: it could not be written (a full disk); earlier ones are untouched.
    """
    folder = run_dir / FOLDER
    target = folder / f"step_{step}"
    partial = folder / f".partial-step_{step}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        partial.mkdir()
        _write(partial, step, model, state, ema)
        _remove(target)
        partial.rename(target)
        sync_to_disk(folder)
    except (OSError, RuntimeError, SafetensorError, DataError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"{target}: could not be saved: {_reason(error)}; {describe_last(run_dir)}"
        ) from error
    _rotate(run_dir, target, keep)
    return target


def latest_complete(run_dir: Path, *, say: Callable[[str], object] | None = None) -> Path | None:
    """The newest checkpoint of a run that is whole, or None.

    Args:
        run_dir: the run's folder.
        say: is told, in one line each, which newer ones were passed over and why.
    """
    return newest_whole(run_dir, needed=NEEDED, say=say)


def resolve(path: str | Path) -> Path:
    """The checkpoint folder meant by ``path``: a run's folder (its newest whole one) or a step's.

    Raises:
        CheckpointError: there is none, or the one named is damaged.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not path.is_dir():
        raise CheckpointError(
            f"{path}: not a checkpoint: expected a run's folder or its {FOLDER}/step_N"
        )
    if (path / FOLDER).is_dir():
        found = latest_complete(path)
        if found is None:
            raise CheckpointError(f"{path}: holds no complete checkpoint")
        return found
    verify(path, NEEDED)
    return path


def load(path: str | Path) -> Checkpoint:
    """Reads the checkpoint meant by ``path`` (as `resolve`), its digests checked.

    Raises:
        CheckpointError: none there, damaged, or holding anything but plain data.
    """
    folder = resolve(path)
    complete = json.loads((folder / COMPLETE_FILE).read_text(encoding="utf-8-sig"))
    ema = folder / EMA_FILE
    return Checkpoint(
        path=folder,
        step=complete["step"],
        model=_load_tensors(folder / MODEL_FILE),
        ema=_load_tensors(ema) if ema.exists() else None,
        state=_load_state(folder / STATE_FILE),
        digest=complete["files"][MODEL_FILE]["sha256"],
    )


def has_any(run_dir: Path) -> bool:
    """Whether a run's folder holds checkpoints, whole or not."""
    return bool(step_folders(run_dir))


def describe_last(run_dir: Path) -> str:
    """For messages: which checkpoint a run can go on from."""
    last = latest_complete(run_dir)
    return f"the last good checkpoint is {last}" if last else "there is no earlier checkpoint"


def _rotate(run_dir: Path, saved: Path, keep: int) -> None:
    """Sets later checkpoints aside and, with ``keep``, removes all but the newest whole ones.

    A damaged one does not count: counted, it would push out the last that can be resumed from.
    """
    folders = step_folders(run_dir)
    position = folders.index(saved)
    for later in folders[:position]:
        _set_aside(later)
    kept = 1
    for earlier in folders[position + 1 :] if keep else []:
        if kept < keep and _is_whole(earlier):
            kept += 1
        else:
            _remove(earlier)


def _set_aside(folder: Path) -> None:
    aside = folder.with_name(f".damaged-{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    folder.rename(aside)


def _is_whole(folder: Path) -> bool:
    try:
        verify(folder, NEEDED)
    except CheckpointError:
        return False
    return True


def _write(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    state: Mapping[str, Any],
    ema: Mapping[str, Tensor] | None,
) -> None:
    save_file(_separate(model), folder / MODEL_FILE)
    if ema is not None:
        save_file(_separate(ema), folder / EMA_FILE)
    with (folder / STATE_FILE).open("wb") as handle:
        torch.save(dict(state), handle)
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in sorted(folder.iterdir())
    }
    complete = {"format": FORMAT, "step": step, "files": files}
    (folder / COMPLETE_FILE).write_text(json.dumps(complete, indent=2) + "\n")
    for file in folder.iterdir():
        sync_to_disk(file)
    sync_to_disk(folder)


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, none sharing memory, which safetensors would refuse."""
    separate: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        separate[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return separate


def _load_tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: not a safetensors file: {error}") from error


def _load_state(file: Path) -> dict[str, Any]:
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = "refused: it holds pickled objects beyond plain data, which could run code"
        raise CheckpointError(f"{file}: {reason}") from error
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {_first_line(error)}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: holds a {type(state).__name__}, not a trainer's state")
    return state


def _remove(folder: Path) -> None:
    """Removes a checkpoint: renamed first, so that a kill half way leaves none that looks whole."""
    if not folder.exists():
        return
    doomed = folder.with_name(f".removed-{folder.name.lstrip('.')}")
    shutil.rmtree(doomed, ignore_errors=True)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _sweep(folder: Path) -> None:
    """Clears what a kill in the middle of a save or a removal left behind."""
    for pattern in (".partial-step_*", ".removed-*"):
        for left in folder.glob(pattern):
            shutil.rmtree(left)


def _reason(error: Exception) -> str:
    """The system's word for it, dug out of the libraries' own exceptions."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        if f"os error {code}" in text:
            return os.strerror(code)
    return _first_line(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0]
