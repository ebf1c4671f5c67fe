"""A run's folder: its config, and the rule for going on in one that already holds work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ndavid.engine import checkpoint
from ndavid.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.yaml"

# Keys, by their last name, that a resumed run may change: they decide how long it runs, what it
# writes and how fast, not what a given step computes.
FREE_KEYS = frozenset(
    {
        "output",
        "epochs",
        "max_steps",
        "resume",
        "save_every_steps",
        "keep_checkpoints",
        "log_every",
        "num_workers",
        "trackers",
        "max_bad_fraction",
        "device",
        "compile",
        "channels_last",
        "find_unused_parameters",
    }
)


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


def check_same_config(checkpoint_path: Path, config_yaml: str) -> None:
    """Refuses to go on with a config that would compute something else.

    Raises:
        ConfigError: names the keys that differ, with both values.
    """
    file = checkpoint_path.parent.parent / CONFIG_FILE
    if not file.exists() or not config_yaml:
        return
    before, now = flatten(yaml.safe_load(file.read_text())), flatten(yaml.safe_load(config_yaml))
    different = [
        f"{key} was {before.get(key, 'absent')!r}, is {now.get(key, 'absent')!r}"
        for key in sorted(before.keys() | now.keys())
        if key.rsplit(".", 1)[-1] not in FREE_KEYS and before.get(key) != now.get(key)
    ]
    if different:
        raise ConfigError(
            f"{checkpoint_path}: cannot resume with another config: {'; '.join(different)} "
            "(set it back, or choose another output)"
        )


def check_same_position(
    checkpoint_path: Path, saved: Mapping[str, Any], now: dict[str, int]
) -> None:
    """Refuses to go on where the data would come in another order.

    Args:
        checkpoint_path: named in the message.
        saved: the checkpoint's state.
        now: world_size and num_samples of this run.

    Raises:
        CheckpointError: one of them differs.
    """
    for name, value in now.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{checkpoint_path}: was written with {name} {saved.get(name)}, "
                f"this run has {value}: the order of the data would change"
            )


def write_config(output: Path, config_yaml: str) -> None:
    """Writes the resolved config.yaml."""
    (output / CONFIG_FILE).write_text(config_yaml, encoding="utf-8")


def flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts -> dotted keys; lists are leaves."""
    return dict(_leaves(values or {}, prefix))


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
