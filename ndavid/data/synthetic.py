"""Small labelled motion clips as real mp4 files: the data of the demo and of many tests.

The classes differ only in how one textured object moves over a textured, still background.
Everything else (background, shape, texture, colours, size, start, tempo, length) is drawn before
the class is looked at, and every class keeps that draw's distribution at every frame: positions
live on a torus (an object that leaves on one side enters on the other), angles on a circle, and
the size on a circle too (an approaching object that has filled its range starts small again).
So no single frame tells the class. A horizontal flip turns one class into another: train without.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ndavid.data.encode import EncodeSettings, write_video
from ndavid.errors import DataError
from ndavid.locks import hold

FPS = 25.0
MIN_FRAMES, MAX_FRAMES = 48, 96
NUM_FOLDS = 3
MAX_GROUPS = 25
TEST_SHARE = 7 / 25  # UCF101 holds 7 of its 25 groups out
MIN_RADIUS, MAX_RADIUS = 0.12, 0.30  # of the frame's size
MARKER = "synthetic.json"
VERSION = 1


@dataclass(frozen=True)
class Scene:
    """All that is drawn for a clip; drawn without knowing the class.

    Lengths are in units of the frame's size, angles and phases in turns, tempo in cycles a frame.
    """

    num_frames: int
    x: float
    y: float
    angle: float
    size_phase: float
    tempo: float
    heading: float
    motion_phase: float
    amplitude: float


@dataclass(frozen=True)
class Trajectory:
    """The object in each frame, each (T,): centre and radius in frame sizes, angle in turns."""

    x: Tensor
    y: Tensor
    angle: Tensor
    radius: Tensor


def motion_classes() -> tuple[str, ...]:
    """The class names in label order."""
    return tuple(_MOTIONS)


def write_motion_clips(
    output: str | Path, *, num_clips: int = 240, size: int = 64, seed: int = 0
) -> Path:
    """Write `num_clips` mp4 clips of `size` pixels in UCF101's layout and return the folder.

    The folder gets `<Class>/v_<Class>_gXX_cYY.mp4`, `classInd.txt` and `trainlist0k.txt` and
    `testlist0k.txt` for k = 1, 2, 3. Clips of one group number share their background and colours,
    in all classes, and a group is never on both sides of a split. A folder that already holds this
    very set is left as it is; one that was cut short is written again.

    Raises:
        ValueError: too few clips for two groups a class, or a size that is odd or under 16.
        DataError: the folder holds a set with other settings.
    """
    classes = motion_classes()
    if num_clips < 2 * len(classes):
        raise ValueError(f"num_clips must be at least {2 * len(classes)}, got {num_clips}")
    if size < 16 or size % 2:
        raise ValueError(f"size must be even and at least 16, got {size}")
    output = Path(output)
    wanted = {"version": VERSION, "num_clips": num_clips, "size": size, "seed": seed}
    with hold(output):
        if _already_written(output, wanted):
            return output
        _write_marker(output, wanted, complete=False)
        clips = _layout(num_clips)
        for index, clip in enumerate(clips):
            _write_clip(output / clip.path, clip, index, size=size, seed=seed)
        _write_lists(output, clips)
        _write_marker(output, wanted, complete=True)
    return output


def draw_scene(generator: torch.Generator) -> Scene:
    """Draw everything about a clip's course that does not depend on its class."""
    u = torch.rand(8, generator=generator, dtype=torch.float64).tolist()
    num_frames = int(torch.randint(MIN_FRAMES, MAX_FRAMES + 1, (1,), generator=generator))
    return Scene(
        num_frames=num_frames,
        x=u[0],
        y=u[1],
        angle=u[2],
        size_phase=u[3],
        tempo=1 / 48 + u[4] * (1 / 24 - 1 / 48),
        heading=u[5],
        motion_phase=u[6],
        amplitude=0.12 + 0.10 * u[7],
    )


def trajectory(motion: str, scene: Scene) -> Trajectory:
    """The course of the object of `scene` under the class `motion` (a name of `motion_classes`)."""
    time = torch.arange(scene.num_frames, dtype=torch.float64)
    dx, dy, turn, growth = _MOTIONS[motion](time, scene)
    phase = (scene.size_phase + growth) % 1.0
    return Trajectory(
        x=(scene.x + dx) % 1.0,
        y=(scene.y + dy) % 1.0,
        angle=(scene.angle + turn) % 1.0,
        radius=MIN_RADIUS * (MAX_RADIUS / MIN_RADIUS) ** phase,
    )


# --- the classes: what time adds to x, y, angle and the phase of the size ---------------------

_Offsets = tuple[Tensor, Tensor, Tensor, Tensor]


def _translate(step_x: float, step_y: float) -> Callable[[Tensor, Scene], _Offsets]:
    def motion(time: Tensor, scene: Scene) -> _Offsets:
        distance, still = time * scene.tempo, torch.zeros_like(time)
        return step_x * distance, step_y * distance, still, still

    return motion


def _rotate(sense: float) -> Callable[[Tensor, Scene], _Offsets]:
    def motion(time: Tensor, scene: Scene) -> _Offsets:
        still = torch.zeros_like(time)
        return still, still, sense * time * scene.tempo, still

    return motion


def _resize(sense: float) -> Callable[[Tensor, Scene], _Offsets]:
    def motion(time: Tensor, scene: Scene) -> _Offsets:
        still = torch.zeros_like(time)
        return still, still, still, sense * time * scene.tempo

    return motion


def _along(heading: float, distance: Tensor) -> _Offsets:
    still = torch.zeros_like(distance)
    angle = 2 * math.pi * heading
    return math.cos(angle) * distance, math.sin(angle) * distance, still, still


def _oscillate(time: Tensor, scene: Scene) -> _Offsets:
    swing = torch.sin(2 * math.pi * (time * scene.tempo + scene.motion_phase))
    return _along(scene.heading, scene.amplitude * swing)


def _move_and_pause(time: Tensor, scene: Scene) -> _Offsets:
    # A stop-and-go cycle is shorter than a crossing, so that a short window sees both halves.
    cycle = 0.6 / scene.tempo
    position = time / cycle + scene.motion_phase
    moved = torch.floor(position) * 0.5 + torch.clamp(position % 1.0, max=0.5)
    return _along(scene.heading, moved * cycle * scene.tempo)


_MOTIONS: dict[str, Callable[[Tensor, Scene], _Offsets]] = {
    "MoveLeft": _translate(-1, 0),
    "MoveRight": _translate(1, 0),
    "MoveUp": _translate(0, -1),
    "MoveDown": _translate(0, 1),
    "RotateClockwise": _rotate(1),
    "RotateCounterclockwise": _rotate(-1),
    "Approach": _resize(1),
    "Recede": _resize(-1),
    "Oscillate": _oscillate,
    "MoveAndPause": _move_and_pause,
}


# --- layout -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Clip:
    motion: str
    group: int
    number: int

    @property
    def path(self) -> str:
        return f"{self.motion}/v_{self.motion}_g{self.group:02d}_c{self.number:02d}.mp4"


def _layout(num_clips: int) -> list[_Clip]:
    classes = motion_classes()
    # Groups that every class reaches, so that each split holds every class on both sides.
    num_groups = min(MAX_GROUPS, num_clips // len(classes))
    clips = []
    for index in range(num_clips):
        within_class, label = divmod(index, len(classes))
        number, group = divmod(within_class, num_groups)
        clips.append(_Clip(classes[label], group + 1, number + 1))
    return clips


def _test_groups(num_groups: int, fold: int) -> set[int]:
    count = max(1, min(num_groups - 1, round(num_groups * TEST_SHARE)))
    return {1 + (fold * count + step) % num_groups for step in range(count)}


def _write_lists(output: Path, clips: list[_Clip]) -> None:
    classes = motion_classes()
    class_lines = [f"{label} {name}\n" for label, name in enumerate(classes, start=1)]
    (output / "classInd.txt").write_text("".join(class_lines))
    ordered = sorted(clips, key=lambda clip: clip.path)
    num_groups = max(clip.group for clip in clips)
    for fold in range(NUM_FOLDS):
        held_out = _test_groups(num_groups, fold)
        train = [clip for clip in ordered if clip.group not in held_out]
        test = [clip for clip in ordered if clip.group in held_out]
        train_lines = [f"{clip.path} {classes.index(clip.motion) + 1}\n" for clip in train]
        (output / f"trainlist{fold + 1:02d}.txt").write_text("".join(train_lines))
        test_lines = [f"{clip.path}\n" for clip in test]
        (output / f"testlist{fold + 1:02d}.txt").write_text("".join(test_lines))


def _already_written(output: Path, wanted: dict[str, int]) -> bool:
    marker = output / MARKER
    if not marker.exists():
        return False
    found = json.loads(marker.read_text(encoding="utf-8-sig"))
    complete = found.pop("complete", False)
    if found != wanted:
        raise DataError(output, f"holds synthetic clips made with {found}, not {wanted}")
    return complete and all((output / clip.path).exists() for clip in _layout(wanted["num_clips"]))


def _write_marker(output: Path, wanted: dict[str, int], *, complete: bool) -> None:
    (output / MARKER).write_text(json.dumps({**wanted, "complete": complete}) + "\n")


def _write_clip(path: Path, clip: _Clip, index: int, *, size: int, seed: int) -> None:
    background, palette = _draw_place(_generator(seed, "group", clip.group), size)
    generator = _generator(seed, "clip", index)
    scene = draw_scene(generator)
    thing = _draw_thing(generator, palette)
    frames = render(trajectory(clip.motion, scene), background, thing)
    write_video(path, frames, fps=FPS, settings=EncodeSettings(gop=12, crf=18))


def _generator(seed: int, purpose: str, index: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed}/{purpose}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


# --- appearance -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Thing:
    """An object's looks: its outline, and its texture (3, S, S) in [0, 1] over [-1.25, 1.25]^2."""

    shape: str
    texture: Tensor


def _draw_place(generator: torch.Generator, size: int) -> tuple[Tensor, Tensor]:
    """A background (3, size, size) and two object colours (2, 3), a dark and a light one."""
    low = _colour(generator, saturation=0.45, darkest=0.25, lightest=0.55)
    high = _colour(generator, saturation=0.45, darkest=0.45, lightest=0.80)
    pattern = _fractal(generator, size)
    grain = 0.08 * (_fractal(generator, size, coarsest=16) - 0.5)
    background = torch.lerp(low[:, None, None], high[:, None, None], pattern) + grain
    dark = _colour(generator, saturation=0.9, darkest=0.10, lightest=0.30)
    light = _colour(generator, saturation=0.9, darkest=0.90, lightest=1.00)
    return background.clamp(0, 1), torch.stack([dark, light])


def _draw_thing(generator: torch.Generator, palette: Tensor) -> Thing:
    names = tuple(_OUTLINES)
    shape = names[int(torch.randint(len(names), (1,), generator=generator))]
    resolution = 48
    line = torch.linspace(-1.25, 1.25, resolution)
    v, u = torch.meshgrid(line, line, indexing="ij")
    kind, swap, turn, frequency, offset = torch.rand(5, generator=generator).tolist()
    direction = u * math.cos(2 * math.pi * turn) + v * math.sin(2 * math.pi * turn)
    stripes = torch.sigmoid(8 * torch.sin(direction * (2.5 + 2.5 * frequency) + 6 * offset))
    noise = _fractal(generator, resolution)
    blotches = torch.sigmoid(14 * (noise - noise.median()))
    pattern = stripes if kind < 0.5 else blotches
    # A rim in one colour keeps the outline readable on any background.
    rim = torch.sigmoid(20 * (_OUTLINES[shape](u, v) + 0.18))
    pattern = torch.lerp(pattern, torch.full_like(pattern, float(swap < 0.5)), rim)
    # A shade across the object: every outline and pattern then shows which way it is turned.
    shade = 0.75 + 0.25 * (direction / 1.25)
    texture = torch.lerp(palette[0][:, None, None], palette[1][:, None, None], pattern) * shade
    return Thing(shape, texture.clamp(0, 1))


def _colour(
    generator: torch.Generator, *, saturation: float, darkest: float, lightest: float
) -> Tensor:
    hue, vividness, value = torch.rand(3, generator=generator).tolist()
    turns = hue + torch.tensor([0.0, -1 / 3, 1 / 3])
    pure = (torch.cos(2 * math.pi * turns) + 1) / 2
    brightness = darkest + (lightest - darkest) * value
    return brightness * (1 - saturation * vividness * (1 - pure))


def _fractal(generator: torch.Generator, size: int, coarsest: int = 3) -> Tensor:
    """Smooth noise (size, size) stretched to [0, 1]: octaves of random grids, finer ones weaker."""
    total = torch.zeros(size, size)
    cells, weight = coarsest, 1.0
    while cells < size:
        grid = torch.rand(1, 1, cells, cells, generator=generator)
        octave = F.interpolate(grid, (size, size), mode="bicubic", align_corners=False)
        total += weight * octave[0, 0]
        cells, weight = cells * 2, weight * 0.5
    low, high = total.min(), total.max()
    return (total - low) / (high - low).clamp(min=1e-6)


# --- rendering --------------------------------------------------------------------------------


def render(path: Trajectory, background: Tensor, thing: Thing) -> Tensor:
    """Draw `thing` along `path` over `background` (3, S, S): uint8 RGB frames (T, 3, S, S)."""
    size = background.shape[-1]
    u, v = _object_coordinates(path, size)
    radius = (path.radius * size).float()[:, None, None]
    # The distance to the outline in pixels gives an anti-aliased edge; a slower ramp, a shadow.
    cover = (0.5 - _OUTLINES[thing.shape](u, v) * radius).clamp(0, 1)
    shadow = (0.5 - _OUTLINES[thing.shape](u * 0.93, v * 0.93) * radius / 4).clamp(0, 1)
    colour = F.grid_sample(
        thing.texture.expand(u.shape[0], -1, -1, -1),
        torch.stack([u, v], dim=-1) / 1.25,
        padding_mode="border",
        align_corners=False,
    )
    darkened = background * (1 - 0.35 * shadow[:, None])
    frames = torch.lerp(darkened, colour, cover[:, None])
    return (frames * 255).round().clamp(0, 255).to(torch.uint8)


def _object_coordinates(path: Trajectory, size: int) -> tuple[Tensor, Tensor]:
    """Each pixel in the object's own turned and scaled frame, u and v (T, size, size)."""
    centres = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    # The nearest copy of the object on the torus: differences wrapped into [-1/2, 1/2).
    dx = (centres - path.x.float()[:, None] + 0.5) % 1.0 - 0.5
    dy = (centres - path.y.float()[:, None] + 0.5) % 1.0 - 0.5
    angle = (2 * math.pi * path.angle).float()[:, None, None]
    dx, dy = dx[:, None, :], dy[:, :, None]
    cos, sin, radius = torch.cos(angle), torch.sin(angle), path.radius.float()[:, None, None]
    # y grows downward, so a growing angle turns the picture clockwise.
    return (cos * dx + sin * dy) / radius, (cos * dy - sin * dx) / radius


def _disc(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - 0.9


def _ellipse(u: Tensor, v: Tensor) -> Tensor:
    return (torch.hypot(u, v / 0.6) - 1.0) * 0.6


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.8


def _cross(u: Tensor, v: Tensor) -> Tensor:
    upright = torch.maximum(u.abs() - 0.38, v.abs() - 1.0)
    return torch.minimum(upright, torch.maximum(v.abs() - 0.38, u.abs() - 1.0))


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    slope = math.sqrt(3) / 2
    return torch.maximum(v - 0.55, torch.maximum(slope * u - v / 2, -slope * u - v / 2) - 0.55)


def _flower(u: Tensor, v: Tensor) -> Tensor:
    return torch.hypot(u, v) - (0.8 + 0.18 * torch.cos(5 * torch.atan2(v, u)))


_OUTLINES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "disc": _disc,
    "ellipse": _ellipse,
    "square": _square,
    "cross": _cross,
    "triangle": _triangle,
    "flower": _flower,
}
