"""Map-style datasets of video clips: files in, uint8 clips out.

What a key is, and what becomes of clips that cannot be read, seeded_dataset.py tells.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ndavid.data.changed_files import change_of
from ndavid.data.decode import open_reader
from ndavid.data.manifest import ClipRecord
from ndavid.data.sampling import ClipSampler, uniform_views
from ndavid.data.seeded_dataset import OnError, SeededDataset
from ndavid.data.shard_store import ShardStore
from ndavid.data.transforms import ClipTransform, TellsContent
from ndavid.data.worker_errors import data_errors_leave_workers
from ndavid.errors import ConfigError, DataError, DecodeError

Damaged = Literal["report", "bad"]

_PIXEL_KEYS = frozenset({"video", "image", "views"})
# What else is stacked, where all samples of a batch have it.
_SHARED_KEYS = ("same_as", "unchanged", "content", "uncoloured")


class ViewTransform(Protocol):
    """Makes test crops out of decoded frames."""

    def __call__(self, clip: Tensor) -> Tensor:
        """uint8 (T, C, H, W) -> uint8 (crops, T, C, size, size)."""


class _RecordedClips:
    """What datasets of clips share: which clips, where they lie, who decodes, which frames."""

    def __init__(
        self,
        records: Sequence[ClipRecord],
        root: str | os.PathLike[str],
        sampler: ClipSampler,
        backend: str,
        damaged: Damaged,
        store: ShardStore | None = None,
    ) -> None:
        if not records:
            raise DataError(root, "no clips to read: the selection is empty")
        self.records = tuple(records)
        self.root = Path(root)
        self.sampler = sampler
        self.backend = backend
        self.damaged = damaged
        self.store = store
        self._damage: list[tuple[str, str]] = []
        self._changed: dict[int, bool] = {}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what an index means: path, label and length of every clip, in order.

        Hexadecimal. The folder, the sampler and the backend are no part of it, so that data may
        move. A run that goes on after another digest would go on with other clips.
        """
        digest = hashlib.sha256()
        for record in self.records:
            line = json.dumps([record.path, record.label, record.num_frames])
            digest.update(f"{line}\n".encode())
        if self.store is not None:
            digest.update(json.dumps(self.store.sizes).encode())  # they decide the order
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def _label(self, index: int) -> int:
        return self.records[index].label

    def _read(self, index: int, indices: Tensor) -> Tensor:
        """Frames uint8 (T, C, H, W), with the help of what the manifest knows about the clip."""
        record = self.records[index]
        path: str | Path = self.root / record.path
        content, backend, num_frames, verified = None, self.backend, None, None
        damage = ""
        known = self.store is not None or not self._has_changed(index)
        if known:
            num_frames = record.num_frames
            verified = record.decord_ok if backend == "decord" else None
            if record.damaged:  # a copy that `prepare` encoded anew shows it unflagged
                damage = f"{record.damaged} of its {record.num_frames} frames are damaged"
        elif backend == "decord":
            backend = "pyav"  # Whether decord reads the file right was found out of another one.
        if self.store is not None:
            path, content = self.store.name(index), self.store.content(index)
        with open_reader(
            path, backend, num_frames=num_frames, verified=verified, content=content
        ) as reader:
            frames = reader.read(indices)
            if reader.damaged and not damage:
                count = len(set(indices.tolist()))
                damage = f"{reader.damaged} of {count} frames read are damaged"
        # Not before: damage of a clip that cannot be read would be told of the one in its place.
        self._judge_damage(path, damage)
        return frames

    def _judge_damage(self, path: str | Path, damage: str) -> None:
        """Raises DecodeError, or notes what is damaged for the sample; nothing if nothing is."""
        if damage and self.damaged == "bad":
            raise DecodeError(path, self.backend, damage)
        if damage:
            self._damage.append((os.fspath(path), damage))

    def _take_damage(self) -> list[tuple[str, str]]:
        """(path, what is damaged) of what was read since the last call."""
        found, self._damage = self._damage, []
        return found

    def _has_changed(self, index: int) -> bool:
        """Whether a file is not the one that its row is of; looked up once a process."""
        if index not in self._changed:
            self._changed[index] = bool(change_of(self.records[index], self.root))
        return self._changed[index]

    def _read_views(self, index: int, views: Tensor) -> Iterator[Tensor]:
        """The frames (T, C, H, W) of each row of indices (V, T).

        Views overlap: every frame is decoded and converted once, then views pick.
        """
        unique, place = torch.unique(views, return_inverse=True)
        frames = self._read(index, unique)
        return (frames[view] for view in place)


class ClipDataset(_RecordedClips, SeededDataset):
    """One clip a video, for training: `video`, uint8 (C, T, H, W).

    A key is `(index, seed)`, or an int for the centred, unaugmented clip. A sample also holds
    `label`, `index` (of the clip that was read) and `bad`, the `(path, reason)` of clips that could
    not be read. Where the transform hides what frames show (`TellsContent`: colours drawn for every
    frame anew), a sample tells it: `content`, long (T, g, g), and `uncoloured`, uint8 (C, T, s, s),
    as in `ClipContent`.

    Args:
        records: the clips, for instance `manifest.select("train")`.
        root: the folder that their paths are relative to.
        sampler: chooses the frames.
        transform: makes the clip out of the decoded frames.
        backend: who decodes.
        on_error: "raise", or "next": the clip that follows stands in for one that cannot be read,
            so that batches keep their size on every rank; `bad` tells.
        damaged: "report" damaged frames (a sample's `damaged`, if there are any), or treat the clip
            as "bad".
        store: the shards that hold the clips, in the order of `records`; None for files below
            `root`.
    """

    pixel_key = "video"
    unit = "clips"

    def __init__(
        self,
        records: Sequence[ClipRecord],
        root: str | os.PathLike[str],
        sampler: ClipSampler,
        transform: ClipTransform,
        *,
        backend: str = "pyav",
        on_error: OnError = "raise",
        damaged: Damaged = "report",
        store: ShardStore | None = None,
    ) -> None:
        super().__init__(records, root, sampler, backend, damaged, store)
        self.transform = transform
        self.on_error = on_error

    def _pixels(self, index: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        num_frames = self.records[index].num_frames
        frames = self._read(index, self.sampler.sample(num_frames, generator))
        return self._clip(frames, generator)

    def _clip(self, frames: Tensor, generator: torch.Generator | None) -> dict[str, Tensor]:
        """The clip by `pixel_key`, and its content where the transform tells it."""
        if not isinstance(self.transform, TellsContent):
            return {self.pixel_key: _channels_first(self.transform(frames, generator))}
        clip, found = self.transform.with_content(frames, generator)
        sample = {self.pixel_key: _channels_first(clip)}
        if found is not None:
            sample["content"] = found.content
            sample["uncoloured"] = _channels_first(found.uncoloured)
        return sample


class MultiViewClips(ClipDataset):
    """Several views of one video, each augmented by itself: `views`, uint8 (V, C, T, H, W).

    The video is opened and decoded once. By an int key all views are the centred clip. What is told
    of a view's content (`ClipDataset`) has the views first, too.

    Args:
        num_views: how many.
        same_frames: all views show the same frames; else each draws its own start.
    """

    pixel_key = "views"

    def __init__(
        self,
        records: Sequence[ClipRecord],
        root: str | os.PathLike[str],
        sampler: ClipSampler,
        transform: ClipTransform,
        num_views: int = 2,
        *,
        same_frames: bool = False,
        backend: str = "pyav",
        on_error: OnError = "raise",
        damaged: Damaged = "report",
        store: ShardStore | None = None,
    ) -> None:
        if num_views < 1:
            raise ConfigError(f"num_views must be at least 1, got {num_views}")
        super().__init__(
            records,
            root,
            sampler,
            transform,
            backend=backend,
            on_error=on_error,
            damaged=damaged,
            store=store,
        )
        self.num_views = num_views
        self.same_frames = same_frames

    def _pixels(self, index: int, generator: torch.Generator | None) -> dict[str, Tensor]:
        record = self.records[index]
        draws = 1 if self.same_frames else self.num_views
        starts = [self.sampler.sample(record.num_frames, generator) for _ in range(draws)]
        indices = torch.stack(starts).expand(self.num_views, -1)
        views = [self._clip(frames, generator) for frames in self._read_views(index, indices)]
        return {key: torch.stack([view[key] for view in views]) for key in views[0]}


class ViewsDataset(_RecordedClips, Dataset[dict[str, Any]]):
    """All test views of a video: evenly spaced clips, each in one or three crops.

    A sample holds `video` (uint8, (V, C, T, H, W) with V = num_views * crops), `label`, `index`,
    and `same_as` (long, (V,)): the first view of the same frames and crop, often the view itself.
    Videos that are hardly longer than a clip have several of the same, which need be computed once.
    With `on_error="skip"` a video that cannot be read gives a sample without `video`, whose `bad`
    holds its `(path, reason)`; `collate` leaves it out of the batch. `damaged` is as in
    `ClipDataset`.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        root: str | os.PathLike[str],
        sampler: ClipSampler,
        num_views: int,
        eval_transform: ViewTransform,
        *,
        backend: str = "pyav",
        on_error: Literal["raise", "skip"] = "raise",
        damaged: Damaged = "report",
    ) -> None:
        super().__init__(records, root, sampler, backend, damaged)
        self.num_views = num_views
        self.eval_transform = eval_transform
        self.on_error = on_error

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample: dict[str, Any] = {"label": self._label(index), "index": index, "bad": []}
        with data_errors_leave_workers():
            try:
                sample["video"], sample["same_as"] = self._views(index)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                sample["bad"].append((error.path, error.reason))
        if damage := self._take_damage():
            sample["damaged"] = damage
        return sample

    def _views(self, index: int) -> tuple[Tensor, Tensor]:
        """The views, and for each the first one that is the same."""
        num_frames = self.records[index].num_frames
        indices = uniform_views(self.sampler, num_frames, self.num_views)
        distinct, place = torch.unique(indices, dim=0, return_inverse=True)
        shown = [self.eval_transform(view) for view in self._read_views(index, distinct)]
        views = torch.cat([shown[number] for number in place.tolist()])
        first = (place[:, None] == place).int().argmax(1)
        crops = torch.arange(len(shown[0]))
        same_as = (first[:, None] * len(crops) + crops).flatten()
        return views.transpose(1, 2).contiguous(), same_as


def _channels_first(clip: Tensor) -> Tensor:
    """(T, C, H, W) -> (C, T, H, W)."""
    return clip.transpose(0, 1).contiguous()


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples: pixels uint8 (B, ...), `label` and `index` long (B,), `bad` one list.

    The pixels keep their name: `video`, `image` or `views`. Samples without any (skipped ones) only
    give their `bad`. Where all say which of their views are the same, so does the batch: `same_as`,
    long (B, V), and which are broken copies that did not change: `unchanged`, bool (B, V); and what
    they show, where colours hide it: `content` and `uncoloured`, as in `ClipDataset`.
    `damaged`, one list as `bad`, is there if a sample has it.
    """
    whole = [sample for sample in samples if not _PIXEL_KEYS.isdisjoint(sample)]
    batch: dict[str, Any] = {
        "label": torch.tensor([sample["label"] for sample in whole], dtype=torch.long),
        "index": torch.tensor([sample["index"] for sample in whole], dtype=torch.long),
        "bad": [entry for sample in samples for entry in sample["bad"]],
    }
    if damaged := [entry for sample in samples for entry in sample.get("damaged", ())]:
        batch["damaged"] = damaged
    for key in _PIXEL_KEYS & whole[0].keys() if whole else ():
        batch[key] = torch.stack([sample[key] for sample in whole])
    for key in _SHARED_KEYS:
        if whole and all(key in sample for sample in whole):
            batch[key] = torch.stack([sample[key] for sample in whole])
    return batch
