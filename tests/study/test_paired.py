"""Differences of real tables: which seeds and items are paired, and which interval decides."""

from __future__ import annotations

from ndavid.study.collect import Collected, Key, Row
from ndavid.study.paired import Difference, differences


def collected(values: dict[tuple[str, int], list[float]], *, items: bool = True) -> Collected:
    """One method, measurement and metric: (arm, seed) -> the outcomes of its items."""
    found = Collected()
    for (arm, seed), right in values.items():
        row = Row(
            method="m",
            arm=arm,
            seed=seed,
            measurement="knn",
            metric="top1",
            value=sum(right) / len(right),
            n=len(right),
            training_seconds=1.0,
            seconds=1.0,
        )
        found.rows.append(row)
        if items:
            key: Key = ("m", arm, seed, "knn", "top1")
            found.outcomes[key] = {f"0:v{k}": value for k, value in enumerate(right)}
    return found


VALUES = {
    ("none", 2): [1.0, 0.0, 0.0, 0.0],
    ("none", 1): [0.0, 0.0, 0.0, 1.0],
    ("jigsaw", 1): [1.0, 1.0, 0.0, 1.0],
    ("jigsaw", 2): [1.0, 1.0, 1.0, 0.0],
    ("jigsaw", 3): [1.0, 1.0, 1.0, 1.0],  # the baseline of this seed is not there yet
    ("stitch", 2): [0.0, 0.0, 0.0, 0.0],
}


def test_differences_are_taken_seed_by_seed() -> None:
    jigsaw, stitch = differences(collected(VALUES), "none", 500)
    assert (jigsaw.arm, jigsaw.seeds, jigsaw.by_seed_values) == ("jigsaw", (1, 2), (0.5, 0.5))
    assert (jigsaw.value, jigsaw.items, jigsaw.design) == (0.5, 4, "crossed")
    assert jigsaw.by_seed is not None and (jigsaw.by_seed.low, jigsaw.by_seed.high) == (0.5, 0.5)
    assert jigsaw.sources == 4
    assert jigsaw.by_item is not None and jigsaw.both is not None
    assert jigsaw.both.low <= jigsaw.by_item.low <= 0.5 <= jigsaw.by_item.high <= jigsaw.both.high
    # One seed says nothing about seeds.
    assert (stitch.seeds, stitch.value) == ((2,), -0.25)
    assert stitch.by_item is not None and stitch.by_seed is None and stitch.both is None
    assert not stitch.is_told()


def test_metrics_without_outcomes_have_an_interval_by_seed_only() -> None:
    jigsaw, _ = differences(collected(VALUES, items=False), "none", 500)
    assert (jigsaw.items, jigsaw.design, jigsaw.by_item, jigsaw.both) == (0, "", None, None)
    assert jigsaw.by_seed is not None and jigsaw.is_told()


def test_the_same_outcomes_give_the_same_digits_whatever_else_is_there() -> None:
    everything = differences(collected(VALUES), "none", 500)
    few = {key: value for key, value in VALUES.items() if key[0] != "stitch"}
    alone = differences(collected(dict(reversed(few.items()))), "none", 500)
    assert everything[0] == alone[0]


def test_diagnostics_of_trainings_are_not_compared() -> None:
    found = collected({("none", 1): [1.0], ("jigsaw", 1): [0.0]})
    for row in found.rows:
        object.__setattr__(row, "measurement", "training")
    assert differences(found, "none", 500) == []


def test_a_difference_is_told_by_the_interval_that_knows_of_seeds() -> None:
    values = {("none", s): [0.0] * 8 for s in (0, 1)}
    values |= {("far", 0): [1.0] * 8, ("far", 1): [0.0] * 8}
    (far,) = differences(collected(values), "none", 500)
    assert isinstance(far, Difference)
    assert far.by_item is not None and far.by_item.excludes_zero()
    assert far.both is not None and not far.both.excludes_zero() and not far.is_told()


def test_items_of_one_source_count_as_one() -> None:
    values = {("none", s): [0.0] * 40 for s in (0, 1, 2)}
    values |= {("far", s): [1.0] * 20 + [0.0] * 20 for s in (0, 1, 2)}
    found = collected(values)
    (alone,) = differences(found, "none", 500)
    found.sources["knn"] = {f"0:v{k}": f"0/g{k // 10}" for k in range(40)}
    (far,) = differences(found, "none", 500)
    assert (alone.items, alone.sources, far.items, far.sources) == (40, 40, 40, 4)
    assert alone.value == far.value and alone.is_told() and not far.is_told()
    assert far.by_item is not None and (far.by_item.low, far.by_item.high) == (0.0, 1.0)
