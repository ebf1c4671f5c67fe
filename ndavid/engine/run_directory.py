"""A run's folder: its config, and what must not be there when a run begins."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ndavid.config import flatten
from ndavid.engine import checkpoint
from ndavid.engine.folder_kind import foreign_files, kind_of, of_another_kind, refusal
from ndavid.engine.settings import Settings
from ndavid.errors import CheckpointError, ConfigError
from ndavid.files import write_whole_text

CONFIG_FILE = "config.yaml"

# What a run writes; a file of one of these names in a folder without a run is somebody else's.
OWN_FILES = (
    *("environment.json", "metrics.jsonl", "report.html", "negatives.png", "bad_clips.csv"),
    "result.json",
)


def check_folder(output: Path, settings: Settings) -> None:
    """Refuses a folder that holds something else than a run of this kind, or nothing of ours.

    Raises:
        ConfigError: one line that names what is there.
    """
    way_out = "choose another run.output"
    why = refusal(output, "a training run", way_out)
    file = output / CONFIG_FILE
    if not why and kind_of(output) != "a training run":
        # A run that ended before its first checkpoint has a config of our kind.
        names = OWN_FILES if not file.exists() else ()
        why = foreign_files(output, names, way_out)
    if not why and file.exists() and settings.values:
        try:
            before = read_config(file)
        except CheckpointError:
            return  # damaged: whoever goes on from it is told (resume_rules.py)
        now = settings.values
        if before and not before.keys() & now.keys():
            why = foreign_files(output, (CONFIG_FILE,), way_out)
        elif gone := of_another_kind(before, now):
            why = other_run(output, gone, way_out)
    if why:
        raise ConfigError(why)


def other_run(place: Path, gone: list[str], way_out: str) -> str:
    """Says that a folder holds another kind of run, by two keys of its config."""
    return f"{place} holds another kind of run (its config has {', '.join(gone)}, ...): {way_out}"


def find_start(output: Path, resume: str, say: Callable[[str], object]) -> Path | None:
    """The checkpoint to go on from, or None for a fresh start.

    Args:
        output: the run's folder.
        resume: "auto" (the newest whole one of this run), "never", or a path (any run's).
        say: is told of damaged checkpoints that are passed over.

    Raises:
        CheckpointError: a path that is no checkpoint, or none left whole of several.
        ConfigError: a folder that already holds checkpoints, and the run would not go on from its
            newest: theirs and new ones would mix.
    """
    latest = checkpoint.latest_complete(output, say=say if resume == "auto" else None)
    if resume == "auto":
        if latest is None and checkpoint.has_any(output):
            raise CheckpointError(
                f"{output}: none of its checkpoints is whole; remove them to start from scratch"
            )
        return latest
    found = None if resume == "never" else checkpoint.resolve(resume)
    if latest is not None and (found is None or found.resolve() != latest.resolve()):
        raise ConfigError(
            f"{output} already holds checkpoints and resume is '{resume}': "
            "use resume: auto to go on from its newest, or choose another output"
        )
    return found


def read_config(file: Path) -> dict[str, Any]:
    """The dotted keys of a run's config.yaml.

    Raises:
        CheckpointError: it is damaged; one line that names it and what to do.
    """
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8-sig"))
        if not isinstance(values, Mapping):
            raise ValueError("it is empty" if values is None else "it is no block of keys")
        return flatten(values)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{file}: cannot be read: {reason}; put back the config that the run was started with, "
            "or choose another output"
        ) from error


def write_config(output: Path, settings: Settings) -> None:
    """Writes the resolved config.yaml."""
    write_whole_text(output / CONFIG_FILE, settings.yaml)
