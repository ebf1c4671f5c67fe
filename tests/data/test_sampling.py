"""Clips stay inside their video, in every length of it, and short ones follow their policy."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ndavid.data.manifest import ClipRecord
from ndavid.data.sampling import DenseClip, DpcBlocks, uniform_views, usable
from ndavid.errors import ConfigError

policies = st.sampled_from(["loop", "pad"])
dpc = st.builds(
    DpcBlocks,
    num_blocks=st.integers(1, 8),
    block_len=st.integers(1, 6),
    frame_stride=st.integers(1, 5),
    short=policies,
)
dense = st.builds(
    DenseClip, num_frames=st.integers(1, 32), frame_stride=st.integers(1, 5), short=policies
)


def clip_len(sampler: DpcBlocks | DenseClip) -> int:
    if isinstance(sampler, DenseClip):
        return sampler.num_frames
    return sampler.num_blocks * sampler.block_len


def record(num_frames: int) -> ClipRecord:
    return ClipRecord(f"{num_frames}.mp4", 0, "g", num_frames, 25.0, 64, 48, ("train",))


@given(
    sampler=st.one_of(dpc, dense),
    num_frames=st.integers(1, 400),
    seed=st.one_of(st.none(), st.integers(0, 2**32)),
)
def test_indices_are_those_of_the_definition(sampler, num_frames, seed) -> None:
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    indices = sampler.sample(num_frames, generator)
    assert indices.dtype == torch.long and indices.shape == (clip_len(sampler),)
    assert indices.min() >= 0 and indices.max() < num_frames
    start = int(indices[0])
    for k, index in enumerate(indices.tolist()):
        wanted = start + k * sampler.frame_stride
        expected = wanted % num_frames if sampler.short == "loop" else min(wanted, num_frames - 1)
        assert index == expected
    if not sampler.is_short(num_frames):
        assert torch.all(indices.diff() == sampler.frame_stride)
        if seed is None:
            left, right = start, num_frames - (start + sampler.span)
            assert 0 <= right - left <= 1  # centred
    else:
        assert start == 0


@given(sampler=st.one_of(dpc, dense), num_frames=st.integers(1, 400), seed=st.integers(0, 2**32))
def test_the_same_generator_draws_the_same_clip(sampler, num_frames, seed) -> None:
    first = sampler.sample(num_frames, torch.Generator().manual_seed(seed))
    again = sampler.sample(num_frames, torch.Generator().manual_seed(seed))
    assert torch.equal(first, again)


def test_all_starts_are_drawn() -> None:
    sampler = DenseClip(num_frames=4)
    generator = torch.Generator().manual_seed(0)
    starts = {int(sampler.sample(9, generator)[0]) for _ in range(300)}
    assert starts == {0, 1, 2, 3, 4, 5}


def test_dpc_defaults_are_the_papers() -> None:
    sampler = DpcBlocks()
    assert (sampler.span, clip_len(sampler)) == (120, 40)
    assert sampler.sample(120).tolist() == list(range(0, 120, 3))
    assert sampler.sample(200)[0] == 40


def test_loop_and_pad_on_a_short_video() -> None:
    assert DenseClip(6, 2, "loop").sample(5).tolist() == [0, 2, 4, 1, 3, 0]
    assert DenseClip(6, 2, "pad").sample(5).tolist() == [0, 2, 4, 4, 4, 4]


def test_drop_of_dpc_is_strict_as_in_its_code() -> None:
    # Its rule drops `frames - span <= 0`, the span itself included.
    records = [record(n) for n in (40, 119, 120, 121)]
    kept, report = usable(records, DpcBlocks(short="drop"))
    assert [r.num_frames for r in kept] == [121]
    assert (report.policy, report.num_short, report.num_dropped) == ("drop", 3, 3)
    assert report.paths == ("40.mp4", "119.mp4", "120.mp4")
    # A dense clip fits into a video of exactly its length.
    kept, report = usable(records, DenseClip(num_frames=120, short="drop"))
    assert [r.num_frames for r in kept] == [120, 121] and report.num_dropped == 2


@pytest.mark.parametrize("short", ["loop", "pad"])
def test_other_policies_count_short_clips_and_keep_them(short) -> None:
    records = [record(n) for n in (40, 119, 120, 121)]
    kept, report = usable(records, DpcBlocks(short=short))
    assert kept == tuple(records)
    assert (report.num_short, report.num_dropped, report.paths) == (2, 0, ("40.mp4", "119.mp4"))


def test_sampling_a_dropped_video_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"120 frames is too short.*usable"):
        DpcBlocks(short="drop").sample(120)
    with pytest.raises(ValueError, match="without frames"):
        DenseClip().sample(0)


@given(sampler=st.one_of(dpc, dense), num_frames=st.integers(1, 400), num_views=st.integers(1, 12))
def test_views_span_the_whole_video_evenly(sampler, num_frames, num_views) -> None:
    views = uniform_views(sampler, num_frames, num_views)
    assert views.shape == (num_views, clip_len(sampler))
    assert views.min() >= 0 and views.max() < num_frames
    starts = views[:, 0]
    room = max(0, num_frames - sampler.span)
    if num_views == 1:
        assert torch.equal(views[0], sampler.sample(num_frames))
    else:
        assert starts[0] == 0 and starts[-1] == room
        gaps = starts.diff()
        assert gaps.min() >= 0 and gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DpcBlocks(num_blocks=0), "num_blocks must be at least 1"),
        (lambda: DenseClip(frame_stride=0), "frame_stride must be at least 1"),
        (lambda: DenseClip(short="wrap"), "choose loop, pad or drop"),
        (lambda: uniform_views(DenseClip(), 50, 0), "num_views must be at least 1"),
    ],
)
def test_impossible_settings(build, message) -> None:
    with pytest.raises(ConfigError, match=message):
        build()
