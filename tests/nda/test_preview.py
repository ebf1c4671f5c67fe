"""The picture of the ops: a row for each, and the frames that it says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ndavid import nda
from ndavid.nda.preview import preview


@pytest.fixture
def clips(seeded):
    return torch.randint(0, 256, (2, 3, 8, 24, 36), dtype=torch.uint8, generator=seeded(0))


def test_every_op_has_its_row(clips):
    of_clips, of_images = preview(clips), preview(clips[:, :, 0])
    rows = len(nda.OPS) + 1
    spatial = sum(not kind.clips_only for kind in nda.OPS.values()) + 1
    step = (of_clips.height - of_images.height) / (rows - spatial)
    assert step == int(step) and of_images.height > spatial * step
    assert of_clips.width > of_images.width


def test_rows_show_what_the_op_does(seeded):
    """Reversed frames stand in the picture in reverse, each with a number in its upper half."""
    clips = torch.randint(0, 256, (2, 3, 8, 48, 64), dtype=torch.uint8, generator=seeded(0))
    picture = np.asarray(preview(clips, [nda.Reverse()], frames=8, frame_height=48))
    lower_halves = clips[0].permute(1, 2, 3, 0)[:, 24:].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(picture, (1, 64, 3))[:, :, 0, 0]
    found = []
    for half in lower_halves:
        candidates = np.argwhere((windows == half[0]).all((2, 3)))
        whole = [(y, x) for y, x in candidates if (picture[y : y + 24, x : x + 64] == half).all()]
        assert len(whole) == 2, "each frame is in the original row and in the reversed one"
        found.append(sorted(whole))
    columns = [[place[1] for place in frame] for frame in found]
    assert [first for first, _ in columns] == sorted(first for first, _ in columns)
    assert [first for first, _ in columns] == [second for _, second in columns][::-1]


def test_one_sample_is_enough_and_any_size_and_length_goes(clips):
    assert preview(clips[:1]).size == preview(clips).size
    for frames in (1, 3, 5, 7):
        preview(clips[:, :, :frames, :21, :33])
    preview(clips[:, :1])


def test_only_bytes_are_drawn(clips):
    with pytest.raises(ValueError, match="uint8"):
        preview(clips.float())


def test_same_seed_same_picture(clips):
    first, same, other = (preview(clips, seed=seed).tobytes() for seed in (1, 1, 2))
    assert first == same != other
