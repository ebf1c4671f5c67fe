"""From a classifier and videos or images to predictions, and from predictions to accuracies.

Validation and test go through the same function: a separate test path is how a model scores 46% on
one and 3% on the other (CoCLR issue 30).

Items are shared among ranks without padding, so that each is scored exactly once, and shares may
differ by one: rank r takes every world_size-th item from r on, or, of items that lie in shards, one
run of them, so that few shards are read by two.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ndavid.collectives import rank, world_size
from ndavid.data.video import collate
from ndavid.engine.distributed import gather_objects
from ndavid.engine.loader import batches
from ndavid.engine.shared_memory import InSharedMemory, check_room
from ndavid.errors import DataError, TrainingError
from ndavid.evaluation.agreement import together
from ndavid.evaluation.intervals import Metric, mean_class_accuracy, top_k_accuracy, wilson
from ndavid.evaluation.outcomes import Outcome, outcomes_of
from ndavid.evaluation.protocol import Result
from ndavid.methods.classification import ClassificationMethod
from ndavid.progress import Progress

BadItem = tuple[str, str]
OnBad = Literal["raise", "skip"]


class TestDataset(Protocol):
    """Map-style test views: of videos, as ``ndavid.data.video.ViewsDataset``, or of images."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> dict[str, Any]:
        """``label``, ``index``, ``bad``, and the pixels unless they cannot be read.

        Pixels are ``video``, uint8 (V, C, T, H, W), or ``image``, (C, H, W), which is one view.
        """


@dataclass(frozen=True)
class PerItem:
    """One vector a video or image, in the order of the dataset.

    Attributes:
        values: (M, D) or (M, V, D) float32 on the CPU.
        labels: (M,) class indices.
        indices: (M,) positions in the dataset, increasing.
        bad: Path and reason of each unreadable item that was left out.
        damaged: Path of each item that is damaged and used all the same, and what is damaged.
        unchanged: bool (M, V), which views are broken copies that came out as they went in; None
            of items that nothing broke.
    """

    values: Tensor
    labels: Tensor
    indices: Tensor
    bad: tuple[BadItem, ...] = ()
    damaged: tuple[BadItem, ...] = ()
    unchanged: Tensor | None = None


def per_item(
    compute: Callable[[Tensor], Tensor],
    dataset: TestDataset,
    *,
    device: torch.device,
    on_bad: OnBad = "raise",
    views_per_batch: int = 32,
    views_per_item: int = 1,
    num_workers: int = 0,
    description: str = "evaluating",
    in_runs: bool = False,
) -> PerItem:
    """Applies ``compute`` to every view of every item, each item on exactly one rank.

    Args:
        compute: Views (N, C, T, H, W) or (N, C, H, W), uint8 on ``device`` -> (N, D).
        dataset: Test views that report unreadable items in ``bad``, so that the error is raised
            here, in one line, and not inside a loader process.
        device: Where ``compute`` runs.
        on_bad: ``raise``, or ``skip`` to leave unreadable items out and list them.
        views_per_batch: How many views a call, at most.
        views_per_item: How many views an item has, about: decides how many items are read at once.
        num_workers: Loader processes.
        description: What the progress says.
        in_runs: Each loading process of each rank reads neighbouring items, as shards want it.

    Returns:
        ``values`` (M, V, D) of all ranks' items, on every rank.

    Raises:
        DataError: If an item cannot be read and ``on_bad`` is ``raise``, or none can; on all ranks.
        ConfigError: If the loader processes' batches find too little shared memory.
        TrainingError: If the model gives numbers that are not finite.
    """
    size = max(1, views_per_batch // views_per_item)
    chunks = (
        batches_in_runs(len(dataset), size, rank(), world_size(), max(1, num_workers))
        if in_runs
        else _chunks(range(rank(), len(dataset), world_size()), size)
    )
    loader = DataLoader(
        cast("Dataset[dict[str, Any]]", dataset),
        batch_sampler=chunks,
        collate_fn=InSharedMemory(collate),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        # Worker base seeds come from here instead of the default generator.
        generator=torch.Generator(),
    )
    total = sum(map(len, chunks))

    def score() -> PerItem:
        # A sample of shards means a whole shard, which worker processes would inherit.
        if not in_runs:
            check_room(
                lambda: collate([dataset[chunks[0][0]]]),
                batch_size=max(map(len, chunks), default=0),
                num_workers=num_workers,
                num_batches=len(chunks),
            )
        return _score(compute, loader, total, device, on_bad, views_per_batch, description)

    mine = together(score)
    return _merge(gather_objects(mine), dataset, description)


def batches_in_runs(
    count: int, size: int, rank: int, world_size: int, readers: int
) -> list[list[int]]:
    """Returns the batches of one rank, such that each of its loading processes reads one run.

    The DataLoader gives batch b to process b % readers, so that the batches of all take turns.

    Args:
        count: Items of all ranks.
        size: Items a batch, the last one of a rank excepted.
        rank: Whose batches.
        world_size: How many ranks.
        readers: Loading processes a rank, at least 1.
    """
    run = range(count * rank // world_size, count * (rank + 1) // world_size)
    chunks = _chunks(run, size)
    held = [len(range(reader, len(chunks), readers)) for reader in range(readers)]
    firsts = list(itertools.accumulate(held, initial=0))
    return [chunks[firsts[turn % readers] + turn // readers] for turn in range(len(chunks))]


def _chunks(items: Sequence[int], size: int) -> list[list[int]]:
    return [list(items[start : start + size]) for start in range(0, len(items), size)]


def _score(
    compute: Callable[[Tensor], Tensor],
    loader: DataLoader[dict[str, Any]],
    total: int,
    device: torch.device,
    on_bad: OnBad,
    views_per_batch: int,
    description: str,
) -> PerItem:
    """This rank's share of the items."""
    values: list[Tensor] = []
    labels: list[Tensor] = []
    indices: list[Tensor] = []
    unchanged: list[Tensor] = []
    bad: list[BadItem] = []
    damaged: list[BadItem] = []
    with (
        torch.inference_mode(),
        Progress(total, description, unit="item", silent=rank() != 0) as progress,
    ):
        for batch in batches(loader):
            if batch["bad"] and on_bad == "raise":
                path, reason = batch["bad"][0]
                raise DataError(path, f"cannot be evaluated: {reason}")
            bad += batch["bad"]
            damaged += batch.get("damaged", ())
            if not len(batch["index"]):
                progress.advance(len(batch["bad"]))
                continue
            views = batch["video"] if "video" in batch else batch["image"].unsqueeze(1)
            once, place = _distinct(views.flatten(0, 1), batch.get("same_as"))
            parts = [
                compute(part.to(device, non_blocking=True)).float().cpu()
                for part in once.split(views_per_batch)
            ]
            values.append(torch.cat(parts)[place].unflatten(0, views.shape[:2]))
            labels.append(batch["label"])
            indices.append(batch["index"])
            if "unchanged" in batch:
                unchanged.append(batch["unchanged"])
            progress.advance(len(batch["index"]) + len(batch["bad"]))
    if not values:
        return PerItem(torch.empty(0), torch.empty(0), torch.empty(0), tuple(bad))
    return PerItem(
        torch.cat(values),
        torch.cat(labels),
        torch.cat(indices),
        tuple(bad),
        tuple(damaged),
        torch.cat(unchanged) if unchanged else None,
    )


def _distinct(views: Tensor, same_as: Tensor | None) -> tuple[Tensor, Tensor]:
    """The views (B * V, ...) without repeats, and where among them each of the B * V is.

    ``same_as`` (B, V) names the first view of its item that each is the same as; None: all differ.
    """
    if same_as is None:
        return views, torch.arange(len(views))
    items, per_item = same_as.shape
    first = same_as + per_item * torch.arange(items)[:, None]
    kept, place = first.flatten().unique(return_inverse=True)
    return (views if len(kept) == len(views) else views[kept]), place


def _merge(shares: Sequence[PerItem], dataset: TestDataset, description: str) -> PerItem:
    """All ranks' rows in the order of the dataset, after checking that each item is there once."""
    bad = tuple(sorted(entry for share in shares for entry in share.bad))
    damaged = tuple(sorted(entry for share in shares for entry in share.damaged))
    some = [share for share in shares if len(share.indices)]
    if not some:
        raise DataError(bad[0][0], f"nothing could be evaluated; the first: {bad[0][1]}")
    values, labels, indices = (
        torch.cat([getattr(share, name) for share in some])
        for name in ("values", "labels", "indices")
    )
    if len(indices.unique()) != len(indices) or len(indices) + len(bad) != len(dataset):
        raise AssertionError("an item was scored twice or not at all")
    if broken := int((~values.isfinite()).flatten(1).any(1).sum()):
        raise TrainingError(
            f"{description}: the model gives values that are not finite for {broken} of "
            f"{len(values)} items; its weights are broken: take an earlier checkpoint"
        )
    order = indices.argsort()
    flags = [share.unchanged for share in some if share.unchanged is not None]
    unchanged = torch.cat(flags)[order] if flags else None
    return PerItem(values[order], labels[order], indices[order], bad, damaged, unchanged)


def classify(
    method: ClassificationMethod,
    dataset: TestDataset,
    *,
    device: torch.device,
    on_bad: OnBad = "raise",
    views_per_batch: int = 32,
    views_per_item: int = 1,
    num_workers: int = 0,
    description: str = "classifying",
) -> PerItem:
    """Returns each item's class probabilities: softmax over classes, then the mean over views.

    Args:
        method: Its ``logits`` are taken; in eval mode during the call, restored after it.
        dataset: See ``per_item``, as for the rest.
        device: See ``per_item``.
        on_bad: See ``per_item``.
        views_per_batch: See ``per_item``.
        views_per_item: See ``per_item``.
        num_workers: See ``per_item``.
        description: See ``per_item``.

    Returns:
        ``values`` (M, num_classes), rows summing to 1.
    """
    training = method.training
    method.eval()
    try:
        scored = per_item(
            lambda views: method.logits(views).float().softmax(-1),
            dataset,
            device=device,
            on_bad=on_bad,
            views_per_batch=views_per_batch,
            views_per_item=views_per_item,
            num_workers=num_workers,
            description=description,
        )
    finally:
        method.train(training)
    return dataclasses.replace(scored, values=scored.values.mean(1))


def accuracies(predictions: PerItem) -> dict[str, Metric]:
    """Returns top-1, top-5 and mean class accuracy with 95% intervals.

    Top-5 is left out for five classes or fewer, where it is 1 by definition.
    """
    metrics = {name: top_k_accuracy(hit.tolist()) for name, hit in _top_hits(predictions).items()}
    counts = confusion_matrix(predictions)
    metrics["mean_class_accuracy"] = mean_class_accuracy(
        counts.diagonal().tolist(), counts.sum(1).tolist()
    )
    return metrics


def top_outcomes(predictions: PerItem, names: Sequence[str], *, suffix: str = "") -> list[Outcome]:
    """Returns each item's part in the top-1 and top-5 of ``accuracies``.

    Mean class accuracy has none: what an item adds to it depends on how many its class has.

    Args:
        predictions: As for ``accuracies``.
        names: Of all items of the dataset, unreadable ones too: ``indices`` are places in it.
        suffix: Ends the metrics' names, e.g. ``_k20``.
    """
    items = [names[index] for index in predictions.indices.tolist()]
    return [
        outcome
        for name, hit in _top_hits(predictions).items()
        for outcome in outcomes_of(name + suffix, items, hit.tolist())
    ]


def _top_hits(predictions: PerItem) -> dict[str, Tensor]:
    """Bool (M,) for top1 and, of more than five classes, top5: whether an item is right."""
    values, labels = predictions.values, predictions.labels
    ranked = values.argsort(dim=1, descending=True, stable=True)
    hits = ranked == labels[:, None]
    found = {"top1": hits[:, 0]}
    if values.shape[1] > 5:
        found["top5"] = hits[:, :5].any(1)
    return found


def confusion_matrix(predictions: PerItem) -> Tensor:
    """Returns (C, C) counts of items by true class (row) and predicted class (column)."""
    num_classes = predictions.values.shape[1]
    predicted = predictions.values.argsort(dim=1, descending=True, stable=True)[:, 0]
    cells = predictions.labels * num_classes + predicted
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def per_class_table(confusion: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Returns a row a class: accuracy with interval, counts, and the class it is mistaken for most.

    A class without a test item has None for its accuracy.
    """
    table = []
    for label, name in enumerate(classes):
        row = confusion[label].clone()
        count, correct = int(row.sum()), int(row[label])
        row[label] = 0
        mistaken = int(row.max()) if len(row) else 0
        metric = wilson(correct, count) if count else None
        table.append(
            {
                "class": name,
                "accuracy": metric.value if metric else None,
                "low": metric.low if metric else None,
                "high": metric.high if metric else None,
                "correct": correct,
                "count": count,
                "confused_with": classes[int(row.argmax())] if mistaken else "",
                "confused_count": mistaken,
            }
        )
    return table


def classification_details(predictions: PerItem, classes: Sequence[str]) -> dict[str, Any]:
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
    if not folds or "confusion" not in folds[0]:
        return result
    classes = folds[0]["classes"]
    confusion = torch.tensor([fold["confusion"] for fold in folds]).sum(0)
    pooled = {
        "classes": classes,
        "confusion": confusion.tolist(),
        "per_class": per_class_table(confusion, classes),
    }
    return dataclasses.replace(result, details=result.details | pooled)
