"""What a run that goes on from a checkpoint must have in common with the run that wrote it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ndavid.engine import checkpoint, environment
from ndavid.engine.folder_kind import of_another_kind
from ndavid.engine.run_directory import CONFIG_FILE, other_run, read_config
from ndavid.engine.settings import Settings
from ndavid.errors import CheckpointError, ConfigError


def check_same_config(
    checkpoint_path: Path,
    settings: Settings,
    *,
    same_data: bool = False,
    elsewhere: bool = False,
    saved: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Refuses to go on with a config that would compute something else.

    Args:
        checkpoint_path: in the run whose config.yaml is compared.
        settings: of this run. A key that is newer than the run to resume counts as its default
            there, which for a new key is what was done before there was one.
        same_data: whether the data is known to be the same, wherever it lies now.
        elsewhere: whether it may be another machine, with batches of another size.
        saved: the checkpoint's state. The folder's config is that of the newest start, which may
            have ended before it saved anything; its "shared_out" is the checkpoint's.

    Returns:
        The keys that differ since it goes on elsewhere, with both values.

    Raises:
        CheckpointError: the run's config cannot be read.
        ConfigError: names the keys that differ, with both values.
    """
    file = checkpoint_path.parent.parent / CONFIG_FILE
    if not file.exists() or not settings.values:
        return {}
    before = read_config(file) | (saved or {}).get("shared_out", {})
    now, defaults = settings.values, settings.defaults
    if gone := of_another_kind(before, now):
        raise ConfigError(other_run(file.parent, gone, "resume from a run of this kind"))
    since = {key: defaults[key] for key in now.keys() & defaults.keys() - before.keys()}
    before |= since
    changed = {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not settings.is_free(key, same_data)
    }
    moved = {key: both for key, both in changed.items() if settings.moves(key)}
    different = [
        f"{key} was {before.get(key, 'absent')!r}"
        f"{' (the default; the run is older than this key)' if key in since else ''}"
        f", is {now.get(key, 'absent')!r}"
        for key in changed
        if not (elsewhere and key in moved)
    ]
    if different:
        raise ConfigError(
            f"{checkpoint_path}: cannot resume with another config: {'; '.join(different)} "
            "(set it back, or choose another output)"
        )
    return moved


def check_same_data(checkpoint_path: Path, saved: Mapping[str, Any], digest: str | None) -> bool:
    """Whether the data is known to be that of the checkpoint; False where one has no digest.

    Raises:
        ConfigError: it is known to be other data.
    """
    before = saved.get("data_digest")
    if before is None or digest is None:
        return False
    if before != digest:
        raise ConfigError(
            f"{checkpoint_path}: cannot resume with other data: the clips, labels or frame counts "
            f"are not those it was trained on (digest {before[:12]}, now {digest[:12]}); "
            "restore them, or choose another output"
        )
    return True


def check_same_length(checkpoint_path: Path, saved: Mapping[str, Any], total_steps: int) -> None:
    """Refuses another number of steps, for a schedule that is a function of it.

    Raises:
        ConfigError: the learning rates of the steps done would not be those of this run.
    """
    before = saved.get("total_steps")
    if before is not None and before != total_steps:
        raise ConfigError(
            f"{checkpoint_path}: cannot resume with another length: the cosine schedule falls to "
            f"zero at the last step, which was {before} and is {total_steps}; set run.epochs and "
            "run.max_steps back, or start anew in another output (schedule: constant may go on "
            "for longer)"
        )


def check_same_position(
    checkpoint_path: Path, saved: Mapping[str, Any], now: dict[str, int]
) -> None:
    """Refuses to go on where the data would come in another order.

    Args:
        checkpoint_path: named in the message.
        saved: the checkpoint's state.
        now: world_size and num_samples of this run; with shards, num_workers too.

    Raises:
        CheckpointError: one of them differs.
    """
    for name, value in now.items():
        if saved.get(name) != value:
            raise CheckpointError(
                f"{checkpoint_path}: was written with {name} {saved.get(name)}, "
                f"this run has {value}: the order of the data would change; set it back, or go on "
                "from the last epoch's start, not equal to the bit, with run.resume_elsewhere: true"
            )


def check_same_samples(
    checkpoint_path: Path, saved: Mapping[str, Any], now: dict[str, int]
) -> None:
    """Refuses to go on with another number of samples, which is other data anywhere.

    Raises:
        CheckpointError: the number differs.
    """
    if saved.get("num_samples") != now["num_samples"]:
        raise CheckpointError(
            f"{checkpoint_path}: was written with num_samples {saved.get('num_samples')}, this run "
            f"has {now['num_samples']}: it is other data; choose another run.output"
        )


def superseded(
    output: Path,
    config: object,
    old_defaults: Mapping[str, Any],
    *,
    given: Collection[str],
    since: int,
) -> dict[str, Any]:
    """Keys with which the run in a folder goes on as it began, their default being another now.

    Args:
        output: the run's folder, which need not exist.
        config: of this run, a dataclass with today's defaults.
        old_defaults: dotted keys and the defaults that they had.
        given: keys that a command line or a file sets (`config.given_keys`).
        since: the `environment.DEFAULTS` with which they changed; a run of it or later began with
            those of today.

    Returns:
        The keys that are at today's default and were at the old one in that run, with the old one.
        A value that was given, or that neither default is, was chosen: that is for
        `check_same_config`.

    Raises:
        CheckpointError: the run's config cannot be read.
    """
    file = output / CONFIG_FILE
    # Without a checkpoint there is nothing to go on with: it begins anew, as is the default today.
    begun = file.exists() and checkpoint.has_any(output)
    if not begun or environment.defaults_of(output) >= since:
        return {}
    before = read_config(file)
    settings = Settings.of(config)
    now, defaults = settings.values, settings.defaults
    return {
        key: old
        for key, old in old_defaults.items()
        if before.get(key) == old
        and now.get(key) == defaults.get(key) != old
        and not any(key == name or key.startswith(f"{name}.") for name in given)
    }
