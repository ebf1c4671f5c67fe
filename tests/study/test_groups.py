"""Which seeds share items, and which items share a source."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ndavid.study.groups import design_of, paired_groups

outcome = st.integers(0, 10).map(lambda tenths: tenths / 10)
Pairs = list[tuple[dict[str, float], dict[str, float]]]


@st.composite
def outcomes(draw: st.DrawFn) -> Pairs:
    """A pair a seed, of an arm and of the baseline; seeds share their items or none."""
    seeds, items = draw(st.integers(1, 4)), draw(st.integers(1, 8))
    nested = draw(st.booleans())
    found = []
    for seed in range(seeds):
        names = [f"{seed if nested else 0}:v{k}" for k in range(items)]
        arm, base = ({name: draw(outcome) for name in names} for _ in range(2))
        found.append((arm, base))
    return found


@settings(max_examples=40, deadline=None)
@given(outcomes())
def test_the_other_way_round_the_differences_change_their_sign(pairs: Pairs) -> None:
    ours = paired_groups([*pairs], {})
    theirs = paired_groups([(base, arm) for arm, base in pairs], {})
    assert [one.seeds for one in ours] == [one.seeds for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert one.table.equal(-other.table)


def test_seeds_are_grouped_by_the_items_that_they_share() -> None:
    first, second = {"1:a": 1.0, "1:b": 0.0}, {"2:a": 0.0, "2:b": 0.5}
    zero = dict.fromkeys([*first, *second], 0.0)
    crossed = paired_groups([(first, zero), ({**first, "1:c": 1.0}, {**zero, "1:d": 1.0})], {})
    assert design_of(crossed) == "crossed"
    assert crossed[0].table.tolist() == [[1.0, 0.0], [1.0, 0.0]]
    nested = paired_groups([(first, zero), (second, zero)], {})
    assert design_of(nested) == "nested" and [g.seeds for g in nested] == [(0,), (1,)]
    assert [g.table.tolist() for g in nested] == [[[1.0, 0.0]], [[0.0, 0.5]]]
    mixed = paired_groups([(first, zero), (second, zero), (first, zero)], {})
    assert design_of(mixed) == "mixed" and [g.seeds for g in mixed] == [(0, 2), (1,)]
    assert design_of(paired_groups([(second, zero)], {})) == "crossed"


def test_without_the_items_of_one_seed_there_is_nothing_to_pair() -> None:
    one = {"0:a": 1.0}
    for missing in ((one, None), (None, one), (one, {"0:b": 1.0}), (None, None)):
        assert paired_groups([(one, one), missing], {}) == []
    assert design_of([]) == ""


def test_items_are_added_up_by_source_and_stand_alone_without_one() -> None:
    arm = {"1:a": 1.0, "1:b": 0.5, "1:c": 0.0, "1:d": 1.0}
    zero = dict.fromkeys(arm, 0.0)
    (group,) = paired_groups([(arm, zero), (zero, arm)], {"1:a": "0/g1", "1:d": "0/g1"})
    assert group.sources.tolist() == [0, 1, 2, 0] and group.sizes.tolist() == [2, 1, 1]
    assert group.sums.tolist() == [[2.0, 0.5, 0.0], [-2.0, -0.5, 0.0]]
