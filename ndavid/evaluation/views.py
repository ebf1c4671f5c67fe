"""Which clips of which videos an evaluation looks at, as one config shared by all evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ndavid.data.config import DataConfig
from ndavid.data.manifest import ClipRecord, Manifest, read_manifest
from ndavid.data.sampling import ClipSampler, DenseClip, DpcBlocks, ShortClipReport, usable
from ndavid.data.transforms import eval_transform
from ndavid.data.video import ViewsDataset
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.prepared_files import OnChanged
from ndavid.evaluation.protocol import Protocol
from ndavid.ranges import check_workers


@dataclass(kw_only=True)
class ViewsConfig:
    """What is read from each video, and how many looks it gets at test time."""

    backend: Literal["pyav", "decord", "torchcodec", "frames"] = "pyav"
    """decoder"""
    sampling: Literal["blocks", "dense"] = "blocks"
    """blocks: num_blocks of block_len frames (DPC); dense: num_frames frames"""
    num_blocks: int = 8
    """blocks a clip (sampling: blocks)"""
    block_len: int = 5
    """frames a block (sampling: blocks)"""
    num_frames: int = 16
    """frames a clip (sampling: dense)"""
    frame_stride: int = 3
    """every how many-th frame is taken"""
    short: Literal["loop", "pad", "drop"] = "loop"
    """videos shorter than a clip: start over, repeat the last frame, or leave out"""
    size: int = 128
    """side of the square input, pixels"""
    clips: int = 10
    """evenly spaced clips a test video"""
    crops: Literal[1, 3] = 3
    """spatial crops a clip: the centre, or left, centre and right"""
    on_bad: Literal["raise", "skip"] = "raise"
    """an undecodable test video: an error, or left out and counted in the result"""
    on_changed: OnChanged = "raise"
    """a video whose file is not the one that was prepared (by size and digest): an error, or read
    as it is and told in a warning"""
    damaged: Literal["report", "bad"] = "report"
    """videos with frames that the decoder flags as damaged: used and counted, or as on_bad says"""
    views_per_batch: int = 32
    """views a forward pass at test time"""
    num_workers: int = 2
    """loader processes at test time"""

    def __post_init__(self) -> None:
        for name in ("size", "clips", "views_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        check_workers(self)
        self.sampler()

    def sampler(self) -> ClipSampler:
        """Returns the sampler of one clip's frames."""
        if self.sampling == "blocks":
            return DpcBlocks(self.num_blocks, self.block_len, self.frame_stride, self.short)
        return DenseClip(self.num_frames, self.frame_stride, self.short)

    def describe_sampling(self) -> str:
        """Returns which frames make a clip, in words."""
        every = f"every {self.frame_stride} frames" if self.frame_stride > 1 else "every frame"
        if self.sampling == "blocks":
            return f"{self.num_blocks} blocks of {self.block_len} frames, {every}"
        return f"{self.num_frames} frames, {every}"


def open_manifest(data: DataConfig) -> Manifest:
    """Reads the manifest of the prepared videos that a config names.

    Raises:
        ConfigError: If none is named, it is of images, or it names no classes.
        DataError: If it cannot be read.
    """
    if data.shards:
        raise ConfigError("data.shards: videos are measured from files; give data.root")
    data.resolve_source()  # says what to give where there is nothing
    manifest = read_manifest(data.root)
    if not manifest.classes:
        raise DataError(
            data.root,
            "the manifest has no classes to evaluate against: lay the videos out as CLASS/* and "
            "prepare again",
        )
    return manifest


def select_labelled(manifest: Manifest, split: str, fold: int) -> tuple[ClipRecord, ...]:
    """Returns the videos of a split, all labelled.

    Raises:
        ConfigError: If there is no such split or fold.
        DataError: If it holds no videos, or one has no label.
    """
    if not (records := manifest.select(split, fold)):
        raise DataError(
            manifest.root,
            f"the {split} split of fold {fold} holds no videos: choose another split or fold, or "
            "prepare again (of class folders with --test-fraction 0.25)",
        )
    return labelled(records, manifest)


def labelled(records: Sequence[ClipRecord], manifest: Manifest) -> tuple[ClipRecord, ...]:
    """Returns ``records`` after checking that there are some and that each has a class.

    Raises:
        DataError: If there are none, or one has no label.
    """
    if not records:
        raise DataError(manifest.root, "the chosen split and fold hold no videos")
    for record in records:
        if not 0 <= record.label < len(manifest.classes):
            raise DataError(record.path, "no class label, so it cannot be evaluated")
    return tuple(records)


def views_dataset(
    records: Sequence[ClipRecord],
    manifest: Manifest,
    config: ViewsConfig,
    *,
    clips: int | None = None,
    crops: int | None = None,
) -> tuple[ViewsDataset, ShortClipReport]:
    """Returns the test-time dataset of ``records`` under the short-clip policy, and its report.

    The dataset reports undecodable videos; ``per_item`` decides what to do with them.

    Args:
        records: Videos to look at.
        manifest: Where they are.
        config: How to look at them.
        clips: Replaces the config's, e.g. 1 for a quick validation.
        crops: Replaces the config's.

    Raises:
        DataError: If the short-clip policy leaves nothing.
    """
    kept, report = usable(labelled(records, manifest), config.sampler())
    if not kept:
        raise DataError(
            manifest.root,
            f"all {len(records)} videos are shorter than a clip of {config.sampler().span} frames "
            "and short=drop leaves them out; use short=loop",
        )
    dataset = ViewsDataset(
        kept,
        manifest.root,
        config.sampler(),
        clips or config.clips,
        eval_transform(config.size, crops or config.crops),
        backend=config.backend,
        on_error="skip",
        damaged=config.damaged,
    )
    return dataset, report


def describe(
    views: ViewsConfig,
    data: DataConfig,
    manifest: Manifest,
    report: ShortClipReport,
    *,
    split: str,
    fold: int,
) -> Protocol:
    """Returns the Protocol fields that follow from the views; the evaluator adds the rest."""
    path = Path(data.root)
    path = path if path.suffix else path / "manifest.csv"
    return Protocol(
        # The folder's name is the dataset's.
        manifest="/".join(path.absolute().parts[-2:]),
        split=split,
        folds=[fold],
        num_classes=len(manifest.classes),
        sampling=views.describe_sampling(),
        clips=views.clips,
        crops=views.crops,
        size=views.size,
        short=report.policy,
        num_short=report.num_short,
        num_dropped=report.num_dropped,
    )
