"""Map-style datasets of video clips: files in, uint8 clips out.

A sample is a pure function of its key, so that workers, ranks and restarts cannot change it: the
loader's sampler hands out `(index, seed)`, and all that is random comes from a generator seeded by
it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ndavid.data.decode import FrameReader, open_reader
from ndavid.data.manifest import ClipRecord
from ndavid.data.sampling import ClipSampler, uniform_views
from ndavid.data.transforms import ClipTransform
from ndavid.data.worker_errors import data_errors_leave_workers
from ndavid.errors import DataError

SampleKey = int | tuple[int, int]


@dataclass(kw_only=True)
class VideoDataConfig:
    """Which clips are read, and how.

    Attributes:
        manifest: the manifest.csv that `datasets/prepare.py` wrote, or the folder that holds it.
        fold: official split to use, from 1.
        split: which part of it.
        backend: "pyav", "decord", "torchcodec" or "frames".
        frame_stride: every how many-th frame of the video is taken.
        short: what to do with videos shorter than a clip: start over, repeat the end, or drop.
    """

    manifest: str = ""
    fold: int = 1
    split: Literal["train", "test", "val"] = "train"
    backend: Literal["pyav", "decord", "torchcodec", "frames"] = "pyav"
    frame_stride: int = 3
    short: Literal["loop", "pad", "drop"] = "loop"


class ViewTransform(Protocol):
    """Makes test crops out of decoded frames."""

    def __call__(self, clip: Tensor) -> Tensor:
        """uint8 (T, C, H, W) -> uint8 (crops, T, C, size, size)."""


class ClipDataset(Dataset[dict[str, Any]]):
    """One clip a video, for training.

    A key is `(index, seed)`, or an int for the centred, unaugmented clip. A sample holds `video`
    (uint8, (C, T, H, W)), `label`, `index` (of the clip that was read) and `bad`, the
    `(path, reason)` of clips that could not be read.

    Args:
        records: the clips, for instance `manifest.select("train")`.
        root: the folder that their paths are relative to.
        sampler: chooses the frames.
        transform: makes the clip out of the decoded frames.
        backend: who decodes.
        on_error: "raise", or "next": the clip that follows stands in for one that cannot be read,
            so that batches keep their size on every rank; `bad` tells.
    """

    def __init__(
        self,
        records: Sequence[ClipRecord],
        root: str | os.PathLike[str],
        sampler: ClipSampler,
        transform: ClipTransform,
        *,
        backend: str = "pyav",
        on_error: Literal["raise", "next"] = "raise",
    ) -> None:
        if not records:
            raise DataError(root, "no clips to read: the selection is empty")
        self.records = tuple(records)
        self.root = Path(root)
        self.sampler = sampler
        self.transform = transform
        self.backend = backend
        self.on_error = on_error

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
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: SampleKey) -> dict[str, Any]:
        index, seed = key if isinstance(key, tuple) else (key, None)
        with data_errors_leave_workers():
            return self._sample(index, seed)

    def _sample(self, index: int, seed: int | None) -> dict[str, Any]:
        count = len(self.records)
        bad: list[tuple[str, str]] = []
        for current in ((index + k) % count for k in range(count)):
            record = self.records[current]
            try:
                video = self._clip(record, seed)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                bad.append((error.path, error.reason))
            else:
                return {"video": video, "label": record.label, "index": current, "bad": bad}
        path, reason = bad[0]
        raise DataError(self.root, f"none of the {count} clips can be read; {path}: {reason}")

    def _clip(self, record: ClipRecord, seed: int | None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        indices = self.sampler.sample(record.num_frames, generator)
        with _open_record(record, self.root, self.backend) as reader:
            frames = reader.read(indices)
        return self.transform(frames, generator).transpose(0, 1).contiguous()


class ViewsDataset(Dataset[dict[str, Any]]):
    """All test views of a video: evenly spaced clips, each in one or three crops.

    A sample holds `video` (uint8, (V, C, T, H, W) with V = num_views * crops), `label`, `index`.
    With `on_error="skip"` a video that cannot be read gives a sample without `video`, whose `bad`
    holds its `(path, reason)`; `collate` leaves it out of the batch.
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
    ) -> None:
        if not records:
            raise DataError(root, "no clips to read: the selection is empty")
        self.records = tuple(records)
        self.root = Path(root)
        self.sampler = sampler
        self.num_views = num_views
        self.eval_transform = eval_transform
        self.backend = backend
        self.on_error = on_error

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = self.records[index]
        sample: dict[str, Any] = {"label": record.label, "index": index, "bad": []}
        with data_errors_leave_workers():
            try:
                sample["video"] = self._views(record)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                sample["bad"].append((error.path, error.reason))
        return sample

    def _views(self, record: ClipRecord) -> Tensor:
        indices = uniform_views(self.sampler, record.num_frames, self.num_views)
        # Views overlap: every frame is decoded and converted once, then views pick.
        unique, place = torch.unique(indices, return_inverse=True)
        with _open_record(record, self.root, self.backend) as reader:
            frames = reader.read(unique)
        views = torch.cat([self.eval_transform(frames[view]) for view in place])
        return views.transpose(1, 2).contiguous()


def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stacks samples: `video` uint8 (B, ...), `label` and `index` long (B,), `bad` one list.

    Samples without a video (skipped ones) only give their `bad`.
    """
    whole = [sample for sample in samples if "video" in sample]
    batch: dict[str, Any] = {
        "label": torch.tensor([sample["label"] for sample in whole], dtype=torch.long),
        "index": torch.tensor([sample["index"] for sample in whole], dtype=torch.long),
        "bad": [entry for sample in samples for entry in sample["bad"]],
    }
    if whole:
        batch["video"] = torch.stack([sample["video"] for sample in whole])
    return batch


def _open_record(record: ClipRecord, root: Path, backend: str) -> FrameReader:
    """A reader that makes use of what the manifest knows about the clip."""
    verified = record.decord_ok if backend == "decord" else None
    path = root / record.path
    return open_reader(path, backend, num_frames=record.num_frames, verified=verified)
