"""A run's folder: its config, and the rule for going on in one that already holds work."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from ndavid.engine import checkpoint, environment
from ndavid.engine.folder_kind import foreign_files, kind_of, of_another_kind, refusal
from ndavid.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.yaml"

# Keys that a resumed run may change, by the end of their dotted names: they decide how long it
# runs, what it writes and how fast it reads, not what a step computes. Not among them are device,
# compile, channels_last and find_unused_parameters, which change the order of floating-point sums
# and with it the last bits. (run.epochs and run.max_steps: see `check_same_length`.)
FREE_KEYS = (
    "run.output",
    "run.epochs",
    "run.max_steps",
    "run.resume",
    "run.resume_elsewhere",
    "run.save_every_steps",
    "run.keep_checkpoints",
    "run.log_every",
    "run.num_workers",
    "run.data_timeout",
    "run.trackers",
    "run.max_bad_fraction",
)
# Free with run.resume_elsewhere: how a step is computed and shared out, not what it learns from.
ELSEWHERE_KEYS = (
    "run.batch_size",
    "run.device",
    "run.precision",
    "run.compile",
    "run.channels_last",
    "run.find_unused_parameters",
    "optim.accumulate_steps",
)
# Those of them that cut the data into other batches.
_BATCHING_KEYS = ("run.batch_size", "optim.accumulate_steps")
# Whole names: the folder of a script that makes several runs.
FREE_NAMES = ("output",)
# Where the data or the weights to begin with lie: free once the data is known to be the same.
PLACES = (
    *("data.manifest", "manifest", "checkpoint"),
    *("data.images.root", "data.video.manifest", "data.root"),
    *("data.shards", "data.images.shards", "data.video.shards"),
)


# What a run writes; a file of one of these names in a folder without a run is somebody else's.
OWN_FILES = (
    *("environment.json", "metrics.jsonl", "report.html", "negatives.png", "bad_clips.csv"),
    "result.json",
)


def check_folder(output: Path, config_yaml: str) -> None:
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
    if not why and file.exists() and config_yaml:
        try:
            before = read_config(file)
        except CheckpointError:
            return  # damaged: `check_same_config` says so, where there is something to go on from
        now = flatten(yaml.safe_load(config_yaml))
        if before and not before.keys() & now.keys():
            why = foreign_files(output, (CONFIG_FILE,), way_out)
        elif gone := of_another_kind(before, now):
            why = _other_run(output, gone, way_out)
    if why:
        raise ConfigError(why)


def _other_run(place: Path, gone: list[str], way_out: str) -> str:
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


def check_same_config(
    checkpoint_path: Path,
    config_yaml: str,
    *,
    defaults_yaml: str = "",
    same_data: bool = False,
    elsewhere: bool = False,
    saved: Mapping[str, Any] | None = None,
) -> dict[str, tuple[Any, Any]]:
    """Refuses to go on with a config that would compute something else.

    Args:
        checkpoint_path: in the run whose config.yaml is compared.
        config_yaml: of this run.
        defaults_yaml: the config's defaults. A key that is newer than the run counts as its
            default there, which for a new key is what was done before there was one.
        same_data: whether the data is known to be the same, wherever it lies now.
        elsewhere: whether it may be another machine, with batches of another size.
        saved: the checkpoint's state. The folder's config is that of the newest start, which may
            have ended before it saved anything; what `shared_out` put there is the checkpoint's.

    Returns:
        The keys of ELSEWHERE_KEYS that differ, with both values.

    Raises:
        CheckpointError: the run's config cannot be read.
        ConfigError: names the keys that differ, with both values.
    """
    file = checkpoint_path.parent.parent / CONFIG_FILE
    if not file.exists() or not config_yaml:
        return {}
    before = read_config(file) | (saved or {}).get("shared_out", {})
    now, defaults = (flatten(yaml.safe_load(text)) for text in (config_yaml, defaults_yaml))
    if gone := of_another_kind(before, now):
        raise ConfigError(_other_run(file.parent, gone, "resume from a run of this kind"))
    since = {key: defaults[key] for key in now.keys() & defaults.keys() - before.keys()}
    before |= since
    changed = {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not _is_free(key, same_data)
    }
    moved = {key: both for key, both in changed.items() if _ends_with(key, ELSEWHERE_KEYS)}
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


def shared_out(config_yaml: str) -> dict[str, Any]:
    """The values of ELSEWHERE_KEYS in a config, by dotted key, for a checkpoint to keep."""
    values = flatten(yaml.safe_load(config_yaml or "{}"))
    return {key: value for key, value in values.items() if _ends_with(key, ELSEWHERE_KEYS)}


def cuts_other_batches(keys: Iterable[str]) -> bool:
    """Whether a change of these keys changes which samples a step sees."""
    return any(_ends_with(key, _BATCHING_KEYS) for key in keys)


def superseded(
    output: Path,
    config_yaml: str,
    defaults_yaml: str,
    old_defaults: Mapping[str, Any],
    *,
    given: Collection[str],
    since: int,
) -> dict[str, Any]:
    """Keys with which the run in a folder goes on as it began, their default being another now.

    Args:
        output: the run's folder, which need not exist.
        config_yaml: of this run.
        defaults_yaml: the config's defaults of today.
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
    now, defaults = (flatten(yaml.safe_load(text)) for text in (config_yaml, defaults_yaml))
    return {
        key: old
        for key, old in old_defaults.items()
        if before.get(key) == old
        and now.get(key) == defaults.get(key) != old
        and not any(key == name or key.startswith(f"{name}.") for name in given)
    }


def _is_free(key: str, same_data: bool) -> bool:
    return _ends_with(key, FREE_KEYS) or key in FREE_NAMES or (same_data and key in PLACES)


def _ends_with(key: str, names: tuple[str, ...]) -> bool:
    return any(key == name or key.endswith(f".{name}") for name in names)


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
