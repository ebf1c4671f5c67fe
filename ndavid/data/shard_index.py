"""The index beside a set of shards: what each shard holds, known before any of them is opened.

    {"format": 1, "kind": "clips", "split": "train", "fold": 1, "source": {...}, "classes": [...],
     "fields": ["path", "label", ...],
     "shards": [{"file": "000000.tar", "bytes": 1, "sha256": "...", "samples": [["a.mp4", 0]]}]}

With it the number of steps, the labels and the lengths of videos are known in advance, and a sample
that a damaged shard no longer holds still has a name. Sample ``k`` of a shard is the member
``{shard}_{k}``, six digits, behind its own suffix and beside a ``.json`` of the same facts, which
other readers of WebDataset find.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from ndavid.data.shard_index_checks import (
    a_list,
    check_head,
    check_labels,
    check_sample,
    check_shard,
    load_json,
    unique,
)
from ndavid.data.shard_urls import (
    INDEX_FILE,
    expand,
    fetch,
    is_local,
    local_path,
    shard_name,
    sibling,
)
from ndavid.errors import ConfigError, DataError

FORMAT = 1

Kind = Literal["clips", "images"]

# What the index says of a sample, by kind.
FIELDS: dict[str, tuple[str, ...]] = {
    "clips": ("path", "label", "group", "num_frames", "fps", "width", "height"),
    "images": ("path", "label"),
}
# What it may say besides: indices of older versions do not. Of all samples or of none.
OPTIONAL_FIELDS: dict[str, tuple[str, ...]] = {"clips": ("damaged",), "images": ()}


@dataclass(frozen=True)
class ShardEntry:
    """One shard as its index knows it.

    Attributes:
        file: its name, beside the index.
        num_bytes: its size.
        sha256: of the whole file, hexadecimal.
        samples: the facts of each sample, in the order of the kind's `FIELDS`, and then maybe of
            its `OPTIONAL_FIELDS`.
    """

    file: str
    num_bytes: int
    sha256: str
    samples: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class ShardIndex:
    """A set of shards, or some of them.

    Attributes:
        kind: what the samples are.
        split, fold: the part of the dataset that was written; fold is 0 for images.
        source: what they were written from, for the record.
        classes: names in label order.
        shards: in the order of their indices.
    """

    kind: Kind
    split: str
    fold: int
    source: dict[str, Any]
    classes: tuple[str, ...]
    shards: tuple[ShardEntry, ...]

    @property
    def fields(self) -> tuple[str, ...]:
        """What the facts of each sample are."""
        sample = next((sample for shard in self.shards for sample in shard.samples), None)
        return FIELDS[self.kind] if sample is None else fields_of(self.kind, sample)

    def to_json(self) -> str:
        """The file's text, with one shard a line."""
        head = {
            "format": FORMAT,
            "kind": self.kind,
            "split": self.split,
            "fold": self.fold,
            "source": self.source,
            "classes": list(self.classes),
            "fields": list(self.fields),
        }
        lines = [
            json.dumps(
                {"file": s.file, "bytes": s.num_bytes, "sha256": s.sha256, "samples": s.samples},
                ensure_ascii=False,
            )
            for s in self.shards
        ]
        body = ",\n".join(lines)
        return f'{json.dumps(head, ensure_ascii=False)[:-1]},\n"shards": [\n{body}\n]}}\n'


@dataclass(frozen=True)
class LocatedShards:
    """Shards that a config names, with what their index says of them.

    Attributes:
        origin: where the index is.
        index: of these shards alone.
        urls: one a shard.
    """

    origin: str
    index: ShardIndex
    urls: tuple[str, ...]


def fields_of(kind: str, sample: Sequence[Any]) -> tuple[str, ...]:
    """What each fact of a sample is."""
    return (*FIELDS[kind], *OPTIONAL_FIELDS[kind])[: len(sample)]


def member_key(file: str, place: int) -> str:
    """The key, in WebDataset's sense, of sample ``place`` of a shard."""
    return f"{file.removesuffix('.tar')}_{place:06d}"


def locate(shards: str, kind: Kind | None = None) -> LocatedShards:
    """Finds the shards that a config names, and their index.

    Args:
        shards: ``path/{000000..000127}.tar``, local or a URL; or the folder or index.json that
            lists them all.
        kind: what must be in them; None for either.

    Raises:
        ConfigError: a pattern that names nothing, shards of several sets, or of the other kind.
        DataError: no index, a damaged one, one without these shards, or local shards that are
            not there.
    """
    origin, urls = _find(shards)
    index = parse_index(origin, fetch_index(origin))
    if kind is not None and index.kind != kind:
        raise ConfigError(f"{origin}: these shards hold {index.kind}; {kind} were expected here")
    if urls:
        chosen = _choose(origin, index, [shard_name(url) for url in urls])
        by_name = {shard_name(url): url for url in urls}
    else:
        chosen = index
        by_name = {entry.file: _beside(origin, entry.file) for entry in index.shards}
    located = tuple(by_name[entry.file] for entry in chosen.shards)
    _check_present(located)
    return LocatedShards(origin, chosen, located)


def fetch_index(origin: str) -> bytes:
    """The index file. Raises DataError, saying who writes it."""
    try:
        return fetch(origin)
    except DataError as error:
        reason = f"{error.reason}; datasets/shard.py writes this index beside its shards"
        raise DataError(origin, f"no shard index here: {reason}") from error


def parse_index(origin: str, text: bytes) -> ShardIndex:
    """Reads an index and checks every value of it. Raises DataError where it is not sound."""
    try:
        found = load_json(text)
        if not isinstance(found, dict):
            raise ValueError("it must be an object")
        if type(found["format"]) is not int or found["format"] != FORMAT:
            reason = f"is of format {found['format']}, this version reads {FORMAT}"
            raise DataError(origin, reason)
        index = _checked(found)
    except (ValueError, KeyError, RecursionError) as error:
        reason = f"is no shard index, or a damaged one: {type(error).__name__}: {error}"
        raise DataError(origin, reason) from error
    if not any(shard.samples for shard in index.shards):
        raise DataError(origin, "lists no samples")
    return index


def _checked(found: dict[str, Any]) -> ShardIndex:
    """Raises ValueError for a value that is not sound, KeyError for one that is missing."""
    kind = found["kind"]
    if not isinstance(kind, str) or kind not in FIELDS:
        raise ValueError(f"its kind must be {' or '.join(FIELDS)}")
    fields = FIELDS[kind]
    if found["fields"] == [*fields, *OPTIONAL_FIELDS[kind]]:
        fields = (*fields, *OPTIONAL_FIELDS[kind])
    elif found["fields"] != list(fields):
        raise ValueError(f"the fields of {kind} must be {', '.join(FIELDS[kind])}")
    check_head(found)
    shards = tuple(_entry(shard, fields) for shard in a_list("shards", found["shards"]))
    unique("shard", [shard.file for shard in shards])
    samples = [sample for shard in shards for sample in shard.samples]
    unique("sample", [sample[0] for sample in samples])
    if samples:
        check_labels([sample[1] for sample in samples], len(found["classes"]))
    return ShardIndex(
        kind=cast(Kind, kind),
        split=found["split"],
        fold=found["fold"],
        source=found["source"],
        classes=tuple(found["classes"]),
        shards=shards,
    )


def _entry(shard: Any, fields: Sequence[str]) -> ShardEntry:
    check_shard(shard)
    samples = []
    for place, sample in enumerate(shard["samples"]):
        if not isinstance(sample, list) or len(sample) != len(fields):
            raise ValueError(f"a sample of {shard['file']} has not {len(fields)} fields")
        try:
            check_sample(dict(zip(fields, sample, strict=True)))
        except ValueError as error:
            raise ValueError(f"sample {place} of {shard['file']}: {error}") from error
        samples.append(tuple(sample))
    return ShardEntry(shard["file"], shard["bytes"], shard["sha256"], tuple(samples))


def _beside(origin: str, file: str) -> str:
    """Where a shard of an index lies; the index's place is the user's word, the name is checked."""
    return str(local_path(origin).parent / file) if is_local(origin) else sibling(origin, file)


def _find(shards: str) -> tuple[str, list[str]]:
    """(the index's place, the shards' URLs, or none for all that it lists)."""
    if is_local(shards) and local_path(shards).is_dir():
        return str(local_path(shards) / INDEX_FILE), []
    if Path(shards).name == INDEX_FILE:
        return shards, []
    urls = expand(shards)
    origins = {sibling(url, INDEX_FILE) for url in urls}
    if len(origins) > 1:
        first, second, *_ = sorted(origins)
        raise ConfigError(
            f"shards {shards!r} are of several sets ({first}, {second}): write one set of shards"
        )
    return origins.pop(), urls


def _choose(origin: str, index: ShardIndex, names: Sequence[str]) -> ShardIndex:
    """The index of some shards, in its own order, so that indices don't hang on the pattern's."""
    known = {entry.file for entry in index.shards}
    if unknown := [name for name in names if name not in known]:
        raise DataError(
            origin,
            f"does not list {len(unknown)} of the {len(names)} shards asked for, such as "
            f"{unknown[0]}; it lists {index.shards[0].file} to {index.shards[-1].file}",
        )
    wanted = set(names)
    shards = tuple(entry for entry in index.shards if entry.file in wanted)
    return ShardIndex(index.kind, index.split, index.fold, index.source, index.classes, shards)


def _check_present(urls: Sequence[str]) -> None:
    """Local shards must be there; of others nobody knows before they are asked for."""
    missing = [url for url in urls if is_local(url) and not local_path(url).is_file()]
    if missing:
        raise DataError(
            missing[0], f"no such shard; {len(missing)} of the {len(urls)} shards are missing"
        )
