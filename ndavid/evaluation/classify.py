"""From a classifier and videos to predictions, and from predictions to accuracies.

Validation and test go through the same function: a separate test path is how a model scores 46% on
one and 3% on the other (CoCLR issue 30).

Videos are shared among ranks without padding, so that each is scored exactly once: rank r takes
every world_size-th video from r on, and shards may differ by one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ndavid.collectives import rank, world_size
from ndavid.engine.distributed import gather_objects
from ndavid.errors import DataError, TrainingError
from ndavid.evaluation.agreement import together
from ndavid.evaluation.intervals import Metric, mean_class_accuracy, top_k_accuracy, wilson
from ndavid.evaluation.protocol import Result
from ndavid.methods.classification import ClassificationMethod

BadVideo = tuple[str, str]
Row = tuple[int, int, Tensor]
OnBad = Literal["raise", "skip"]


class TestDataset(Protocol):
    """Map-style views of videos, such as ``ndavid.data.video.ViewsDataset``."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """``video`` uint8 (V, C, T, H, W), ``label`` and ``index``; ``bad`` where undecodable."""


@dataclass(frozen=True)
class PerVideo:
    """One vector a video, in the order of the dataset.

    Attributes:
        values: (M, D) or (M, V, D) float32 on the CPU.
        labels: (M,) class indices.
        indices: (M,) positions in the dataset's records, increasing.
        bad: Path and reason of each undecodable video that was left out.
    """

    values: Tensor
    labels: Tensor
    indices: Tensor
    bad: tuple[BadVideo, ...] = ()


def per_video(
    compute: Callable[[Tensor], Tensor],
    dataset: TestDataset,
    *,
    device: torch.device,
    on_bad: OnBad = "raise",
    views_per_batch: int = 32,
    num_workers: int = 0,
    description: str = "evaluating",
) -> PerVideo:
    """Applies ``compute`` to every view of every video, each video on exactly one rank.

    Args:
        compute: Views (N, C, T, H, W) uint8 on ``device`` -> (N, D).
        dataset: Test views that report undecodable videos (``on_error="skip"``), so that the error
            is raised here, in one line, and not inside a loader process.
        device: Where ``compute`` runs.
        on_bad: ``raise``, or ``skip`` to leave undecodable videos out and list them.
        views_per_batch: About how many views a call; a single video's views are never more.
        num_workers: Loader processes.
        description: What the progress bar says.

    Returns:
        ``values`` (M, V, D) of all ranks' videos, on every rank.

    Raises:
        DataError: If a video cannot be decoded and ``on_bad`` is ``raise``, or none can; on all
            ranks.
        TrainingError: If the model gives numbers that are not finite.
    """
    mine = together(
        lambda: _score_mine(
            compute, dataset, device, on_bad, views_per_batch, num_workers, description
        )
    )
    return _merge(gather_objects(mine), dataset)


def _score_mine(
    compute: Callable[[Tensor], Tensor],
    dataset: TestDataset,
    device: torch.device,
    on_bad: OnBad,
    views_per_batch: int,
    num_workers: int,
    description: str,
) -> tuple[list[Row], list[BadVideo]]:
    """This rank's share of the videos."""
    loader = DataLoader(
        Subset(cast("Dataset[dict[str, Any]]", dataset), range(rank(), len(dataset), world_size())),
        batch_size=None,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
    )
    rows: list[Row] = []
    bad: list[BadVideo] = []
    pending: list[dict[str, Any]] = []

    def flush() -> None:
        views = torch.cat([item["video"] for item in pending])
        parts = [
            compute(part.to(device, non_blocking=True)).float().cpu()
            for part in views.split(views_per_batch)
        ]
        values = torch.cat(parts).split([len(item["video"]) for item in pending])
        for item, of_video in zip(pending, values, strict=True):
            rows.append((int(item["index"]), int(item["label"]), of_video))
        pending.clear()

    with torch.inference_mode():
        for item in tqdm(loader, desc=description, unit="video", disable=rank() != 0 or None):
            if "video" not in item:
                path, reason = item["bad"][0]
                if on_bad == "raise":
                    raise DataError(path, f"cannot be evaluated: {reason}")
                bad.append((path, reason))
                continue
            pending.append(item)
            if sum(len(one["video"]) for one in pending) >= views_per_batch:
                flush()
        if pending:
            flush()
    return rows, bad


def _merge(parts: Sequence[tuple[list[Row], list[BadVideo]]], dataset: TestDataset) -> PerVideo:
    """All ranks' rows in the order of the dataset, after checking that each video is there once."""
    rows = sorted((row for part, _ in parts for row in part), key=lambda row: row[0])
    bad = tuple(sorted(entry for _, entries in parts for entry in entries))
    if len({index for index, _, _ in rows}) != len(rows) or len(rows) + len(bad) != len(dataset):
        raise AssertionError("a video was scored twice or not at all")
    if not rows:
        raise DataError(bad[0][0], f"no video could be evaluated; the first: {bad[0][1]}")
    values = torch.stack([of_video for _, _, of_video in rows])
    if not values.isfinite().all():
        raise TrainingError("the model gives values that are not finite; its weights are broken")
    return PerVideo(
        values,
        labels=torch.tensor([label for _, label, _ in rows], dtype=torch.long),
        indices=torch.tensor([index for index, _, _ in rows], dtype=torch.long),
        bad=bad,
    )


def classify(
    method: ClassificationMethod,
    dataset: TestDataset,
    *,
    device: torch.device,
    on_bad: OnBad = "raise",
    views_per_batch: int = 32,
    num_workers: int = 0,
    description: str = "classifying",
) -> PerVideo:
    """Returns each video's class probabilities: softmax over classes, then the mean over views.

    Args:
        method: Its ``logits`` are taken; in eval mode during the call, restored after it.
        dataset: See ``per_video``, as for the rest.
        device: See ``per_video``.
        on_bad: See ``per_video``.
        views_per_batch: See ``per_video``.
        num_workers: See ``per_video``.
        description: See ``per_video``.

    Returns:
        ``values`` (M, num_classes), rows summing to 1.
    """
    training = method.training
    method.eval()
    try:
        scored = per_video(
            lambda views: method.logits(views).float().softmax(-1),
            dataset,
            device=device,
            on_bad=on_bad,
            views_per_batch=views_per_batch,
            num_workers=num_workers,
            description=description,
        )
    finally:
        method.train(training)
    return PerVideo(scored.values.mean(1), scored.labels, scored.indices, scored.bad)


def accuracies(predictions: PerVideo) -> dict[str, Metric]:
    """Returns top-1, top-5 and mean class accuracy with 95% intervals.

    Top-5 is left out for five classes or fewer, where it is 1 by definition.
    """
    values, labels = predictions.values, predictions.labels
    num_classes = values.shape[1]
    ranked = values.argsort(dim=1, descending=True, stable=True)
    hits = ranked == labels[:, None]
    metrics = {"top1": top_k_accuracy(hits[:, 0].tolist())}
    if num_classes > 5:
        metrics["top5"] = top_k_accuracy(hits[:, :5].any(1).tolist())
    counts = confusion_matrix(predictions)
    metrics["mean_class_accuracy"] = mean_class_accuracy(
        counts.diagonal().tolist(), counts.sum(1).tolist()
    )
    return metrics


def confusion_matrix(predictions: PerVideo) -> Tensor:
    """Returns (C, C) counts of videos by true class (row) and predicted class (column)."""
    num_classes = predictions.values.shape[1]
    predicted = predictions.values.argsort(dim=1, descending=True, stable=True)[:, 0]
    cells = predictions.labels * num_classes + predicted
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_table(confusion: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a row a class: accuracy with interval, counts, and the class it is mistaken for most.

    A class without a test video has None for its accuracy.
    """
    table = []
    for label, name in enumerate(classes):
        row = confusion[label].clone()
        videos, correct = int(row.sum()), int(row[label])
        row[label] = 0
        mistaken = int(row.max()) if len(row) else 0
        metric = wilson(correct, videos) if videos else None
        table.append(
            {
                "class": name,
                "accuracy": metric.value if metric else None,
                "low": metric.low if metric else None,
                "high": metric.high if metric else None,
                "correct": correct,
                "videos": videos,
                "confused_with": classes[int(row.argmax())] if mistaken else "",
                "confused_videos": mistaken,
            }
        )
    return table


def classification_details(predictions: PerVideo, classes: Sequence[str]) -> dict[str, Any]:
    """Returns what a Result keeps of a classification: classes, confusion, per-class rows."""
    confusion = confusion_matrix(predictions)
    return {
        "classes": list(classes),
        "confusion": confusion.tolist(),
        "per_class": per_class_table(confusion, classes),
    }


def pool_confusions(result: Result) -> Result:
    """Returns a mean over folds with the folds' confusion matrices added up; else as it came."""
    folds = result.details.get("folds")
    if not folds:
        return result
    classes = folds[0]["classes"]
    confusion = torch.tensor([fold["confusion"] for fold in folds]).sum(0)
    pooled = {
        "classes": classes,
        "confusion": confusion.tolist(),
        "per_class": per_class_table(confusion, classes),
    }
    return dataclasses.replace(result, details=result.details | pooled)
