"""Which clips a run trains on, and where they lie: files below a manifest's root, or shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ndavid.data.config import TrainingDataConfig
from ndavid.data.manifest import ClipRecord, read_manifest
from ndavid.data.sampling import ClipSampler, ShortClipReport, usable
from ndavid.data.shard_index import LocatedShards, ShardIndex, locate
from ndavid.data.shard_store import ShardStore
from ndavid.errors import ConfigError


@dataclass(frozen=True)
class ClipSet:
    """Clips ready for a dataset.

    Attributes:
        records: the clips that are long enough.
        root: what their paths are relative to; for shards, where their index is.
        store: the shards; None for files.
        summary: how many there are, in a line.
    """

    records: tuple[ClipRecord, ...]
    root: Path
    store: ShardStore | None
    summary: str


def open_clips(config: TrainingDataConfig, sampler: ClipSampler) -> ClipSet:
    """The training clips that a config names, as far as the sampler can use them.

    Raises:
        ConfigError: nothing is named, or shards of another fold, split, or kind, or with a backend
            that reads files.
        DataError: no manifest, index or local shard there, or a damaged one.
    """
    if config.shards:
        return _of_shards(config, sampler)
    config.resolve_source()  # says what to give where there is nothing
    manifest = read_manifest(config.root)
    records, short = usable(manifest.select(config.split, config.fold), sampler)
    return ClipSet(records, manifest.root, None, _summary(records, short, sampler))


def clip_records(index: ShardIndex) -> tuple[ClipRecord, ...]:
    """The records of the clips in some shards, in the order of their indices."""
    return tuple(
        ClipRecord(**dict(zip(index.fields, sample, strict=True)), splits=(index.split,))
        for entry in index.shards
        for sample in entry.samples
    )


def _of_shards(config: TrainingDataConfig, sampler: ClipSampler) -> ClipSet:
    located = locate(config.shards, "clips")
    _check_part(located, config)
    every = clip_records(located.index)
    records, short = usable(every, sampler)
    paths = {record.path for record in records}
    kept = [position for position, record in enumerate(every) if record.path in paths]
    text = f"{_summary(records, short, sampler)}; {len(located.urls)} shards"
    return ClipSet(records, Path(located.origin), ShardStore(located, kept), text)


def _check_part(located: LocatedShards, config: TrainingDataConfig) -> None:
    """Shards of another fold would hold what this one keeps for its tests."""
    index = located.index
    if (index.split, index.fold) != (config.split, config.fold):
        raise ConfigError(
            f"{located.origin}: these shards hold the {index.split} split of fold {index.fold}, "
            f"and the config asks for {config.split} of fold {config.fold}: set data.split and "
            "data.fold, or write other shards"
        )
    if config.backend != "pyav":
        raise ConfigError(f"data.backend {config.backend} reads files; shards are decoded by pyav")


def _summary(records: tuple[ClipRecord, ...], short: ShortClipReport, sampler: ClipSampler) -> str:
    damaged = sum(bool(record.damaged) for record in records)
    return (
        f"{len(records)} clips to train on, {short.num_short} shorter than {sampler.span} frames "
        f"({short.policy})" + (f", {damaged} with damaged frames" if damaged else "")
    )
