"""The classes differ in motion and in nothing else, and the layout is UCF101's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ndavid.data.decode import open_reader
from ndavid.data.synthetic import (
    MAX_FRAMES,
    MIN_FRAMES,
    draw_scene,
    motion_classes,
    trajectory,
    write_motion_clips,
)
from ndavid.errors import DataError


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> Path:
    return write_motion_clips(tmp_path_factory.mktemp("synthetic"), num_clips=240, seed=3)


def read_lists(folder: Path, fold: int) -> tuple[list[tuple[str, int]], list[str]]:
    train = [line.split() for line in (folder / f"trainlist{fold:02d}.txt").read_text().split("\n")]
    test = (folder / f"testlist{fold:02d}.txt").read_text().split()
    return [(row[0], int(row[1])) for row in train if row], test


def group_of(path: str) -> str:
    return path.split("_g")[1][:2]


def test_classes_are_balanced_and_named_in_label_order(clips: Path):
    lines = (clips / "classInd.txt").read_text().split("\n")
    assert [line.split()[1] for line in lines if line] == list(motion_classes())
    counts = Counter(path.parent.name for path in clips.glob("*/*.mp4"))
    assert counts == dict.fromkeys(motion_classes(), 24)


@pytest.mark.parametrize("fold", [1, 2, 3])
def test_a_fold_covers_every_clip_once_and_splits_no_group(clips: Path, fold: int):
    train, test = read_lists(clips, fold)
    paths = [path for path, _ in train] + test
    assert sorted(paths) == sorted(p.relative_to(clips).as_posix() for p in clips.glob("*/*.mp4"))
    assert not {group_of(path) for path, _ in train} & {group_of(path) for path in test}
    assert {label for _, label in train} == set(range(1, len(motion_classes()) + 1))
    assert {path.split("/")[0] for path in test} == set(motion_classes())
    assert all(motion_classes()[label - 1] == path.split("/")[0] for path, label in train)


def test_the_folds_hold_out_different_groups(clips: Path):
    held_out = [{group_of(path) for path in read_lists(clips, fold)[1]} for fold in (1, 2, 3)]
    assert not held_out[0] & held_out[1] and not held_out[1] & held_out[2]


def test_clips_are_real_videos_of_the_promised_size_and_length(clips: Path):
    for path in sorted(clips.glob("*/*.mp4"))[::17]:
        with open_reader(path) as reader:
            assert tuple(reader.size) == (64, 64) and round(reader.fps) == 25
            assert MIN_FRAMES <= len(reader) <= MAX_FRAMES


def first_frames(folder: Path) -> torch.Tensor:
    frames = []
    for path in sorted(folder.glob("*/*.mp4")):
        with open_reader(path) as reader:
            frames.append(reader.read(range(0, MIN_FRAMES, 8)).float())
    return torch.stack(frames)


def test_the_seed_decides_every_clip(tmp_path: Path):
    one = first_frames(write_motion_clips(tmp_path / "one", num_clips=20, size=32, seed=5))
    torch.manual_seed(99)
    two = first_frames(write_motion_clips(tmp_path / "two", num_clips=20, size=32, seed=5))
    other = first_frames(write_motion_clips(tmp_path / "other", num_clips=20, size=32, seed=6))
    # Not to the bit: x264 itself now and then codes the same frames in two ways.
    assert (one - two).abs().mean(dim=(1, 2, 3, 4)).max() < 2
    assert (one - other).abs().mean(dim=(1, 2, 3, 4)).min() > 5


def test_the_global_generator_is_left_alone(tmp_path: Path):
    state = torch.random.get_rng_state()
    write_motion_clips(tmp_path / "clips", num_clips=20, size=16)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_finished_set_is_not_written_again_and_a_cut_one_is_completed(tmp_path: Path):
    folder = write_motion_clips(tmp_path, num_clips=20, size=32)
    first, second = sorted(folder.glob("*/*.mp4"))[:2]
    time = second.stat().st_mtime_ns
    write_motion_clips(tmp_path, num_clips=20, size=32)
    assert second.stat().st_mtime_ns == time
    first.unlink()
    write_motion_clips(tmp_path, num_clips=20, size=32)
    assert first.exists()


def test_a_folder_with_another_set_is_refused(tmp_path: Path):
    write_motion_clips(tmp_path, num_clips=20, size=32, seed=0)
    with pytest.raises(DataError, match="'seed': 0"):
        write_motion_clips(tmp_path, num_clips=20, size=32, seed=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"num_clips": 19}, "at least 20"), ({"size": 33}, "even"), ({"size": 8}, "16")],
)
def test_impossible_sets_are_refused(tmp_path: Path, arguments, message):
    with pytest.raises(ValueError, match=message):
        write_motion_clips(tmp_path, **arguments)


# --- motion, and only motion ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def scenes():
    generator = torch.Generator().manual_seed(0)
    return [draw_scene(generator) for _ in range(3000)]


@pytest.mark.parametrize("motion", motion_classes())
def test_no_frame_index_has_a_telling_position_angle_or_size(scenes, motion):
    for time in (0, 11, 47):
        states = [trajectory(motion, scene) for scene in scenes]
        columns = {
            "x": torch.stack([s.x[time] for s in states]),
            "y": torch.stack([s.y[time] for s in states]),
            "angle": torch.stack([s.angle[time] for s in states]),
            # The size's law is uniform in its logarithm; brought to [0, 1] like the others.
            "size": torch.log(torch.stack([s.radius[time] for s in states]) / 0.12)
            / torch.log(torch.tensor(0.30 / 0.12)),
        }
        for name, values in columns.items():
            ordered = values.sort().values
            uniform = (torch.arange(len(ordered)) + 0.5) / len(ordered)
            # Kolmogorov-Smirnov at n = 3000: 0.036 is crossed with probability 0.001.
            assert (ordered - uniform).abs().max() < 0.036, (motion, name, time)


def test_each_direction_moves_as_its_name_says(scenes):
    scene = dataclasses.replace(scenes[0], x=0.5, y=0.5, angle=0.5, size_phase=0.5)
    first = {motion: trajectory(motion, scene) for motion in motion_classes()}

    def step(motion: str, what: str) -> float:
        values = getattr(first[motion], what)
        return float(values[1] - values[0])

    assert step("MoveRight", "x") > 0 > step("MoveLeft", "x")
    assert step("MoveDown", "y") > 0 > step("MoveUp", "y")
    assert step("RotateClockwise", "angle") > 0 > step("RotateCounterclockwise", "angle")
    assert step("Approach", "radius") > 0 > step("Recede", "radius")


def test_pausing_alternates_standing_and_moving_and_oscillating_returns(scenes):
    scene = dataclasses.replace(scenes[0], x=0.5, y=0.5, heading=0.0, tempo=1 / 40, num_frames=90)
    paused = trajectory("MoveAndPause", scene).x
    steps = (paused.diff() + 0.5) % 1 - 0.5
    standing = steps.abs() < 1e-9
    assert 0.3 < standing.double().mean() < 0.7
    # The heading never changes.
    assert (steps > -1e-9).all()
    swing = trajectory("Oscillate", scene).x
    assert torch.allclose(swing[:40], swing[40:80]) and swing.max() - swing.min() > 0.2


def test_clockwise_looks_clockwise(tmp_path: Path):
    """A picture turned by the clockwise class goes top -> right, seen on the rendered pixels."""
    from ndavid.data.synthetic import Thing, render

    scene = dataclasses.replace(
        draw_scene(torch.Generator().manual_seed(1)),
        x=0.5, y=0.5, angle=0.0, size_phase=0.9, tempo=1 / 40,
    )  # fmt: skip
    texture = torch.zeros(3, 48, 48)
    texture[:, :18, 18:30] = 1  # a bright mark at the object's top
    frames = render(
        trajectory("RotateClockwise", scene), torch.full((3, 64, 64), 0.2), Thing("disc", texture)
    )
    brightness = frames.float().mean(dim=1)
    x = (brightness * (brightness > 128) * torch.arange(64)).sum(dim=(1, 2)) / (
        brightness * (brightness > 128)
    ).sum(dim=(1, 2))
    assert x[5] > x[0] + 2 and x[10] > x[5]


def _stills_and_motion(clips: Path, paths: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Per clip: 4 downsampled frames (4, 3*16*16), and the mean products of its gradients."""
    stills, motions = [], []
    for path in paths:
        with open_reader(clips / path) as reader:
            video = reader.read(range(48)).float() / 255
        small = torch.nn.functional.avg_pool2d(video[[0, 15, 30, 45]], 4)
        stills.append(small.flatten(1).numpy())
        grey = video.mean(dim=1)
        dt = (grey[2:] - grey[:-2])[:, 1:-1, 1:-1]
        dx = (grey[1:-1, 1:-1, 2:] - grey[1:-1, 1:-1, :-2]) / 2
        dy = (grey[1:-1, 2:, 1:-1] - grey[1:-1, :-2, 1:-1]) / 2
        # The moving pixels' own centre: turning and growing are seen about it.
        weight = dt.abs() / dt.abs().sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        line = torch.arange(62.0) - 30.5
        cx = (weight * line).sum(dim=(1, 2), keepdim=True)
        cy = (weight * line[:, None]).sum(dim=(1, 2), keepdim=True)
        u, v = line - cx, line[:, None] - cy
        energy = (dx**2 + dy**2).sum(dim=(1, 2)) + 1e-3
        flow = [
            -(dt * dx).sum(dim=(1, 2)) / energy,
            -(dt * dy).sum(dim=(1, 2)) / energy,
            -(dt * (u * dy - v * dx)).sum(dim=(1, 2)) / energy / 10,
            -(dt * (u * dx + v * dy)).sum(dim=(1, 2)) / energy / 10,
        ]
        moments = [f(series) for series in flow for f in (torch.median, torch.std)]
        motions.append(torch.stack([*moments, dt.abs().mean(), dt.abs().mean(dim=(1, 2)).std()]))
    return np.stack(stills), torch.stack(motions).numpy()


def _fit() -> LogisticRegression:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))


def test_single_frames_tell_nothing_and_motion_tells_much(clips: Path):
    train, test = read_lists(clips, 1)
    labels = np.array([label - 1 for _, label in train])
    truth = np.array([motion_classes().index(path.split("/")[0]) for path in test])
    stills, motions = _stills_and_motion(clips, [path for path, _ in train])
    test_stills, test_motions = _stills_and_motion(clips, test)
    frames = stills.shape[1]
    still = _fit().fit(stills.reshape(-1, stills.shape[-1]), labels.repeat(frames))
    still_accuracy = still.score(test_stills.reshape(-1, stills.shape[-1]), truth.repeat(frames))
    motion_accuracy = _fit().fit(motions, labels).score(test_motions, truth)
    # Chance is 0.10; 70 test clips give it a standard error of 0.036.
    assert still_accuracy < 0.10 + 3 * 0.036
    assert motion_accuracy > 0.45
