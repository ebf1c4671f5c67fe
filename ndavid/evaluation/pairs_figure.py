"""A picture of samples above their broken versions: images side by side, clips as strips.

A frame of a clip carries its number; a frame of a broken clip the number of the frame that it is,
where it is one of them whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_INK, _MUTED, _ACCENT, _PAPER = "#1b1f24", "#6b7480", "#d9480f", "#ffffff"
_MARGIN, _GAP, _LABEL = 24, 4, 96
_TALL, _MOST_FRAMES = 88, 16


def draw_pairs(
    before: Tensor, after: Tensor, used: Sequence[bool], *, title: str, note: str = ""
) -> Image.Image:
    """Draws B samples, each above its broken version.

    Args:
        before: uint8 (B, 3, H, W) or (B, 3, T, H, W).
        after: the same, or smaller where an operation crops.
        used: of each sample, whether its broken version counts as one.
        title: heading.
        note: under it, smaller.
    """
    pairs = [(before[i], after[i], bool(used[i])) for i in range(len(before))]
    blocks = [_strips(pair) for pair in pairs] if before.ndim == 5 else [_tiles(pairs)]
    top = _MARGIN + (56 if note else 36)
    width = max(
        _MARGIN * 2 + max(block.width for block in blocks),
        _MARGIN * 2 + round(_font(20).getlength(title)),
        _MARGIN * 2 + round(_font(13).getlength(note)),
    )
    height = top + sum(block.height + 3 * _GAP for block in blocks) + _MARGIN - 3 * _GAP
    canvas = Image.new("RGB", (width, height), _PAPER)
    pen = ImageDraw.Draw(canvas)
    pen.text((_MARGIN, _MARGIN - 6), title, fill=_INK, font=_font(20))
    pen.text((_MARGIN, _MARGIN + 24), note, fill=_MUTED, font=_font(13))
    for block in blocks:
        canvas.paste(block, (_MARGIN, top))
        top += block.height + 3 * _GAP
    return canvas


def _strips(pair: tuple[Tensor, Tensor, bool]) -> Image.Image:
    """One clip's frames above those of its broken version."""
    before, after, used = pair
    frames = before.shape[1]
    shown = torch.linspace(0, frames - 1, min(frames, _MOST_FRAMES)).round().long().tolist()
    sources = _sources(before, after)
    rows = (
        [(before[:, at], str(at + 1)) for at in shown],
        [(after[:, at], sources[at]) for at in shown if at < after.shape[1]],
    )
    return _rows(rows, ("sample", "broken"), "" if used else "unchanged, masked")


def _tiles(pairs: Sequence[tuple[Tensor, Tensor, bool]]) -> Image.Image:
    """Images side by side above their broken versions."""
    rows = (
        [(before, "") for before, _, _ in pairs],
        [(after, "" if used else "unchanged") for _, after, used in pairs],
    )
    return _rows(rows, ("sample", "broken"), "")


def _rows(
    rows: Sequence[Sequence[tuple[Tensor, str]]], labels: Sequence[str], remark: str
) -> Image.Image:
    """Rows of pictures (C, H, W), each with a badge, under each other."""
    high, wide = rows[0][0][0].shape[-2:]
    size = (max(round(_TALL * wide / high), 1), _TALL)
    step = size[0] + _GAP
    canvas = Image.new("RGB", (_LABEL + step * len(rows[0]) - _GAP, 2 * _TALL + _GAP), _PAPER)
    pen = ImageDraw.Draw(canvas)
    for line, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = line * (_TALL + _GAP)
        pen.text((0, y + 4), label, fill=_INK, font=_font(15))
        if line:
            pen.text((0, y + 24), remark.replace(", ", ",\n"), fill=_ACCENT, font=_font(11))
        for column, (pixels, badge) in enumerate(row):
            x = _LABEL + column * step
            canvas.paste(_picture(pixels, size), (x, y))
            if badge:
                _badge(pen, badge, x, y)
    return canvas


def _sources(before: Tensor, after: Tensor) -> list[str]:
    """Of each frame of ``after`` (C, T, H, W), the number of the frame of ``before`` that it is."""
    if before[:, 0].shape != after[:, 0].shape:
        return [""] * after.shape[1]
    names = []
    for at in range(after.shape[1]):
        same = (before == after[:, at : at + 1]).flatten(2).all(2).all(0)
        own = at < len(same) and bool(same[at])
        names.append(str((at if own else int(same.int().argmax())) + 1) if same.any() else "")
    return names


def _badge(pen: ImageDraw.ImageDraw, text: str, x: int, y: int) -> None:
    wide = round(_font(11).getlength(text)) + 8
    pen.rounded_rectangle((x + 3, y + 3, x + 3 + wide, y + 18), radius=4, fill=_INK)
    pen.text((x + 3 + wide / 2, y + 10), text, fill=_PAPER, font=_font(11), anchor="mm")


def _picture(pixels: Tensor, size: tuple[int, int]) -> Image.Image:
    """uint8 (C, H, W) as a picture of ``size``; small ones keep their pixels' edges."""
    picture = Image.fromarray(pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())
    grows = picture.height < size[1]
    return picture.resize(size, Image.Resampling.NEAREST if grows else Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
