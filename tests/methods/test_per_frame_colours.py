"""Stills and loops whose frames have colours of their own: told by what they show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toys import build_toy

from ndavid import nda
from ndavid.data.content import content_of
from ndavid.data.manifest import ClipRecord
from ndavid.data.sampling import DenseClip, DpcBlocks
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, MultiViewClips, collate
from ndavid.methods.broken_blocks import break_blocks, changed_cells, without_repeats
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.moco import MocoMethod
from ndavid.methods.nda_config import MocoNdaConfig, NdaConfig
from ndavid.models.dpc import DpcConfig
from ndavid.models.moco import MocoConfig
from ndavid.nda.content import Content

SIZE, FRAMES = 64, 20
SMALL = DpcConfig(encoder="resnet2d3d10_half", num_blocks=4, block_len=5, pred_steps=2, dropout=0.0)
DPC = AugmentConfig(preset="dpc", size=SIZE)
# The same crops and flips: what does not change colours draws the same numbers.
PLAIN = AugmentConfig(preset="dpc", size=SIZE, gray=0.0, jitter=0.0)
MOCO = AugmentConfig(preset="moco_v2", size=SIZE, per_frame_jitter=True)

VIDEOS: dict[str, Callable[[int], int]] = {
    "still": lambda frame: 0,
    "loop": lambda frame: frame % 5,
    "moving": lambda frame: frame,
}


def picture(number: int) -> np.ndarray:
    """A soft coloured pattern of its own for each number, (72, 96, 3)."""
    noise = torch.rand(1, 3, 9, 12, generator=torch.Generator().manual_seed(number))
    pixels = F.interpolate(noise, size=(72, 96), mode="bilinear")[0].permute(1, 2, 0)
    return (pixels * 255).to(torch.uint8).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lossless mp4 files, so that the same picture comes back the same."""
    path = tmp_path_factory.mktemp("videos")
    for name, shown in VIDEOS.items():
        with av.open(str(path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"qp": "0"})
            stream.height, stream.width, stream.pix_fmt = 72, 96, "yuv444p"
            for index in range(30):
                frame = av.VideoFrame.from_ndarray(picture(shown(index)), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    return path


def records(*names: str) -> list[ClipRecord]:
    return [ClipRecord(f"{n}.mp4", 0, "g", 30, 25.0, 96, 72, ("train",)) for n in names]


def blocks_of(folder: Path, *names: str, augment: AugmentConfig = DPC) -> dict[str, Any]:
    sampler = DpcBlocks(num_blocks=4, block_len=5, frame_stride=1)
    dataset = ClipDataset(records(*names), folder, sampler, train_transform(augment))
    return collate([dataset[index, 10 + index] for index in range(len(names))])


def views_of(folder: Path, *names: str) -> dict[str, Any]:
    sampler = DenseClip(FRAMES, 1)
    dataset = MultiViewClips(records(*names), folder, sampler, train_transform(MOCO))
    return collate([dataset[index, 10 + index] for index in range(len(names))])


def dpc(config: NdaConfig | None = None) -> DpcMethod:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DpcMethod(SMALL, config)


def step(method: Any, batch: dict[str, Any], seed: int = 0) -> dict[str, Tensor]:
    return method(batch, generator=torch.Generator().manual_seed(seed), step=0)


def used(method: Any, batch: dict[str, Any]) -> list[bool]:
    found = method.broken_samples(batch, generator=torch.Generator().manual_seed(0))
    return found.used.tolist()


# --- DPC -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"where": "all", "per_sample": 2},
        {"where": "context", "span": "clip"},
        {"where": "all", "span": "clip"},
        {"entry": "pooled"},
        {"spec": "reverse | frame_repeat"},
        {"spec": "temporal_stitch", "where": "all", "share": "batch"},
    ],
)
def test_dpc_makes_no_negative_of_a_still(folder: Path, options: dict[str, Any]) -> None:
    batch = blocks_of(folder, "still", "still")
    if "stitch" in options.get("spec", ""):
        # Of one clip and one crop, so that each has the other's content.
        for key in ("content", "uncoloured"):
            batch[key] = batch[key][:1].repeat_interleave(2, dim=0)
    assert (batch["video"][:, :, 1:] != batch["video"][:, :, :1]).any(), "the colours differ"
    method = dpc(NdaConfig(**({"spec": "frame_shuffle"} | options)))
    found = step(method, batch)
    assert found["nda_unchanged"] == 1
    assert torch.equal(found["loss"], step(dpc(), batch)["loss"])
    assert used(method, batch) == [False, False]


def test_dpc_uses_a_moving_clip_beside_a_still(folder: Path) -> None:
    batch = blocks_of(folder, "still", "moving")
    method = dpc(NdaConfig(spec="frame_shuffle"))
    found = step(method, batch)
    assert found["nda_unchanged"] == 0.5
    assert found["loss"] > step(dpc(), batch)["loss"]
    assert used(method, batch) == [False, True]
    # As it is without the colours.
    assert step(method, blocks_of(folder, "still", "moving", augment=PLAIN))["nda_unchanged"] == 0.5


def test_dpc_finds_a_loop_as_long_as_a_segment(folder: Path) -> None:
    """A past of two blocks, which change places: of a loop of five frames, the past as it was."""
    method = dpc(NdaConfig(spec="temporal_jigsaw:segments=2", where="context", span="clip"))
    batch = blocks_of(folder, "loop", "loop")
    found = step(method, batch)
    assert found["nda_unchanged"] == 1
    assert torch.equal(found["loss"], step(dpc(), batch)["loss"])
    assert used(method, blocks_of(folder, "loop", "moving")) == [False, True]


@pytest.mark.parametrize("span", ["block", "clip"])
@pytest.mark.parametrize(
    "spec",
    [
        "frame_shuffle",
        "temporal_jigsaw:segments=5,swap=2",
        "cuboid_jigsaw:grid=2,segments=5",
        "jigsaw > reverse",
        "reverse | frame_shuffle",
        "stitch > reverse",
        "cut_mix > frame_shuffle",
        "temporal_stitch",
    ],
)
def test_the_same_cells_are_negatives_as_without_the_colours(
    folder: Path, spec: str, span: Any
) -> None:
    """Half a still, half a moving clip: every cell of 32 pixels is one or the other."""
    batches = [
        blocks_of(folder, "still", "moving", "loop", augment=augment) for augment in (DPC, PLAIN)
    ]
    for batch in batches:
        for key in ("video", "content", "uncoloured"):
            if key in batch:
                pixels = batch[key]
                half = pixels.shape[-1] // 2
                pixels[1, ..., :half] = pixels[0, ..., :half]
    coloured, plain = batches
    assert "content" not in plain
    method = dpc(NdaConfig(spec="frame_shuffle", where="all"))
    cells = []
    for batch in (coloured, plain):
        content = method._content_to_break(batch)
        blocks = method._blocks(batch["video"])
        draws = torch.Generator().manual_seed(3)
        operation = nda.from_spec(spec)
        broken = break_blocks(
            operation, blocks, span=span, draws=4, generator=draws, content=content
        )
        if span == "clip":
            broken = without_repeats(broken, blocks, content)
        cells.append(changed_cells(broken.changed, broken.differs, (2, 2), 0.15))
    by_content, by_pixels = cells
    assert by_content.any() and not (by_pixels & ~by_content).any()
    # Of a box that ends within a cell of the content, all of that cell counts.
    assert torch.equal(*cells) or (spec.startswith("cut_mix") and span == "clip")


def test_min_motion_is_not_that_of_colours(folder: Path) -> None:
    """A clip in which one small corner changes, and one that changes throughout."""
    batch, source = blocks_of(folder, "still", "moving"), blocks_of(folder, "moving")
    for key in ("content", "uncoloured"):
        batch[key][0, ..., -1:, -1:] = source[key][0, ..., -1:, -1:]
    assert used(dpc(NdaConfig(spec="frame_shuffle")), batch) == [True, True]
    assert used(dpc(NdaConfig(spec="frame_shuffle:min_motion=0.02")), batch) == [False, True]


# --- MoCo ----------------------------------------------------------------------------------------


@pytest.fixture
def moco(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], MocoMethod]:
    monkeypatch.setattr("ndavid.models.moco.build_encoder", build_toy)

    def make(spec: str) -> MocoMethod:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            config = MocoConfig(encoder="toy:group", dim=4, queue_size=8)
            own = MocoNdaConfig(spec=spec, encoder="key", norm="own")
            return MocoMethod(config, own)

    return make


@pytest.mark.parametrize(
    ("spec", "name"), [("frame_shuffle", "still"), ("temporal_jigsaw:segments=4", "loop")]
)
def test_moco_makes_no_negative_of_stills_and_loops(folder: Path, moco, spec, name) -> None:
    batch = views_of(folder, name, name)
    assert (batch["views"][:, :, :, 5:] != batch["views"][:, :, :, :-5]).any()
    found = step(moco(spec), batch)
    assert found["nda_unchanged"] == 1
    assert torch.equal(found["loss"], step(moco(""), batch)["loss"])
    assert used(moco(spec), views_of(folder, name, "moving")) == [False, True]


def test_moco_finds_what_barely_moves(folder: Path, moco) -> None:
    batch, source = views_of(folder, "still", "moving"), views_of(folder, "moving")
    for key in ("content", "uncoloured"):
        batch[key][0, ..., -1:, -1:] = source[key][0, ..., -1:, -1:]
    assert used(moco("frame_shuffle"), batch) == [True, True]
    assert used(moco("frame_shuffle:min_motion=0.02"), batch) == [False, True]


# --- what the data tell --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [128, 112, 100, 64, 37, 18, 8])
def test_equal_cells_have_equal_ids_and_others_other_ones(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    clip = torch.randint(256, (4, 3, size, size), generator=generator).to(torch.uint8)
    ids = content_of(clip).content
    grid, side = ids.shape[-1], size // ids.shape[-1]
    assert ids.unique().numel() == ids.numel() and size == grid * side
    for place in range(40):
        channel, row, column, bit = (
            int(torch.randint(high, (), generator=generator)) for high in (3, size, size, 8)
        )
        other = clip.clone()
        other[place % 4, channel, row, column] ^= 1 << bit
        unlike = content_of(other).content != ids
        assert unlike.nonzero().tolist() == [[place % 4, row // side, column // side]]
    clip[2, :, :side, :side] = clip[1, :, -side:, -side:]
    again = content_of(clip).content
    assert again[2, 0, 0] == again[1, -1, -1] == ids[1, -1, -1]


@pytest.mark.parametrize("seed", range(6))
def test_content_is_that_of_the_crop_and_flip_alone(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    clip = torch.randint(256, (7, 3, 72, 96), generator=generator).to(torch.uint8)
    draws = [torch.Generator().manual_seed(seed) for _ in range(3)]
    pixels, found = train_transform(DPC).with_content(clip, draws[0])
    assert torch.equal(pixels, train_transform(DPC)(clip, draws[1]))
    assert torch.equal(draws[0].get_state(), draws[1].get_state())
    bare = train_transform(PLAIN)(clip, draws[2])
    expected = content_of(bare)
    assert torch.equal(found.content, expected.content)
    assert torch.equal(found.uncoloured, expected.uncoloured)
    assert found.uncoloured.shape == (7, 3, 32, 32)


@pytest.mark.parametrize("preset", ["moco_v2", "finetune", "none"])
def test_where_pixels_tell_nothing_is_added(folder: Path, preset: Any) -> None:
    augment = AugmentConfig(preset=preset, size=SIZE)
    assert "content" not in blocks_of(folder, "moving", augment=augment)


SPECS = [
    "frame_shuffle",
    "temporal_jigsaw:segments=2",
    "frame_repeat",
    "reverse",
    "cuboid_jigsaw:grid=2,segments=3",
    "cuboid_jigsaw:grid=3,segments=1,crop=true",
    "jigsaw",
    "jigsaw:per_frame=true",
    "stitch",
    "stitch:per_frame=true",
    "temporal_stitch",
    "jigsaw > reverse",
    "reverse | jigsaw | stitch > reverse",
]


@pytest.mark.parametrize("spec", SPECS)
def test_ops_that_move_cells_move_their_ids(spec: str) -> None:
    op, side = nda.from_spec(spec), 16
    generator = torch.Generator().manual_seed(0)
    size = 48 if "grid=3" in spec else 64
    clips = torch.randint(256, (16, 3, 6, size, size), generator=generator).to(torch.uint8)
    params = op.sample(clips.shape, generator)
    before, after = ids_of(clips), ids_of(op.apply(clips, params))
    assert torch.equal(op.apply_to_content(before, params, clips.shape, side), after)


@pytest.mark.parametrize("spec", ["mixup", "cut_mix", "stitch", "temporal_stitch"])
def test_an_equal_partner_lends_nothing_new(spec: str) -> None:
    """Two copies of one clip in other colours, and two other clips."""
    op, draws = nda.from_spec(spec), torch.Generator().manual_seed(0)
    shown = torch.rand(4, 3, 6, 64, 64, generator=draws)
    shown[1] = shown[0]
    pixels = shown * (0.5 + torch.rand(4, 3, 6, 1, 1, generator=draws))
    content = Content(ids_of((shown * 255).to(torch.uint8)), shown)
    met = set()
    for _ in range(20):
        made = op.broken(pixels, generator=draws, content=content)
        equal = (made.params["partner"] == torch.tensor([1, 0, -1, -1])).tolist()
        assert [not changed for changed in made.changed.tolist()] == equal
        met.update(equal)
    assert met == {True, False}


@pytest.mark.parametrize("spec", ["cutout", "cut_mix", "mixup", "patch_resample", "jigsaw:grid=8"])
def test_ops_that_overwrite_leave_no_touched_cell_its_id(spec: str) -> None:
    op = nda.from_spec(spec)
    clips = torch.rand(16, 3, 6, 64, 64, generator=torch.Generator().manual_seed(0))
    params = op.sample(clips.shape, torch.Generator().manual_seed(0))
    ids = ids_of((clips * 255).to(torch.uint8))
    moved = op.apply_to_content(ids, params, clips.shape, 16) != ids
    touched = op.changed_mask(params, clips.shape).view(16, 1, 6, 4, 16, 4, 16).any(-1).any(-2)
    assert torch.equal(moved, touched)


def test_crops_that_cut_through_cells_are_no_change() -> None:
    op = nda.from_spec("jigsaw:grid=3,crop=true > reverse")
    clips = torch.rand(4, 3, 6, 64, 64, generator=torch.Generator().manual_seed(0))
    content = Content(ids_of((clips * 255).to(torch.uint8)), clips)
    made = op.broken(clips, generator=torch.Generator().manual_seed(0), content=content)
    assert made.pixels.shape[-2:] == (63, 63) and made.changed.all()


def ids_of(clips: Tensor) -> Tensor:
    return torch.stack([content_of(clip.transpose(0, 1)).content for clip in clips]).unsqueeze(1)
