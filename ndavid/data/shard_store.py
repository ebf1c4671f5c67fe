"""Samples out of shards: a shard is read whole, once, from its start to its end, and kept.

A shard that is half there gives what it gives. What it lacks is an error of those samples alone,
and others of the same shard stand in for them, so that no reader opens a shard of another's; only a
shard of which nothing can be read makes its reader go to the next one.

A shard that failed is tried again when its turn comes again, so that one lost connection costs an
epoch's samples and not a run's.

One shard a process is in memory at a time: its size on disk, times the loading processes.
"""

from __future__ import annotations

import bisect
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from webdataset.tariterators import base_plus_ext

from ndavid.data.shard_index import LocatedShards, member_key
from ndavid.data.shard_urls import STREAM_ERRORS, describe, open_url
from ndavid.data.tar_headers import BoundedTarInfo
from ndavid.errors import DataError


@dataclass(frozen=True)
class ShardContents:
    """What could be read of a shard.

    Attributes:
        members: the files' bytes, by key.
        problem: why it is not whole, empty where nothing went wrong.
    """

    members: dict[str, bytes]
    problem: str


def read_shard(url: str, num_bytes: int) -> ShardContents:
    """Reads a tar to its end, or as far as it can be read; never raises for a bad one.

    Args:
        url: where it lies.
        num_bytes: its size as its index knows it. A tar may unfold to any size (by holes, or by
            compression), which would all come into memory: samples beyond this are not read.
    """
    members: dict[str, bytes] = {}
    try:
        with (
            open_url(url) as stream,
            tarfile.open(fileobj=stream, mode="r|*", tarinfo=BoundedTarInfo) as tar,
        ):
            for member in tar:
                key, suffix = base_plus_ext(member.name)
                # Beside each sample lie its facts, which the index knows as well.
                if key is None or suffix == "json" or not member.isreg():
                    continue
                num_bytes -= member.size
                if num_bytes < 0:
                    raise tarfile.TarError("it holds more than its index says")
                content = tar.extractfile(member)
                members[key] = b"" if content is None else content.read()
                tar.members = []  # type: ignore[attr-defined]  # a stream never goes back to them
    except STREAM_ERRORS as error:
        return ShardContents(members, describe(error))
    return ShardContents(members, "")


class ShardStore:
    """The bytes of samples by the index that a dataset gives them: shard after shard.

    Args:
        located: the shards.
        kept: positions of the samples that the dataset has, among all of these shards; ascending.
            None for all.
    """

    def __init__(self, located: LocatedShards, kept: Sequence[int] | None = None) -> None:
        self.origin = located.origin
        self._urls = located.urls
        self._files = [entry.file for entry in located.index.shards]
        self._num_bytes = [entry.num_bytes for entry in located.index.shards]
        counts = [len(entry.samples) for entry in located.index.shards]
        # Arrays, not lists: worker processes would copy these for their reference counts.
        shards = np.repeat(np.arange(len(counts)), counts)
        places = np.concatenate([np.arange(count) for count in counts])
        names = np.array(
            [str(sample[0]).encode() for entry in located.index.shards for sample in entry.samples]
        )
        chosen = slice(None) if kept is None else np.asarray(kept, dtype=np.int64)
        self._shards, self._places, self._names = shards[chosen], places[chosen], names[chosen]
        self.sizes = tuple(np.bincount(self._shards, minlength=len(counts)).tolist())
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self._open: tuple[int, ShardContents] | None = None
        self._empty: dict[int, ShardContents] = {}
        self._turn = -1
        self._asked: set[int] = set()

    def __len__(self) -> int:
        return len(self._shards)

    def name(self, index: int) -> str:
        """What errors call the sample: its shard, and its path in the source."""
        return f"{self._urls[self._shards[index]]}/{self._names[index].decode()}"

    def turn_to(self, index: int) -> None:
        """Says that this sample is wanted now, for itself and not to stand in for another.

        With another shard's sample, or one that was wanted before and so in another epoch, what
        was found damaged is forgotten: it will be read again where it is needed.
        """
        shard = int(self._shards[index])
        if shard != self._turn or index in self._asked:
            self._turn = shard
            self._asked.clear()
            self._empty.clear()
            if self._open is not None and not self._whole(self._open[0]):
                self._open = None
        self._asked.add(index)

    def content(self, index: int) -> bytes:
        """The sample's file. Raises DataError where its shard does not give it."""
        contents = self._read(int(self._shards[index]))
        content = contents.members.get(self._key(index))
        if content is None:
            problem = contents.problem or "it ends early, or is not the one that was written"
            what = "lacks it" if contents.members else "gives nothing"
            raise DataError(self.name(index), f"its shard {what} ({problem})")
        return content

    def stand_ins(self, index: int) -> Iterator[int]:
        """Indices of samples that are there, in the order in which they may stand in for one.

        They begin with those of its own shard that follow it, so that the many that a shard lacks
        do not all get the same one.
        """
        shard, count = int(self._shards[index]), len(self.sizes)
        place = index - int(self._starts[shard])
        for current in ((shard + k) % count for k in range(count)):
            present = self._present(current)
            if not present:
                continue
            first = place % len(present)
            if current == shard:
                first = bisect.bisect_right(present, index) if self._whole(shard) else first
            yield from (i for i in [*present[first:], *present[:first]] if i != index)

    def _present(self, shard: int) -> list[int]:
        """Indices of the samples that a shard gives."""
        if not self.sizes[shard]:
            return []
        members = self._read(shard).members
        indices = range(int(self._starts[shard]), int(self._starts[shard + 1]))
        return [index for index in indices if self._key(index) in members]

    def _whole(self, shard: int) -> bool:
        """Whether a shard gives all that it should."""
        return len(self._present(shard)) == self.sizes[shard]

    def _key(self, index: int) -> str:
        return member_key(self._files[self._shards[index]], int(self._places[index]))

    def _read(self, shard: int) -> ShardContents:
        if shard in self._empty:
            return self._empty[shard]
        if self._open is None or self._open[0] != shard:
            self._open = None  # before the next one comes in
            contents = read_shard(self._urls[shard], self._num_bytes[shard])
            if not contents.members:
                # Remembered for this turn, so that a dead server is not asked once a sample.
                self._empty[shard] = contents
                return contents
            self._open = (shard, contents)
        return self._open[1]
