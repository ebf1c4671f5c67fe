"""The sizes of the original's protocol on UCF101 and HMDB51, reproduced from frame counts."""

from __future__ import annotations

import pytest
import torch

from ndavid.data.manifest import ClipRecord
from ndavid.data.sampling import DpcBlocks, usable
from ndavid.errors import ConfigError
from ndavid.evaluation.paper_compat import draw_subset, long_enough

SPAN = 120


def records(num_short: int, num_long: int) -> list[ClipRecord]:
    frames = [SPAN] * num_short + [SPAN + 1] * num_long
    return [
        ClipRecord(f"{i}.avi", 0, "", n, 25.0, 320, 240, ("test",)) for i, n in enumerate(frames)
    ]


@pytest.mark.parametrize(
    ("test", "long", "drawn", "batch_size", "scored"),
    [
        (3783, 2658, 797, 16, 784),  # UCF101, split 1
        (1530, 232, 70, 8, 64),  # HMDB51, split 1
        (1530, 232, 70, 16, 64),
        (1530, 232, 70, 32, 64),
        (1530, 232, 70, 64, 64),
    ],
)
def test_sizes_of_the_original_protocol(
    test: int, long: int, drawn: int, batch_size: int, scored: int
) -> None:
    split = records(test - long, long)
    subset = draw_subset(split, SPAN, torch.Generator().manual_seed(0), batch_size=batch_size)
    assert (subset.num_test, subset.num_long) == (test, long)
    assert (len(subset.records), subset.num_scored) == (drawn, scored)
    assert f"{test} test videos -> {long}" in subset.describe()


def test_a_video_of_exactly_the_span_is_dropped() -> None:
    split = records(5, 3)
    assert long_enough(split, SPAN) == tuple(split[5:])
    # The sampler's own drop policy agrees.
    assert usable(split, DpcBlocks(short="drop"))[0] == tuple(split[5:])


def test_the_draw_follows_the_seed_and_takes_no_video_twice() -> None:
    split = records(100, 300)
    first = draw_subset(split, SPAN, torch.Generator().manual_seed(0))
    again = draw_subset(split, SPAN, torch.Generator().manual_seed(0))
    other = draw_subset(split, SPAN, torch.Generator().manual_seed(1))
    assert first == again
    assert set(first.records) != set(other.records)
    assert len(set(first.records)) == len(first.records) == 90
    assert all(record.num_frames > SPAN for record in first.records)


def test_too_few_videos_for_a_batch_is_an_error_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match="protocol=full"):
        draw_subset(records(500, 20), SPAN, torch.Generator().manual_seed(0))
