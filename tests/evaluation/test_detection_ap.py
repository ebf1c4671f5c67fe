"""Average precision: by hand, against torchmetrics and VOC's rules written out; intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ndavid.evaluation.detection_ap import (
    THRESHOLDS,
    ImageResult,
    MatchedDetections,
    bootstrap,
    class_table,
    coco_ap,
)
from ndavid.evaluation.intervals import wilson

Row = tuple[list[float], float, int]


def image(
    objects: list[tuple[list[float], int]],
    found: list[Row],
    *,
    difficult: list[int] | None = None,
    crowd: list[int] | None = None,
) -> ImageResult:
    """An image of (box, label) objects and (box, score, label) detections."""
    count = len(objects)
    return ImageResult(
        boxes=torch.tensor([box for box, _ in objects]).view(-1, 4),
        labels=torch.tensor([label for _, label in objects], dtype=torch.long),
        difficult=torch.tensor([place in (difficult or []) for place in range(count)]).bool(),
        crowd=torch.tensor([place in (crowd or []) for place in range(count)]).bool(),
        found_boxes=torch.tensor([box for box, _, _ in found]).view(-1, 4),
        found_scores=torch.tensor([score for _, score, _ in found]),
        found_labels=torch.tensor([label for _, _, label in found], dtype=torch.long),
    )


A, B, FAR = [0.0, 0, 10, 10], [50.0, 50, 70, 70], [200.0, 200, 220, 220]
SHIFTED = [2.0, 0, 12, 10]  # IoU with A: 8 of 12 columns, 2/3


def both(results: list[ImageResult], classes: int = 1) -> dict[str, float]:
    """COCO's AP by torchmetrics, after making sure that the own matching agrees."""
    values = coco_ap(results)
    assert MatchedDetections(results, classes, "coco").ap() == pytest.approx(values, abs=1e-6)
    return values


def test_by_hand() -> None:
    # By score: a hit at IoU 2/3, a miss, a hit at IoU 1; two objects.
    results = [image([(A, 0), (B, 0)], [(SHIFTED, 0.9, 0), (FAR, 0.8, 0), (B, 0.7, 0)])]
    # Up to .65: precision 1 to recall 1/2, then 2/3. 51 recalls are up to 1/2, 50 above it.
    low = (51 * 1 + 50 * 2 / 3) / 101
    # From .70 the first is a miss too: 1/3 precision up to recall 1/2, nothing above it.
    high = (51 * 1 / 3) / 101
    values = both(results)
    assert values["AP50"] == pytest.approx(low) and values["AP75"] == pytest.approx(high)
    assert values["AP"] == pytest.approx((4 * low + 6 * high) / 10)
    # At 11 recalls, 6 of them up to 1/2.
    by_voc = MatchedDetections(results, 1, "voc07").ap()
    assert by_voc["AP50"] == pytest.approx((6 * 1 + 5 * 2 / 3) / 11)
    assert by_voc["AP75"] == pytest.approx((6 * 1 / 3) / 11)


def test_the_mean_is_over_classes_with_objects() -> None:
    results = [image([(A, 0), (B, 2)], [(A, 0.9, 0), (FAR, 0.9, 1)])]
    assert both(results, 3)["AP50"] == pytest.approx(0.5)
    table = class_table(MatchedDetections(results, 3, "coco"), ("a", "b", "c"))
    assert [row["class"] for row in table] == ["a", "b", "c"]
    assert [row["AP50"] for row in table] == pytest.approx([1.0, None, 0.0])


def test_nothing_found_and_nothing_to_find() -> None:
    assert both([image([(A, 0)], [])])["AP"] == 0.0
    assert both([image([], [(A, 0.9, 0)])])["AP"] == 0.0
    assert both([image([], [])])["AP"] == 0.0


@pytest.mark.parametrize("rule", ["coco", "voc07"])
def test_difficult_objects_count_neither_as_found_nor_as_missed(rule: str) -> None:
    found = [(A, 0.9, 0), (SHIFTED, 0.8, 0), (B, 0.7, 0)]
    plain = image([(A, 0), (B, 0)], found)
    marked = image([(A, 0), (B, 0)], found, difficult=[0])
    unseen = image([(A, 0), (B, 0)], [(B, 0.7, 0)], difficult=[0])
    ap50 = [MatchedDetections([one], 1, rule).ap()["AP50"] for one in (plain, marked, unseen)]
    # Without the mark the second detection of the first object is a miss.
    assert ap50[0] < 1 and ap50[1:] == [1.0, 1.0]
    if rule == "coco":
        assert both([marked])["AP50"] == both([unseen])["AP50"] == pytest.approx(1.0)


def test_a_detection_inside_a_difficult_object_is_still_a_miss() -> None:
    large, part = [0.0, 0, 100, 100], [10.0, 10, 40, 40]
    found = [(part, 0.9, 0), (B, 0.8, 0)]
    difficult = image([(large, 0), (B, 0)], found, difficult=[0])
    crowd = image([(large, 0), (B, 0)], found, crowd=[0])
    assert both([difficult])["AP50"] == pytest.approx(0.5)
    assert both([crowd])["AP50"] == pytest.approx(1.0)


def test_a_crowd_is_never_missed_nor_found() -> None:
    large = [0.0, 0, 100, 100]
    assert both([image([(large, 0), (B, 0)], [(B, 0.9, 0)], crowd=[0])])["AP"] == 1.0
    # Whatever lies in it is ignored, as often as it likes; what lies outside is a miss.
    inside = [([5.0 * k, 0, 5.0 * k + 8, 9], 0.9 - k / 100, 0) for k in range(5)]
    ignored = image([(large, 0), (FAR, 0)], [*inside, (FAR, 0.5, 0)], crowd=[0])
    assert both([ignored])["AP"] == 1.0
    missed = image([(large, 0), (FAR, 0)], [([300.0, 0, 310, 9], 0.9, 0), (FAR, 0.5, 0)], crowd=[0])
    assert both([missed])["AP50"] == pytest.approx(0.5)


def test_voc_gives_a_detection_to_its_nearest_object_and_coco_to_a_free_one() -> None:
    left, right = [0.0, 0, 10, 10], [3.0, 0, 13, 10]
    between = [1.0, 0, 11, 10]  # Nearer to the left one; IoU with the right one is 2/3.
    one = image([(left, 0), (right, 0)], [(left, 0.9, 0), (between, 0.8, 0)])
    assert both([one])["AP50"] == pytest.approx(1.0)
    assert MatchedDetections([one], 1, "voc07").ap()["AP50"] == pytest.approx(6 / 11)


def test_of_one_class_only_a_hundred_detections_an_image_count() -> None:
    found = [(FAR, 0.9, 0)] * 100 + [(A, 0.8, 0)]
    assert both([image([(A, 0)], found)])["AP50"] == 0.0
    assert both([image([(A, 0)], found[1:])])["AP50"] == pytest.approx(1 / 100)


def draw_results(
    seed: int, *, images: int = 12, classes: int = 3, difficult: float = 0.3, crowd: float = 0.2
) -> list[ImageResult]:
    """Objects, several jittered detections of each, and some of nothing; scores with many ties."""
    draw = torch.Generator().manual_seed(seed)

    def integer(limit: int) -> int:
        return int(torch.randint(limit, (), generator=draw))

    def boxes(count: int, side: float) -> Tensor:
        corners = torch.rand(count, 2, generator=draw) * 60
        return torch.cat([corners, corners + side * (1 + torch.rand(count, 2, generator=draw))], 1)

    results = []
    for _ in range(images):
        count, wrong = integer(5), integer(4)
        objects, labels = boxes(count, 14), torch.randint(classes, (count,), generator=draw)
        times = torch.randint(0, 4, (count,), generator=draw)
        near = objects.repeat_interleave(times, 0)
        near = near + 2 * torch.randn(near.shape, generator=draw)
        near[:, 2:] = torch.maximum(near[:, 2:], near[:, :2] + 1)
        found = torch.cat([near, boxes(wrong, 10)])
        found_labels = torch.cat(
            [
                labels.repeat_interleave(times),
                torch.randint(classes, (wrong,), generator=draw),
            ]
        )
        results.append(
            ImageResult(
                boxes=objects,
                labels=labels,
                difficult=torch.rand(count, generator=draw) < difficult,
                crowd=torch.rand(count, generator=draw) < crowd,
                found_boxes=found,
                found_scores=(torch.rand(len(found), generator=draw) * 20).round() / 20,
                found_labels=found_labels,
            )
        )
    return results


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40), crowd=st.sampled_from([0.0, 0.2]))
def test_the_own_matching_agrees_with_torchmetrics(seed: int, crowd: float) -> None:
    assert both(draw_results(seed, crowd=crowd), 3)["AP50"] <= 1.0


def naive_voc(results: list[ImageResult], label: int, threshold: float) -> float:
    """VOC 2007's AP of one class, written from the development kit's description."""
    rows = sorted(
        (
            (-float(score), place, box)
            for place, one in enumerate(results)
            for box, score, mine in zip(
                one.found_boxes, one.found_scores, one.found_labels, strict=True
            )
            if mine == label
        ),
        key=lambda row: row[:2],
    )
    taken: set[tuple[int, int]] = set()
    hits = misses = 0
    curve = []
    to_find = sum(int(((r.labels == label) & ~r.difficult).sum()) for r in results)
    for _, place, box in rows:
        one, best, nearest = results[place], 0.0, -1
        for number, theirs in enumerate(one.boxes):
            if one.labels[number] != label:
                continue
            side = (torch.minimum(box[2:], theirs[2:]) - torch.maximum(box[:2], theirs[:2])).clamp(
                0
            )
            shared = float(side.double().prod())
            areas = [float((b[2:].double() - b[:2].double()).prod()) for b in (box, theirs)]
            overlap = shared / (sum(areas) - shared)
            if overlap > best:
                best, nearest = overlap, number
        if best > threshold and one.difficult[nearest]:
            pass
        elif best > threshold and (place, nearest) not in taken:
            taken.add((place, nearest))
            hits += 1
        else:
            misses += 1
        curve.append((hits / max(to_find, 1), hits / max(hits + misses, 1)))
    points = [max((p for r, p in curve if r >= t), default=0.0) for t in np.linspace(0, 1, 11)]
    return sum(points) / 11 if to_find else float("nan")


@pytest.mark.parametrize("seed", range(12))
def test_the_voc_rule_agrees_with_a_plain_loop(seed: int) -> None:
    results = draw_results(seed, crowd=0.0)
    by_class = MatchedDetections(results, 3, "voc07").ap_by_class()
    for label in range(3):
        for place in (0, 3, 5):
            expected = naive_voc(results, label, THRESHOLDS[place])
            assert by_class[label, place] == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("seed", range(5))
def test_a_weight_is_a_repeated_image(seed: int) -> None:
    results = draw_results(seed)
    draw = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(results), (len(results),), generator=draw).sort().values
    weights = torch.bincount(picks, minlength=len(results)).numpy()
    repeated = [results[int(place)] for place in picks]
    expected = coco_ap(repeated)
    weighted = MatchedDetections(results, 3, "coco").ap(weights)
    # torchmetrics sees copies of an image as neighbours of one score; so do weights, but for ties
    # between a hit and a miss, which weights keep together.
    assert weighted == pytest.approx(expected, abs=0.02)


def test_a_weight_is_a_repeated_image_to_the_bit_without_ties() -> None:
    results = [
        image([(A, 0)], [(A, 0.9, 0), (FAR, 0.35, 0)]),
        image([(B, 0)], [(FAR, 0.8, 0), (B, 0.4, 0)]),
    ]
    weighted = MatchedDetections(results, 1, "coco").ap(np.array([1, 3]))
    expected = coco_ap([results[0], *[results[1]] * 3])
    assert weighted["AP50"] != MatchedDetections(results, 1, "coco").ap()["AP50"]
    # Three misses in a row, then three hits: precision at the last hit is that of the whole run.
    assert weighted["AP50"] == pytest.approx(expected["AP50"], abs=1e-6)


def interval(results: list[ImageResult], seed: int, draws: int = 200) -> tuple[float, float, float]:
    matched = MatchedDetections(results, 3, "coco")
    draw = torch.Generator().manual_seed(seed)
    metric = bootstrap(matched, matched.ap(), draws=draws, generator=draw)["AP50"]
    assert metric.n == len(results)
    return metric.low, metric.value, metric.high


def test_an_interval_holds_its_value_narrows_with_images_and_repeats() -> None:
    few, many = draw_results(0, images=15), draw_results(0, images=240)
    widths = []
    for results in (few, many):
        low, value, high = interval(results, 1)
        assert 0 <= low <= value <= high <= 1
        widths.append(high - low)
    assert widths[1] < 0.5 * widths[0]
    assert interval(few, 1) == interval(few, 1) != interval(few, 2)


def test_what_never_varies_is_no_surer_than_its_images() -> None:
    perfect = [image([(A, 0)], [(A, 0.9, 0)])] * 8
    eight = wilson(8, 8)
    assert interval(perfect, 0) == (pytest.approx(eight.low), 1.0, 1.0)
    missed = [image([(A, 0)], [])] * 8
    assert interval(missed, 0) == (0.0, 0.0, pytest.approx(1 - eight.low))
    # Images without the object prove nothing of finding it.
    empty = [image([], [])] * 90
    low, value, high = interval([*missed, *empty], 0)
    assert (low, value) == (0.0, 0.0) and high == pytest.approx(1 - eight.low)
    assert interval(empty, 0) == (0.0, 0.0, 1.0)
    # Of two classes, each is as sure as the images that hold it.
    both = [*missed, *[image([(A, 1)], [])] * 90]
    high = interval(both, 0)[2]
    assert high == pytest.approx((1 - eight.low + wilson(0, 90).high) / 2)


def test_intervals_cover_the_value_of_all_images() -> None:
    """Of 40 samples of 60 images, about 35 intervals should hold the AP of the population."""
    population = draw_results(7, images=2400, crowd=0.0)
    true = MatchedDetections(population, 3, "coco").ap()["AP50"]
    inside = 0
    for sample in range(40):
        images = population[sample * 60 : sample * 60 + 60]
        low, _, high = interval(images, sample, draws=60)
        inside += low <= true <= high
    assert inside >= 32
