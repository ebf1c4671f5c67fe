"""What evaluated weights have seen before: videos and negatives of the run that made them.

A pretraining run on the train split of fold 1 has seen the test videos of folds 2 and 3, without
their labels. Numbers on those videos are then not numbers on unseen videos, and the Result says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from ndavid.checkpoint_files import FOLDER
from ndavid.data.manifest import ClipRecord, read_manifest
from ndavid.errors import CheckpointError, NdavidError
from ndavid.evaluation.report import Picture

GALLERY_FILE = "negatives.png"

_FOLD = "{fold}"


@dataclass(frozen=True)
class TrainingRun:
    """The run of ours that a checkpoint comes from, as its ``config.yaml`` says."""

    folder: Path
    manifest: str
    fold: int
    split: str
    nda: str
    """spec of its negative augmentation; empty for none, or where it has no such thing"""


@dataclass(frozen=True)
class Provenance:
    """What is known about the data behind a checkpoint.

    Attributes:
        details: For the Result: run, manifest, fold, split, NDA and ``test_videos_seen``, which is
            None where it could not be found out. Empty for random weights.
        notes: What a reader of the numbers must know.
    """

    details: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def checkpoint_of(checkpoint: str, fold: int) -> str:
    """Returns the checkpoint for a fold: ``{fold}`` in the path stands for its number."""
    return checkpoint.replace(_FOLD, str(fold))


def training_run(checkpoint: str) -> TrainingRun | None:
    """Returns the run that ``checkpoint`` belongs to, None where it is no run of ours.

    Args:
        checkpoint: A run's folder, one of its ``checkpoints/step_N``, or the weights in one.

    Raises:
        CheckpointError: If the run's ``config.yaml`` cannot be read.
    """
    path = Path(checkpoint).absolute()
    folder = path.parent if path.is_file() else path
    run = folder.parents[1] if folder.parent.name == FOLDER else folder
    config = run / "config.yaml"
    if not (run / FOLDER).is_dir() or not config.is_file():
        return None
    try:
        values = yaml.safe_load(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise CheckpointError(f"{config}: cannot be read: {error}") from error
    values = values if isinstance(values, Mapping) else {}
    # Pretraining keeps its data under `data`; a fine-tuning run has manifest and fold on top.
    data, nda = values.get("data", values), values.get("nda", {})
    if not isinstance(data, Mapping) or not {"manifest", "fold"} <= data.keys():
        return None
    return TrainingRun(
        folder=run,
        manifest=str(data["manifest"]),
        fold=int(data["fold"]),
        split=str(data.get("split", "train")),
        nda=str(nda.get("spec", "")) if isinstance(nda, Mapping) else "",
    )


def trace(checkpoint: str, tested: Sequence[ClipRecord], fold: int) -> Provenance:
    """Returns where weights come from, and how many of the tested videos they have seen.

    Videos are the same when their paths in the two manifests are, whatever the file's suffix: a
    prepared copy is the same video.

    Args:
        checkpoint: As ``training_run`` takes it; empty for random weights.
        tested: The videos of the test.
        fold: The fold they are of, named in the note.
    """
    if not checkpoint:
        return Provenance()
    run = training_run(checkpoint)
    if run is None:
        note = "What the weights were trained on is not recorded: test videos may be among it."
        return Provenance(notes=(note,))
    seen = _count_seen(run, tested)
    details = {
        "run": str(run.folder),
        "manifest": run.manifest,
        "fold": run.fold,
        "split": run.split,
        "nda": run.nda,
        "test_videos_seen": seen,
    }
    where = f"the {run.split} split of fold {run.fold} of {run.manifest}"
    if seen is None:
        note = f"The weights come from {where}, which cannot be read here: overlap not checked."
        return Provenance(details, (note,))
    if seen:
        note = (
            f"LEAK: {seen} of the {len(tested)} test videos of fold {fold} were in the pretraining "
            f"data ({where}). Pretrain once a fold, and put {_FOLD} into the checkpoint's path."
        )
        return Provenance(details, (note,))
    return Provenance(details)


def gallery(checkpoint: str, folds: Iterable[int]) -> list[Picture]:
    """Returns the pictures of negatives that the pretraining runs left in their folders."""
    pictures: dict[Path, Picture] = {}
    for fold in folds if checkpoint else ():
        run = training_run(checkpoint_of(checkpoint, fold))
        if run is not None and (image := run.folder / GALLERY_FILE).is_file():
            caption = f"What {run.nda or 'the negative augmentation'} made of a training clip in "
            pictures[run.folder] = Picture(
                title="Negatives of the pretraining",
                image=image,
                caption=f"{caption}the pretraining run {run.folder.name}.",
            )
    return list(pictures.values())


def _count_seen(run: TrainingRun, tested: Sequence[ClipRecord]) -> int | None:
    try:
        trained_on = read_manifest(run.manifest).select(run.split, run.fold)
    except NdavidError:
        return None
    return len(_names(trained_on) & _names(tested))


def _names(records: Iterable[ClipRecord]) -> set[PurePosixPath]:
    return {PurePosixPath(record.path).with_suffix("") for record in records}
