"""From views to predictions to accuracies, each against a loop that anyone can check."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ndavid.errors import CheckpointError, DataError, TrainingError
from ndavid.evaluation.classify import (
    PerItem,
    accuracies,
    batches_in_runs,
    classify,
    confusion_matrix,
    per_class_table,
    per_item,
)
from ndavid.evaluation.selection import FILE as BEST_FILE
from ndavid.evaluation.selection import BestEpoch
from ndavid.methods.classification import ClassificationMethod

CPU = torch.device("cpu")
NUM_CLASSES = 7


class Views:
    """Test views held in memory: 1 to 4 of them a video, some videos undecodable."""

    def __init__(self, videos: int, views: int, bad: tuple[int, ...] = ()) -> None:
        draw = torch.Generator().manual_seed(videos)
        shape = (videos, views, 3, 2, 4, 4)
        self.pixels = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
        self.labels = torch.randint(0, NUM_CLASSES, (videos,), generator=draw)
        self.bad = bad

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index in self.bad:
            return {"label": 0, "index": index, "bad": [(f"{index}.mp4", "broken")]}
        label = int(self.labels[index])
        return {"video": self.pixels[index], "label": label, "index": index, "bad": []}


class Linear(nn.Module):
    """Logits of a clip: a fixed random projection of its pixels; dropout must be off at test."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.project = nn.Linear(3 * 2 * 4 * 4, NUM_CLASSES)
        for part in self.project.parameters():
            nn.init.normal_(part, generator=torch.Generator().manual_seed(0))
        self.sizes: list[int] = []

    def forward(self, views: Tensor) -> Tensor:
        self.sizes.append(len(views))
        return self.project(self.dropout(views.flatten(1)))


def method() -> ClassificationMethod:
    return ClassificationMethod(Linear())


@pytest.mark.parametrize(("views", "per_batch"), [(1, 1), (1, 8), (3, 4), (4, 1), (2, 100)])
def test_probabilities_are_the_mean_of_each_views_softmax(views: int, per_batch: int) -> None:
    dataset, model = Views(11, views), method().train()
    found = classify(model, dataset, device=CPU, views_per_batch=per_batch)
    assert model.training, "the mode is restored"
    assert max(model.classifier.sizes) <= per_batch
    model.eval()
    for row, pixels in enumerate(dataset.pixels):
        each = [model.logits(view.unsqueeze(0))[0].softmax(0) for view in pixels]
        torch.testing.assert_close(found.values[row], torch.stack(each).mean(0))
    assert found.labels.tolist() == dataset.labels.tolist()
    assert found.indices.tolist() == list(range(11))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("readers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 7, 40])
def test_runs_cover_all_items_once_and_each_reader_reads_on(
    count: int, readers: int, world_size: int
) -> None:
    seen: list[int] = []
    for rank in range(world_size):
        batches = batches_in_runs(count, 4, rank, world_size, readers)
        for reader in range(readers):
            items = [item for batch in batches[reader::readers] for item in batch]
            assert items == list(range(items[0], items[-1] + 1)) if items else not batches[reader:]
            seen += items
        assert all(0 < len(batch) <= 4 for batch in batches)
    assert seen == list(range(count))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_runs_give_what_the_usual_order_gives(num_workers: int) -> None:
    videos = Views(21, 2, bad=(5,))
    usual, in_runs = (
        per_item(
            lambda views: views.float().flatten(1),
            videos,
            device=CPU,
            on_bad="skip",
            views_per_batch=4,
            num_workers=num_workers,
            in_runs=runs,
        )
        for runs in (False, True)
    )
    assert torch.equal(usual.values, in_runs.values)
    assert torch.equal(usual.indices, in_runs.indices) and usual.bad == in_runs.bad


def test_an_undecodable_video_is_an_error_that_names_it() -> None:
    dataset = Views(5, 2, bad=(3,))
    with pytest.raises(DataError, match=r"^3\.mp4: cannot be evaluated: broken$"):
        classify(method(), dataset, device=CPU)


def test_or_it_is_left_out_and_listed() -> None:
    dataset = Views(5, 2, bad=(1, 3))
    found = classify(method(), dataset, device=CPU, on_bad="skip")
    assert found.indices.tolist() == [0, 2, 4]
    assert found.bad == (("1.mp4", "broken"), ("3.mp4", "broken"))
    whole = classify(method(), Views(5, 2), device=CPU)
    torch.testing.assert_close(found.values, whole.values[[0, 2, 4]])


def test_nothing_decodable_is_an_error_even_then() -> None:
    with pytest.raises(DataError, match="nothing could be evaluated"):
        classify(method(), Views(2, 1, bad=(0, 1)), device=CPU, on_bad="skip")


def test_a_broken_model_is_told_from_a_bad_one() -> None:
    broken = method()
    nn.init.constant_(broken.classifier.project.bias, torch.nan)
    with pytest.raises(TrainingError, match="not finite"):
        classify(broken, Views(2, 1), device=CPU)


def predictions(num_videos: int = 200, num_classes: int = NUM_CLASSES) -> PerItem:
    draw = torch.Generator().manual_seed(num_videos + num_classes)
    values = torch.rand(num_videos, num_classes, generator=draw)
    labels = torch.randint(0, num_classes, (num_videos,), generator=draw)
    values[torch.arange(num_videos), labels] += 0.2
    return PerItem(values / values.sum(1, keepdim=True), labels, torch.arange(num_videos))


def test_accuracies_against_a_loop() -> None:
    given = predictions()
    top1, top5, of_class = 0, 0, [[] for _ in range(NUM_CLASSES)]
    for row, label in zip(given.values.tolist(), given.labels.tolist(), strict=True):
        order = sorted(range(NUM_CLASSES), key=lambda c: -row[c])
        top1 += order[0] == label
        top5 += label in order[:5]
        of_class[label].append(order[0] == label)
    found = accuracies(given)
    assert found["top1"].value == top1 / 200 and found["top1"].n == 200
    assert found["top5"].value == top5 / 200
    means = [sum(hits) / len(hits) for hits in of_class]
    assert found["mean_class_accuracy"].value == pytest.approx(sum(means) / NUM_CLASSES)
    assert all(m.low < m.value < m.high for m in found.values())


@pytest.mark.parametrize(("num_classes", "has_top5"), [(2, False), (5, False), (6, True)])
def test_top5_is_reported_where_it_says_something(num_classes: int, has_top5: bool) -> None:
    assert ("top5" in accuracies(predictions(50, num_classes))) == has_top5


def test_confusion_matrix_against_a_loop() -> None:
    given = predictions()
    counts = [[0] * NUM_CLASSES for _ in range(NUM_CLASSES)]
    for row, label in zip(given.values.tolist(), given.labels.tolist(), strict=True):
        counts[label][row.index(max(row))] += 1
    assert confusion_matrix(given).tolist() == counts


def test_the_per_class_table_names_the_worst_confusion_and_empty_classes() -> None:
    confusion = torch.tensor([[6, 1, 3], [0, 5, 0], [0, 0, 0]])
    first, second, third = per_class_table(confusion, ["walk", "run", "sit"])
    assert (first["correct"], first["count"], first["accuracy"]) == (6, 10, 0.6)
    assert (first["confused_with"], first["confused_count"]) == ("sit", 3)
    assert (second["accuracy"], second["confused_with"]) == (1.0, "")
    assert third["accuracy"] is None and third["count"] == 0


def test_two_ranks_score_each_video_once(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=os.environ
            | {"RANK": str(index), "WORLD_SIZE": "2", "LOCAL_RANK": str(index)}
            | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for index in range(2)
    ]
    for process in processes:
        text = process.communicate(timeout=120)[0].decode()
        assert process.returncode == 0, text
    alone = torch.stack([pixels_sum(v)[0] for v in Views(7, 2).pixels[:, :1].unbind(0)])
    for index in range(2):
        found = torch.load(tmp_path / f"rank{index}.pt", weights_only=True)
        # Seven videos do not divide by two: a padding sampler would score one of them twice.
        assert found["indices"].tolist() == [0, 1, 2, 3, 4, 5, 6]
        torch.testing.assert_close(found["values"][:, 0], alone)
        assert found["skipped"].tolist() == [0, 1, 2, 3, 5, 6]


def pixels_sum(views: Tensor) -> Tensor:
    return views.flatten(1).float().sum(1, keepdim=True)


def one_rank(output: Path) -> None:
    rank = int(os.environ["RANK"])
    store = f"file://{output / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    compute: Callable[[Tensor], Tensor] = pixels_sum
    found = per_item(compute, Views(7, 2), device=CPU, views_per_batch=3)
    skipped = per_item(compute, Views(7, 2, bad=(4,)), device=CPU, on_bad="skip")
    assert skipped.bad == (("4.mp4", "broken"),)
    # Video 3 is rank 1's; rank 0 must not wait for it in a collective.
    with pytest.raises(DataError, match=r"^3\.mp4: cannot be evaluated: broken$"):
        per_item(compute, Views(7, 2, bad=(3,)), device=CPU)
    # The best weights are damaged where rank 0 alone looks first.
    if rank == 0:
        (output / BEST_FILE).write_bytes(b"no tensors here")
    with pytest.raises(CheckpointError, match="cannot be read"):
        BestEpoch(output, lambda *_: 0.0).load_into(nn.Linear(1, 1))
    result = {"indices": found.indices, "values": found.values, "skipped": skipped.indices}
    torch.save(result, output / f"rank{rank}.pt")
    torch.distributed.barrier()
    # Not gloo's own teardown, whose threads now and then abort a process that is done.
    os._exit(0)


if __name__ == "__main__":
    one_rank(Path(sys.argv[1]))


class Repeating(Views):
    """Of four views the third is the first again; of the last two videos all are."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        sample = super().__getitem__(index)
        same = torch.tensor([0, 1, 0, 3] if index < len(self) - 2 else [0, 0, 0, 0])
        return sample | {"video": sample["video"][same], "same_as": same}


def test_views_that_are_the_same_are_computed_once() -> None:
    dataset, model = Repeating(5, 4), method().eval()
    found = classify(model, dataset, device=CPU, views_per_batch=8)
    assert sum(model.classifier.sizes) == 3 * 3 + 2 * 1
    every = torch.stack([dataset[index]["video"] for index in range(5)])
    expected = model.logits(every.flatten(0, 1)).softmax(-1).unflatten(0, (5, 4)).mean(1)
    assert torch.allclose(found.values, expected, atol=1e-6)


def test_values_that_are_not_finite_say_where() -> None:
    with pytest.raises(TrainingError, match=r"^test features: .*not finite for 11 of 11 items"):
        per_item(
            lambda views: torch.full((len(views), 2), torch.nan),
            Views(11, 1),
            device=CPU,
            description="test features",
        )
