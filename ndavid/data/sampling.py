"""Which frames of a video make a clip.

DPC (Han, Xie, Zisserman 2019) takes 8 blocks of 5 frames at every third frame: 40 frames spread
over a span of 120. What happens to a shorter video is a policy, because it decides what an accuracy
means (dropping them, as DPC's code does, removes 85% of HMDB51's test split):

    loop  the video starts over (index modulo its length); nothing is dropped. The default.
    pad   the last frame is repeated.
    drop  `usable` removes the video; sampling it raises.

Differences from the paper: DPC's own code drops videos of *exactly* the span too (its rule is
`frames - span <= 0`), because its random start is drawn from an interval with an open end.
`DpcBlocks(short="drop")` keeps that rule to the letter; the other policies and `DenseClip` call a
video short only when it has fewer frames than the span.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ndavid.data.manifest import ClipRecord
from ndavid.errors import ConfigError

ShortPolicy = Literal["loop", "pad", "drop"]


class ClipSampler(Protocol):
    """Chooses the frames of one clip."""

    @property
    def short(self) -> ShortPolicy:
        """What becomes of videos shorter than the span."""

    @property
    def span(self) -> int:
        """Frames of the video that one clip stretches over, the strides included."""

    def is_short(self, num_frames: int) -> bool:
        """Whether a video of so many frames falls under the short-clip policy."""

    def clip(self, start: int, num_frames: int) -> Tensor:
        """The frame indices of the clip that begins at `start`: long, (n,)."""

    def sample(self, num_frames: int, generator: torch.Generator | None = None) -> Tensor:
        """Frame indices of a random clip, or of the centred one without a generator: long, (n,)."""


@dataclass(frozen=True)
class DenseClip:
    """`num_frames` frames, every `frame_stride`-th one, from a random or centred start."""

    num_frames: int = 16
    frame_stride: int = 1
    short: ShortPolicy = "loop"

    def __post_init__(self) -> None:
        _check(num_frames=self.num_frames, frame_stride=self.frame_stride, short=self.short)

    @property
    def span(self) -> int:
        """`num_frames * frame_stride`."""
        return self.num_frames * self.frame_stride

    def is_short(self, num_frames: int) -> bool:
        """Fewer frames than the span."""
        return num_frames < self.span

    def clip(self, start: int, num_frames: int) -> Tensor:
        """Indices `start, start + frame_stride, ...` under the short-clip policy: long, (n,).

        Raises:
            ValueError: the video is short and the policy is "drop", or it has no frames.
        """
        indices = start + self.frame_stride * torch.arange(self.num_frames)
        return _keep_inside(indices, num_frames, self)

    def sample(self, num_frames: int, generator: torch.Generator | None = None) -> Tensor:
        """Indices of a clip of a video of `num_frames` frames: long, (self.num_frames,).

        Every start from 0 to `num_frames - span` is equally likely; without a generator it is the
        middle one.
        """
        return self.clip(_start(num_frames - self.span, generator), num_frames)


@dataclass(frozen=True)
class DpcBlocks:
    """`num_blocks` blocks of `block_len` frames, one after the other, every `frame_stride`-th."""

    num_blocks: int = 8
    block_len: int = 5
    frame_stride: int = 3
    short: ShortPolicy = "loop"

    def __post_init__(self) -> None:
        _check(
            num_blocks=self.num_blocks,
            block_len=self.block_len,
            frame_stride=self.frame_stride,
            short=self.short,
        )

    @property
    def span(self) -> int:
        """`num_blocks * block_len * frame_stride`: 120 for DPC's defaults."""
        return self.num_blocks * self.block_len * self.frame_stride

    def is_short(self, num_frames: int) -> bool:
        """Fewer frames than the span; with "drop", as in DPC's code, exactly the span too."""
        return num_frames <= self.span if self.short == "drop" else num_frames < self.span

    def clip(self, start: int, num_frames: int) -> Tensor:
        """Indices `start, start + frame_stride, ...`: long, (num_blocks * block_len,).

        Raises:
            ValueError: the video is short and the policy is "drop", or it has no frames.
        """
        indices = start + self.frame_stride * torch.arange(self.num_blocks * self.block_len)
        return _keep_inside(indices, num_frames, self)

    def sample(self, num_frames: int, generator: torch.Generator | None = None) -> Tensor:
        """Indices of all blocks of a random (or, without a generator, the centred) clip.

        The result is long, (num_blocks * block_len,), block after block.
        """
        return self.clip(_start(num_frames - self.span, generator), num_frames)


def uniform_views(sampler: ClipSampler, num_frames: int, num_views: int) -> Tensor:
    """Indices of `num_views` clips whose starts are evenly spaced: long, (num_views, n).

    The first view begins with the video, the last ends with it, and a single one is centred.
    All views of a video no longer than the span are the same.
    """
    if num_views < 1:
        raise ConfigError(f"num_views must be at least 1, got {num_views}")
    if num_views == 1:
        return sampler.sample(num_frames).unsqueeze(0)
    room = max(0, num_frames - sampler.span)
    starts = [round(k * room / (num_views - 1)) for k in range(num_views)]
    return torch.stack([sampler.clip(start, num_frames) for start in starts])


@dataclass(frozen=True)
class ShortClipReport:
    """How many videos were shorter than the sampler's span, and what became of them."""

    policy: ShortPolicy
    num_short: int
    num_dropped: int
    paths: tuple[str, ...]


def usable(
    records: Sequence[ClipRecord], sampler: ClipSampler
) -> tuple[tuple[ClipRecord, ...], ShortClipReport]:
    """The records that the sampler's policy keeps, and a report naming all short ones."""
    short = [record for record in records if sampler.is_short(record.num_frames)]
    drop = sampler.short == "drop"
    kept = [r for r in records if not (drop and sampler.is_short(r.num_frames))]
    report = ShortClipReport(
        policy=sampler.short,
        num_short=len(short),
        num_dropped=len(records) - len(kept),
        paths=tuple(record.path for record in short),
    )
    return tuple(kept), report


def _check(*, short: str, **counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} must be at least 1, got {count}")
    if short not in ("loop", "pad", "drop"):
        raise ConfigError(f"no short-clip policy {short!r}: choose loop, pad or drop")


def _start(room: int, generator: torch.Generator | None) -> int:
    """A start in 0..room: uniform with a generator, else the middle."""
    if room <= 0:
        return 0
    if generator is None:
        return room // 2
    return int(torch.randint(room + 1, (), generator=generator))


def _keep_inside(indices: Tensor, num_frames: int, sampler: ClipSampler) -> Tensor:
    """Brings indices past the end back in, as the sampler's policy has it."""
    if num_frames < 1:
        raise ValueError("a video without frames cannot be sampled")
    if sampler.short == "drop" and sampler.is_short(num_frames):
        raise ValueError(
            f"a video of {num_frames} frames is too short for a span of {sampler.span} and the "
            "policy is drop; filter with usable(records, sampler) first"
        )
    if sampler.short == "loop":
        return indices % num_frames
    return indices.clamp(max=num_frames - 1)
