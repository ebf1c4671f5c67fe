"""Where an evaluation writes: a folder of its checkpoint's name and task, which is its alone.

Without an ``output`` it is ``runs/NAME-TASK``, in the working directory: a checkpoint may lie where
nobody may write. ``TASK`` is the evaluator's name (``knn``, ``image_linear``). ``NAME`` is

- of a checkpoint below a folder ``runs``, the rest of its path, without ``checkpoints`` and the
  name of the weights' file: ``runs/study/seed0/checkpoints/step_9`` gives ``study-seed0-step_9``;
- of a checkpoint elsewhere, the run's or saved model's folder, or the file without its suffixes;
- with ``{fold}`` in it, that with ``N`` in its place;
- of random weights, ``random-`` and the encoder's name; of images in files, that of their folder.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from ndavid.checkpoint_files import FOLDER
from ndavid.engine.folder_kind import foreign_files, refusal
from ndavid.errors import ConfigError, printable
from ndavid.evaluation.outcomes import OUTCOMES_FILE
from ndavid.evaluation.protocol import Result
from ndavid.evaluation.report import REPORT_FILE, RESULT_FILE
from ndavid.interruption import kept_when_interrupted
from ndavid.locks import hold

ConfigT = TypeVar("ConfigT")

_WAY_OUT = "choose another output"
_SUFFIXES = (".safetensors", ".pth", ".pt", ".tar", ".pkl", ".bin", ".ckpt")
_LONGEST = 100

# What each evaluator calls its results.
_TASKS = {
    "linear": ("linear_probe",),
    "image_linear": ("linear_probe", "linear"),
    "finetune": ("finetune", "scratch", "linear"),
    "image_finetune": ("finetune", "scratch"),
    "image_knn": ("knn",),
    "motion": ("motion_probe",),
}
# Keys that say what was measured on what, wherever an evaluator has them.
_MEASURED = (
    *("checkpoint", "data.root", "data.source", "data.test", "reference.root"),
    *("generated.root", "model.encoder", "model.weights", "weights", "folds"),
)


def alone_in_output(run: Callable[[ConfigT], Result]) -> Callable[[ConfigT], Result]:
    """Gives an evaluator its output folder, and holds it while it runs.

    An empty ``config.output`` becomes the default. Of several ranks the first one looks at the
    folder and holds it for all. Ctrl-C says what is kept.

    Raises:
        ConfigError: When it is called, before anything is computed: the folder holds something
            else, or another process works in it.
        DataError: The folder cannot be written.
    """
    task = run.__module__.rpartition(".")[2]

    @functools.wraps(run)
    def alone(config: ConfigT) -> Result:
        settled = with_output(config, task)
        settings: Any = settled
        with kept_when_interrupted(f"what was finished is kept in {settings.output}"):
            # The launcher's word: ranks have not met yet.
            if os.environ.get("RANK", "0") != "0":
                return run(settled)
            chosen = bool(getattr(config, "output", ""))
            check_folder(Path(settings.output), task, None if chosen else settled)
            with hold(settings.output):
                return run(settled)

    return alone


def with_output(config: ConfigT, task: str) -> ConfigT:
    """Returns an evaluator's config with its default output folder, where it names none."""
    values: Any = config
    if values.output:
        return config
    name = name_of(values.checkpoint) if values.checkpoint else _name_without_checkpoint(values)
    changed: Any = dataclasses.replace(values, output=str(Path("runs") / f"{name}-{task}"))
    return changed


def name_of(checkpoint: str) -> str:
    """Returns what a checkpoint is called in its evaluations' folders; see the module."""
    path = Path(checkpoint)
    parts = list((path if path.name not in ("", "..") else path.resolve()).parts)
    stem = parts[-1]
    while stem.endswith(_SUFFIXES) and "." in stem:
        stem = stem.rpartition(".")[0]
    parts[-1] = stem
    if stem == "model" and stem != path.name:
        del parts[-1]
    first = len(parts) - 1
    if "runs" in parts[:-1]:
        first = len(parts) - parts[::-1].index("runs")
    elif FOLDER in parts:
        first = max(parts.index(FOLDER) - 1, 0)
    elif stem == "ema" and stem != path.name:
        first -= 1
    chosen = "-".join(part for part in parts[max(first, 0) :] if part != FOLDER)
    return _plain(chosen.replace("{fold}", "N")) or "checkpoint"


def _name_without_checkpoint(config: Any) -> str:
    generated = getattr(getattr(config, "generated", None), "root", "")
    if generated:
        return name_of(generated)
    encoder = getattr(getattr(config, "model", None), "encoder", "")
    return _plain(f"random-{encoder}")


def _plain(name: str) -> str:
    """Letters, digits, dots, hyphens and underscores alone, and not too many."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[-_LONGEST:]


def check_folder(folder: Path, task: str, default: Any = None) -> None:
    """Refuses a folder whose contents an evaluator would write over.

    Args:
        folder: its output.
        task: the evaluator's name.
        default: its config, where the folder is the default one: then an older result must be of
            the same weights and data, too.

    Raises:
        ConfigError: a run, a study, a dataset, another evaluator's result, or files of nobody's.
    """
    stored = _stored_result(folder / RESULT_FILE)
    why = refusal(folder, "an evaluation's result", _WAY_OUT)
    if not why and stored is None:
        ours = (RESULT_FILE, REPORT_FILE, OUTCOMES_FILE)
        why = foreign_files(folder, ours, _WAY_OUT)
    if not why and stored is not None:
        why = _other_result(stored, task, default)
        why = why and f"{printable(str(folder))} holds the result of {why}: {_WAY_OUT}"
    if why:
        raise ConfigError(why)


def _stored_result(file: Path) -> Mapping[str, Any] | None:
    """What ``result.json`` says; None where there is none, or it is not ours."""
    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"))
        return values if {"task", "metrics", "protocol"} <= values.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def _other_result(stored: Mapping[str, Any], task: str, default: Any) -> str:
    """In words, of what else a stored result is; empty where it may be replaced."""
    known = _TASKS.get(task, (task,))
    if stored["task"] not in known:
        return printable(f"{stored['task']}, not of {known[0]}")
    then = stored.get("config")
    if default is None or not isinstance(then, Mapping):
        return ""
    now = dataclasses.asdict(default)
    for key in _MEASURED:
        before, wanted = _at(then, key), _at(now, key)
        if None not in (before, wanted) and before != wanted:
            return printable(f"{key} {before!r}, not {wanted!r}")
    return ""


def _at(values: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return None
        values = values[name]
    return values
