"""Writing shards: WebDataset tars of nearly equal numbers of samples, in a random order.

Batches come from one shard or two, so the classes must be mixed before; and readers of equal shares
need shards of equal size. The index is written last: a folder without one is no set of shards.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from webdataset import TarWriter

from ndavid.data.changed_files import change_of_content
from ndavid.data.image_packing import image_file
from ndavid.data.image_sources import ImageSource
from ndavid.data.manifest import ClipRecord
from ndavid.data.shard_index import (
    FIELDS,
    OPTIONAL_FIELDS,
    Kind,
    ShardEntry,
    ShardIndex,
    fields_of,
    member_key,
    parse_index,
)
from ndavid.data.shard_index_checks import check_head, check_sample
from ndavid.data.shard_store import read_shard
from ndavid.data.shard_urls import INDEX_FILE, STREAM_ERRORS, describe, open_url
from ndavid.errors import ConfigError, DataError
from ndavid.files import file_sha256, remove_leftovers, whole_file
from ndavid.locks import hold
from ndavid.progress import Progress

_PNG_START = b"\x89PNG"


@dataclass(frozen=True)
class ShardItem:
    """A sample to write: its file, the file's suffix, and its facts.

    They are in the order of the kind's `FIELDS`, and then maybe of its `OPTIONAL_FIELDS`, of all
    samples or of none.
    """

    content: bytes
    suffix: str
    facts: tuple[Any, ...]


class ShardInput(Protocol):
    """What shards are written from."""

    kind: Kind

    def __len__(self) -> int: ...

    def item(self, index: int) -> ShardItem:
        """One sample. Raises DataError for one that cannot be read."""

    def name(self, index: int) -> str:
        """What errors call it."""


class ClipFiles:
    """Video files, taken byte for byte.

    Args:
        records: the clips.
        root: what their paths are relative to.
    """

    kind: Kind = "clips"

    def __init__(self, records: Sequence[ClipRecord], root: Path) -> None:
        self.records = records
        self.root = root
        # Older versions read an index without this, so it is there only where it says something.
        damaged = OPTIONAL_FIELDS[self.kind] if any(record.damaged for record in records) else ()
        self._fields = (*FIELDS[self.kind], *damaged)

    def __len__(self) -> int:
        return len(self.records)

    def item(self, index: int) -> ShardItem:
        record = self.records[index]
        path = self.root / record.path
        if path.is_dir():
            raise DataError(path, "is a folder; shards hold video files")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(path, describe(error)) from error
        if not content:
            raise DataError(path, "the file is empty (0 bytes)")
        if change := change_of_content(record, content):
            raise DataError(path, f"is not the file that was prepared ({change})")
        facts = tuple(getattr(record, field) for field in self._fields)
        return ShardItem(content, path.suffix[1:].lower() or "video", facts)

    def name(self, index: int) -> str:
        return os.fspath(self.root / self.records[index].path)


class ImageFiles:
    """Images: JPEG files as they are, everything else encoded.

    Args:
        source: the images.
        quality: as for `image_packing.pack`.
    """

    kind: Kind = "images"

    def __init__(self, source: ImageSource, *, quality: int | None) -> None:
        self.source = source
        self.quality = quality

    def __len__(self) -> int:
        return len(self.source)

    def item(self, index: int) -> ShardItem:
        content, _ = image_file(self.source, index, self.quality)
        suffix = "png" if content.startswith(_PNG_START) else "jpg"
        name = self.source.name(index).removeprefix(self.source.origin).lstrip("/")
        facts = (name, int(self.source.labels[index]))
        return ShardItem(content, suffix, facts)

    def name(self, index: int) -> str:
        return self.source.name(index)


@dataclass(frozen=True)
class WrittenShards:
    """What `write_shards` did: the index, and the (path, reason) of what it had to leave out."""

    index: ShardIndex
    bad: tuple[tuple[str, str], ...]


def write_shards(
    samples: ShardInput,
    output: Path,
    *,
    num_shards: int,
    classes: Sequence[str],
    split: str,
    fold: int = 0,
    source: dict[str, Any] | None = None,
    seed: int = 0,
    progress: bool = False,
) -> WrittenShards:
    """Writes ``output/000000.tar`` and so on, and their index.

    The same samples and seed give the same bytes. Samples that cannot be read, or whose
    name no index can hold, are left out.

    Args:
        samples: what to write.
        output: a folder without an index; what an attempt that was stopped left is replaced.
        num_shards: at most one a sample.
        classes: names in label order.
        split, fold: the part of the dataset that it is; fold 0 for images.
        source: for the index: what it was written from.
        seed: of the order.
        progress: shows how far it is.

    Raises:
        ConfigError: the folder holds shards, another process writes there, or more shards than
            samples are asked for.
        DataError: none of the samples can be read, or classes that no index can hold.
    """
    with hold(output, way_out="choose another folder"):
        _check(samples, output, num_shards)
        head = {"split": split, "fold": fold, "source": source or {}, "classes": list(classes)}
        try:
            check_head(head)
        except ValueError as error:
            raise DataError(output, f"cannot write shards: {error}") from error
        for name in ("[0-9]*.tar", INDEX_FILE):
            remove_leftovers(output, name)
        draw = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(samples), generator=draw)
        bad: list[tuple[str, str]] = []
        entries: list[ShardEntry] = []
        unit = samples.kind.removesuffix("s")
        with Progress(len(samples), "writing", unit=unit, silent=not progress) as shown:
            for part in order.tensor_split(num_shards):
                file = f"{len(entries):06d}.tar"
                facts = _write_shard(samples, part.tolist(), output / file, bad)
                shown.advance(len(part))
                if facts:
                    entries.append(_entry(output / file, facts))
        if not entries:
            path, reason = bad[0]
            raise DataError(path, f"{reason}; none of the {len(bad)} {samples.kind} can be read")
        index = ShardIndex(samples.kind, split, fold, source or {}, tuple(classes), tuple(entries))
        with whole_file(output / INDEX_FILE) as stream:
            stream.write(index.to_json().encode())
    return WrittenShards(index, tuple(bad))


def check_shards(folder: Path) -> list[tuple[str, str]]:
    """Compares shards with their index; (file, what is wrong) of those that are not as written.

    Raises:
        DataError: no index, or a damaged one.
    """
    origin = folder / INDEX_FILE
    try:
        with open_url(str(origin)) as stream:
            index = parse_index(str(origin), stream.read())
    except STREAM_ERRORS as error:
        raise DataError(origin, describe(error)) from error
    wrong = []
    for entry in index.shards:
        if problem := _problem(folder / entry.file, entry):
            wrong.append((entry.file, problem))
    return wrong


def _check(samples: ShardInput, output: Path, num_shards: int) -> None:
    if (output / INDEX_FILE).exists():
        raise ConfigError(f"{output} already holds shards: choose another folder, or empty it")
    if not 1 <= num_shards <= len(samples):
        raise ConfigError(
            f"{len(samples)} {samples.kind} fit into 1 to {len(samples)} shards, not {num_shards}"
        )


def _write_shard(
    samples: ShardInput, part: Sequence[int], target: Path, bad: list[tuple[str, str]]
) -> list[tuple[Any, ...]]:
    """Writes one shard; returns the facts of its samples, none and no file if none can be read."""
    written: list[tuple[Any, ...]] = []
    # No clock in it: the same samples give the same file.
    with whole_file(target) as stream, TarWriter(stream, encoder=False, mtime=0) as tar:
        for index in part:
            try:
                item = _sound(samples, index)
            except DataError as error:
                bad.append((error.path, error.reason))
                continue
            tar.write(_member(samples.kind, member_key(target.name, len(written)), item))
            written.append(item.facts)
    if not written:
        target.unlink()
    return written


def _sound(samples: ShardInput, index: int) -> ShardItem:
    """A sample that the index can hold; readers would refuse the whole index for another."""
    item = samples.item(index)
    try:
        check_sample(_facts(samples.kind, item))
    except ValueError as error:
        raise DataError(samples.name(index), str(error)) from error
    return item


def _facts(kind: Kind, item: ShardItem) -> dict[str, Any]:
    return dict(zip(fields_of(kind, item.facts), item.facts, strict=True))


def _member(kind: Kind, key: str, item: ShardItem) -> dict[str, Any]:
    text = json.dumps(_facts(kind, item), ensure_ascii=False).encode()
    return {"__key__": key, "json": text, item.suffix: item.content}


def _entry(path: Path, facts: Sequence[tuple[Any, ...]]) -> ShardEntry:
    return ShardEntry(path.name, path.stat().st_size, file_sha256(path), tuple(facts))


def _problem(path: Path, entry: ShardEntry) -> str:
    """What is wrong with a shard, empty for nothing."""
    if not path.is_file():
        return "no such file"
    if file_sha256(path) == entry.sha256:
        return ""
    found = path.stat().st_size
    size = "" if found == entry.num_bytes else f", {found} bytes instead of {entry.num_bytes}"
    whole = len(read_shard(str(path), entry.num_bytes).members)
    return f"not as written{size}; {whole} of {len(entry.samples)} samples are there"
