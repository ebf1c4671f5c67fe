"""What evaluated weights have seen before: the data and negatives of the run that made them.

A pretraining run on the train split of fold 1 has seen the test videos of folds 2 and 3, without
their labels. Numbers on those videos are then not numbers on unseen videos, and the Result says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ndavid.data.clip_sets import clip_records
from ndavid.data.config import DataConfig
from ndavid.data.manifest import ClipRecord, read_manifest
from ndavid.data.shard_index import locate
from ndavid.engine.position import describe_move
from ndavid.errors import NdavidError
from ndavid.evaluation.image_views import chosen_classes, share_images
from ndavid.evaluation.report import Picture
from ndavid.models.weights.checkpoint import LoadedCheckpoint

GALLERY_FILE = "negatives.png"

_FOLD = "{fold}"


@dataclass(frozen=True)
class TrainingRun:
    """The run of ours that a checkpoint comes from, as its ``config.yaml`` says."""

    folder: Path
    data: Mapping[str, Any]
    """keys that say what it was trained on: of a ``DataConfig``, or older ones"""
    nda: str
    """spec of its negative augmentation; empty for none, or where it has no such thing"""
    as_real: str = ""
    """of a GAN: operations that its discriminator saw real images through"""
    moves: tuple[str, ...] = ()
    """where it went on with another number of processes or the like, one sentence each"""

    @property
    def manifest(self) -> str:
        """The prepared videos, or the shards, it was trained on; empty for images."""
        # Runs of older versions call it manifest.
        root = self.data.get("root", "") if self.data.get("source") == "clips" else ""
        return self.shards or str(self.data.get("manifest", "") or root)

    @property
    def shards(self) -> str:
        """The shards of videos it was trained on; empty where files were read."""
        return str(self.data.get("shards", ""))

    @property
    def fold(self) -> int:
        """The fold it was trained on."""
        return int(self.data.get("fold", 1))

    @property
    def split(self) -> str:
        """The split it was trained on."""
        return str(self.data.get("split", "train"))

    def notes_on_classes(self, tested: DataConfig) -> list[str]:
        """What a reader must know where a GAN is measured on other classes than it makes."""
        trained_on = list(self.data.get("classes", []))
        if trained_on == tested.classes:
            return []
        return [
            f"The GAN was trained on the classes {', '.join(trained_on) or 'all'}, and is tested "
            f"on {chosen_classes(tested) or 'all'}."
        ]

    def notes_on_operations(self) -> list[str]:
        """Which operations its discriminator was shown, and as what."""
        notes = []
        if self.nda:
            notes.append(f"The discriminator was trained on {self.nda} as negatives.")
        if self.as_real:
            notes.append(f"The discriminator was shown real images through {self.as_real}.")
        return notes

    def describe(self) -> str:
        """Returns what it was trained on, in words; empty where its config does not say."""
        if self.manifest:
            return f"the {self.split} split of fold {self.fold} of {self.manifest}"
        if "source" in self.data:
            part = f"the {self.split} split" if self.split else "all"
            return f"{part} of {self.data['source']} {self.data.get('root', '')}"
        return ""


@dataclass(frozen=True)
class Provenance:
    """What is known about the data behind a checkpoint.

    Attributes:
        details: For the Result: the run, what it was ``trained_on``, NDA, and how many of the
            tested videos or images it has seen (``test_videos_seen``, ``test_images_seen``), which
            is None where it could not be found out. Empty for random weights.
        notes: What a reader of the numbers must know.
    """

    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def checkpoint_of(checkpoint: str, fold: int) -> str:
    """Returns the checkpoint for a fold: ``{fold}`` in the path stands for its number."""
    return checkpoint.replace(_FOLD, str(fold))


def training_run(opened: LoadedCheckpoint | None) -> TrainingRun | None:
    """Returns the run that weights belong to, None where it is no run of ours."""
    if opened is None or (run := opened.run) is None:
        return None
    values = opened.config
    as_real = [_word(values, "augment", key) for key in ("real", "every")]
    return TrainingRun(
        folder=run,
        data=_data_keys(values),
        nda=_word(values, "nda", "spec"),
        as_real=" and ".join(filter(None, as_real)),
        moves=_moves(run / "environment.json"),
    )


def _moves(environment: Path) -> tuple[str, ...]:
    """What a run's environment says of its moves; none where it says nothing that can be read."""
    try:
        found = json.loads(environment.read_text(encoding="utf-8-sig")).get("moves", [])
        return tuple(f"The pretraining {describe_move(move)}." for move in found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()


def _word(values: Mapping[str, Any], section: str, key: str) -> str:
    """What a config says under a key; empty where it does not."""
    found = values.get(section, {})
    return str(found.get(key, "")) if isinstance(found, Mapping) else ""


def _data_keys(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of a run's config that names its data; empty where none does.

    It is ``data``; of a fine-tuning run, whose fold stands beside it, both. Runs of older versions
    have ``manifest`` there or on top, or one of ``data.video`` and ``data.images`` filled in. What
    images are in shards is not recorded.
    """
    data = config.get("data", config)
    data = data if isinstance(data, Mapping) else {}
    for part in (data, data.get("video"), data.get("images")):
        if not isinstance(part, Mapping):
            continue
        if part.get("shards"):
            clips = "manifest" in part or _kind_of_shards(str(part["shards"])) == "clips"
            return part if clips else {}
        if part.get("manifest") or part.get("root"):
            return {"fold": config.get("fold", 1), **part}
    return {}


def _kind_of_shards(shards: str) -> str:
    """What is in shards: clips or images; empty where they cannot be read here."""
    try:
        return locate(shards).index.kind
    except NdavidError:
        return ""


def trace(
    opened: LoadedCheckpoint | None, tested: Sequence[ClipRecord], root: Path, fold: int
) -> Provenance:
    """Returns where weights come from, and how many of the tested videos they have seen.

    Videos are the same when their paths in the two manifests are, whatever the file's suffix: a
    prepared copy is the same video. So they are when one path is the end of the other, since a
    union of datasets puts folders before it (a bare file name counts if the number of frames is
    the same too), and when their files are the same.

    Args:
        opened: The weights; None for random ones.
        tested: The videos of the test.
        root: What their paths are relative to.
        fold: The fold they are of, named in the note.
    """
    if opened is None:
        return Provenance()
    run = training_run(opened)
    if run is None or not (where := run.describe()):
        return _unrecorded("videos")
    seen = _count_seen(run, tested, root)
    details = {
        "run": str(run.folder),
        "trained_on": where,
        "manifest": run.manifest,
        "fold": run.fold,
        "split": run.split,
        "nda": run.nda,
        "test_videos_seen": seen,
    }
    if seen is None:
        note = f"The weights come from {where}, which cannot be read here: overlap not checked."
        return Provenance(details, (note, *run.moves))
    if seen:
        note = (
            f"LEAK: {seen} of the {len(tested)} test videos of fold {fold} were in the pretraining "
            f"data ({where}). Pretrain once a fold, and put {_FOLD} into the checkpoint's path."
        )
        return Provenance(details, (note, *run.moves))
    return Provenance(details, run.moves)


def trace_images(opened: LoadedCheckpoint | None, tested: DataConfig, count: int) -> Provenance:
    """Returns where weights come from, and whether they were trained on the tested images.

    Two sets are the same where source and split are, and for folders and archives the place too.

    Args:
        opened: The weights; None for random ones.
        tested: The images of the test.
        count: How many they are.
    """
    if opened is None:
        return Provenance()
    run = training_run(opened)
    if run is None or not (where := run.describe()):
        return _unrecorded("images")
    leak = share_images(tested, run.data)
    details = {
        "run": str(run.folder),
        "trained_on": where,
        "nda": run.nda,
        "test_images_seen": count if leak else 0,
    }
    note = f"LEAK: the weights were trained on the {count} test images ({where})."
    return Provenance(details, (note, *run.moves) if leak else run.moves)


def _unrecorded(unit: str) -> Provenance:
    note = f"What the weights were trained on is not recorded: test {unit} may be among it."
    return Provenance(notes=(note,))


def gallery(checkpoints: Iterable[LoadedCheckpoint | None]) -> list[Picture]:
    """Returns the pictures of negatives that the pretraining runs left in their folders."""
    pictures: dict[Path, Picture] = {}
    for opened in checkpoints:
        run = training_run(opened)
        if run is not None and (image := run.folder / GALLERY_FILE).is_file():
            caption = f"What {run.nda or 'the negative augmentation'} made of a training sample in "
            pictures[run.folder] = Picture(
                title="Negatives of the pretraining",
                image=image,
                caption=f"{caption}the pretraining run {run.folder.name}.",
            )
    return list(pictures.values())


def _count_seen(run: TrainingRun, tested: Sequence[ClipRecord], root: Path) -> int | None:
    if not run.manifest:
        return 0  # Images hold none of the videos.
    try:
        if run.shards:
            # Of the files that they were packed from, only the names are known.
            seen = _Seen(clip_records(locate(run.shards, "clips").index))
        else:
            manifest = read_manifest(run.manifest)
            seen = _Seen(manifest.select(run.split, run.fold), manifest.root)
    except NdavidError:
        return None
    return sum(seen.has(record, root) for record in tested)


class _Seen:
    """The videos that a run was trained on.

    Args:
        records: Those videos.
        root: What their paths are relative to; None where the files are not known.
    """

    def __init__(self, records: Iterable[ClipRecord], root: Path | None = None) -> None:
        # By the last part of the path: all that are the same video have it in common.
        self._by_name: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        self._files: set[Path] = set()
        base = root.resolve() if root is not None else None
        for record in records:
            parts = _parts(record)
            self._by_name.setdefault(parts[-1], []).append((parts, record.num_frames))
            if base is not None:
                self._files.add(base / record.path)

    def has(self, record: ClipRecord, root: Path) -> bool:
        """Whether a video is one of them, by its path or by its file."""
        parts = _parts(record)
        return root.resolve() / record.path in self._files or any(
            _same_video(parts, record.num_frames, *known)
            for known in self._by_name.get(parts[-1], ())
        )


def _parts(record: ClipRecord) -> tuple[str, ...]:
    return PurePosixPath(record.path).with_suffix("").parts


def _same_video(
    parts: tuple[str, ...], num_frames: int, others: tuple[str, ...], other_frames: int
) -> bool:
    """Whether one path is the other, or its end: a union puts folders before its videos' paths."""
    shared = min(len(parts), len(others))
    if parts[-shared:] != others[-shared:]:
        return False
    # Many datasets have an "a.mp4": a name alone, in other folders, must be as long too.
    return shared > 1 or len(parts) == len(others) or num_frames == other_frames
