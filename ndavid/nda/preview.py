"""A picture of what each op does to one clip or image: one row an op, frames across.

A bar beside each row shows how much of the sample the op changed, because dense losses may call
only that part a negative. Where an op reorders frames, each carries the number of its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ndavid.errors import ConfigError
from ndavid.nda.base import NegativeAugmentation, ShapeError, is_clip, num_frames
from ndavid.nda.compose import OPS, to_spec

_INK, _MUTED, _RULE, _ACCENT, _PAPER = "#1b1f24", "#6b7480", "#dfe3e8", "#d9480f", "#ffffff"
_MARGIN, _GAP, _LABEL = 28, 6, 190
# What stands under the name of an op that is drawn with its defaults.
_NOTES = {
    "original": "the sample",
    "jigsaw": "2 x 2 patches",
    "stitch": "half of another",
    "mixup": "blend with another",
    "cutout": "a square blotted out",
    "cut_mix": "a box of another",
    "patch_resample": "tiled random patches",
    "frame_shuffle": "frames in random order",
    "temporal_jigsaw": "4 segments reordered",
    "frame_repeat": "one frame frozen",
    "reverse": "played backwards",
    "cuboid_jigsaw": "2 x 2 x 2 cuboids",
    "temporal_stitch": "then another clip",
}


def preview(
    batch: Tensor,
    ops: Sequence[NegativeAugmentation] | None = None,
    *,
    frames: int = 8,
    frame_height: int = 112,
    seed: int = 0,
    title: str = "Negative data augmentation",
) -> Image.Image:
    """Draw the first sample of a batch as every op breaks it.

    Args:
        batch: uint8 ``(B, C, T, H, W)`` or ``(B, C, H, W)`` with 1 or 3 channels; samples after the
            first serve as partners. With a batch of one, its mirror image (of a clip, half a clip
            later) stands in.
        ops: what to draw; by default every op that takes this kind of input.
        frames: frames across, evenly spaced over the clip.
        frame_height: height of a frame in the picture, in pixels.
        seed: of the one generator that all draws come from.

    Raises:
        ValueError: not uint8, or an op cannot take this input (``ShapeError``).
    """
    if batch.dtype != torch.uint8:
        raise ValueError(f"preview draws uint8 frames, got {batch.dtype}")
    if batch.shape[0] == 1:
        batch = torch.cat((batch, _stand_in(batch)))
    batch = _fitted(batch)
    if ops is None:
        ops = [op for kind in OPS.values() if _takes(op := kind(), batch)]
    generator = torch.Generator().manual_seed(seed)
    rows = [_Row("original", batch[0])]
    for op in ops:
        broken, params, _ = op.broken(batch, generator=generator)
        changed = op.changed_mask(params, batch.shape)[0].float().mean().item()
        source = params["source"][0].tolist() if "source" in params else None
        rows.append(_Row(_label(op), broken[0], changed, source))
    return _draw_rows(rows, frames, frame_height, title)


class _Row(NamedTuple):
    label: str
    sample: Tensor  # (C, T, H, W) or (C, H, W)
    changed: float | None = None  # share of its pixels
    source: list[int] | None = None  # the input frame that each frame shows, where it may differ


def _takes(op: NegativeAugmentation, batch: Tensor) -> bool:
    try:
        op.check(tuple(batch.shape))
    except ShapeError:
        return False
    return True


def _stand_in(batch: Tensor) -> Tensor:
    """A partner for a lone sample: mirrored, and in time shifted by half the clip."""
    mirrored = batch.flip(-1)
    return mirrored.roll(batch.shape[2] // 2, 2) if is_clip(batch.shape) else mirrored


def _fitted(batch: Tensor) -> Tensor:
    """The part of the batch that the default grids divide: multiples of 4 frames and 2 pixels."""
    batch = batch[..., : batch.shape[-2] // 2 * 2, : batch.shape[-1] // 2 * 2]
    frames = num_frames(batch.shape)
    return batch[:, :, : frames // 4 * 4] if is_clip(batch.shape) and frames >= 4 else batch


def _label(op: NegativeAugmentation) -> str:
    try:
        return to_spec(op)
    except ConfigError:
        return op.name


def _draw_rows(rows: Sequence[_Row], frames: int, height: int, title: str) -> Image.Image:
    first = rows[0].sample
    total = first.shape[1] if first.dim() == 4 else 1
    shown = torch.linspace(0, total - 1, min(frames, total)).round().long().tolist()
    width = round(height * first.shape[-1] / first.shape[-2])
    row_step, top, left = height + 3 * _GAP, _MARGIN + 64, _MARGIN + _LABEL
    size = (left + len(shown) * (width + _GAP) - _GAP + _MARGIN, top + len(rows) * row_step + _GAP)
    canvas = Image.new("RGB", size, _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, _MARGIN - 6), title, fill=_INK, font=_font(22))
    for line, row in enumerate(rows):
        y = top + line * row_step
        _draw_label(pen, row, y)
        strip = row.sample if row.sample.dim() == 4 else row.sample.unsqueeze(1)
        for column, index in enumerate(shown):
            x = left + column * (width + _GAP)
            if index < strip.shape[1]:  # ops that crop leave fewer frames
                canvas.paste(_picture(strip[:, index], (width, height)), (x, y))
                if row.source:
                    _draw_badge(pen, row.source[index] + 1, x, y)
    if total > 1:
        for column, index in enumerate(shown):
            at = (left + column * (width + _GAP), top - 22)
            pen.text(at, f"frame {index + 1}", fill=_MUTED, font=_font(12))
    rule = top + height + 3 * _GAP // 2
    pen.line((_MARGIN, rule, size[0] - _MARGIN, rule), _RULE)
    return canvas


def _draw_badge(pen: ImageDraw.ImageDraw, number: int, x: int, y: int) -> None:
    wide = 10 + 8 * len(str(number))
    pen.rounded_rectangle((x + 5, y + 5, x + 5 + wide, y + 22), radius=4, fill=_INK)
    pen.text((x + 5 + wide / 2, y + 13), str(number), fill=_PAPER, font=_font(12), anchor="mm")


def _draw_label(pen: ImageDraw.ImageDraw, row: _Row, y: int) -> None:
    name, _, arguments = row.label.partition(":")
    pen.text((_MARGIN, y + 8), name, fill=_INK, font=_font(17))
    note = arguments.replace(",", ", ") or _NOTES.get(name, "")
    pen.text((_MARGIN, y + 32), note, fill=_MUTED, font=_font(13))
    if row.changed is None:
        return
    x, right = _MARGIN, _MARGIN + _LABEL - 60
    pen.rectangle((x, y + 60, right, y + 64), fill=_RULE)
    if row.changed:
        pen.rectangle((x, y + 60, x + round(row.changed * (right - x)), y + 64), fill=_ACCENT)
    pen.text((x, y + 70), f"{row.changed:.0%} changed", fill=_MUTED, font=_font(12))


def _picture(frame: Tensor, size: tuple[int, int]) -> Image.Image:
    """One frame ``(C, H, W)`` as a picture of ``size`` (width, height)."""
    pixels = frame.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
