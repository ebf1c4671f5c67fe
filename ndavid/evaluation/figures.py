"""The figures of a report, each returned as bytes; no window, no global matplotlib state."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter
from PIL import Image
from torch import Tensor

from ndavid.evaluation.figure_text import (
    foreign_texts,
    is_foreign,
    room_for,
    shortened,
    without_glyph_warnings,
)
from ndavid.evaluation.intervals import Metric

PALETTE = ("#2b5f9e", "#d1742c", "#3b8a5d", "#8a5a9e", "#b04a5a", "#6f7c2e", "#4a8fa0", "#777777")
INK = "#22272e"
FAINT = "#8a929c"
GRID = "#e4e7eb"

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#c3c9d0",
    "axes.linewidth": 0.8,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    # Names are names: "$5" is no formula.
    "text.parse_math": False,
    # A fixed salt and no date: the same numbers give the same bytes.
    "svg.hashsalt": "ndavid",
}
"""matplotlib's settings for every figure"""
_MAX_POINTS = 400
_PADDING = 0.1  # inches


def to_svg(figure: Figure) -> bytes:
    """Returns the figure as SVG, the same bytes for the same figure.

    Letters are shapes; where matplotlib's font lacks some, all are text.
    """
    stream = io.BytesIO()
    foreign = foreign_texts(figure)
    box = room_for(figure, foreign).padded(_PADDING) if foreign else "tight"
    with (
        matplotlib.rc_context({"svg.fonttype": "none" if foreign else "path"}),
        without_glyph_warnings(),
    ):
        figure.savefig(
            stream, format="svg", bbox_inches=box, pad_inches=_PADDING, metadata={"Date": None}
        )
    return stream.getvalue()


def accuracy_figure(rows: Sequence[tuple[str, Metric]], chance: float | None, label: str) -> bytes:
    """Draws one value with its 95% interval a row, and the chance level; SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.55 + 0.42 * len(rows)))
        axes = figure.add_subplot()
        for row, (_, metric) in enumerate(rows):
            colour = PALETTE[row % len(PALETTE)]
            axes.plot([metric.low, metric.high], [row, row], color=colour, lw=2.2, alpha=0.55)
            axes.plot([metric.value], [row], "o", color=colour, ms=6.5)
        if chance is not None:
            axes.axvline(chance, color=FAINT, lw=1, ls=(0, (4, 3)))
            axes.annotate(
                f"chance {100 * chance:.1f}%",
                (chance, 1),
                (4, -1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=FAINT,
                fontsize=8.5,
                va="top",
            )
        axes.set_yticks(range(len(rows)), shortened([name for name, _ in rows]))
        axes.set_ylim(len(rows) - 0.5, -0.7)
        right = max([metric.high for _, metric in rows] + [chance or 0.0])
        axes.set_xlim(0, min(1.0, right * 1.08 + 0.02))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.set_xlabel(f"{label}, with 95% interval")
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
        return to_svg(figure)


def curves_figure(panels: Mapping[str, Mapping[str, tuple[list[float], list[float]]]]) -> bytes:
    """Draws small multiples: ``{quantity: {run: (steps, values)}}``, one panel a quantity; SVG.

    A run with many points is drawn as its running mean over a faint trace, thinned to what a
    screen can show.
    """
    names = list(dict.fromkeys(name for runs in panels.values() for name in runs))
    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(names)}
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(3.5 * columns, 2.35 * rows + 0.4), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (quantity, runs) in zip(grid.flat, panels.items(), strict=False):
            for name, (steps, values) in runs.items():
                _draw_curve(axes, steps, values, colours[name])
            axes.set_title(quantity)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(5))
        if len(names) > 1:
            handles = [matplotlib.lines.Line2D([], [], color=colours[name], lw=2) for name in names]
            shown = shortened(names)
            figure.legend(
                handles, shown, loc="outside upper left", ncols=_legend_columns(shown, columns)
            )
        return to_svg(figure)


def _legend_columns(names: Sequence[str], panels: int) -> int:
    """How many names fit side by side over so many panels; their fonts may be the reader's."""
    if any(map(is_foreign, names)):
        return 1
    letters = 40 * panels  # that fit over one
    return max(1, min(4, len(names), letters // (max(map(len, names)) + 6)))


def _draw_curve(axes: Any, steps: list[float], values: list[float], colour: str) -> None:
    x, y = np.asarray(steps, float), np.asarray(values, float)
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(y) == 0:
        return
    if len(y) < 25:
        axes.plot(x, y, color=colour, lw=1.6, marker="o", ms=3)
        return
    window = max(3, len(y) // 25)
    total = np.cumsum(np.concatenate([[0.0], y]))
    start = np.maximum(np.arange(len(y)) - window + 1, 0)
    mean = (total[1:] - total[start]) / (np.arange(len(y)) - start + 1)
    stride = max(1, len(y) // _MAX_POINTS)
    axes.plot(x[::stride], y[::stride], color=colour, lw=0.7, alpha=0.25)
    axes.plot(x[::stride], mean[::stride], color=colour, lw=1.7)


def confusion_figure(counts: Tensor, classes: Sequence[str]) -> bytes:
    """Draws a confusion matrix, rows (true classes) normalised to 1; SVG.

    Args:
        counts: (C, C) number of videos by true class (row) and predicted class (column).
        classes: C names.
    """
    total = counts.sum(1, keepdim=True).clamp(min=1)
    share = (counts / total).numpy()
    number = len(classes)
    side = min(7.6, 2.2 + 0.34 * number)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(side, side))
        axes = figure.add_subplot()
        image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if number <= 30:
            size = 9 if number <= 12 else 7
            names = shortened(classes)
            axes.set_xticks(
                range(number),
                names,
                rotation=45,
                ha="right",
                rotation_mode="anchor",
                fontsize=size,
            )
            axes.set_yticks(range(number), names, fontsize=size)
        else:
            axes.set_xticks([])
            axes.set_yticks([])
        if number <= 12:
            for row, column in np.argwhere(counts.numpy() > 0):
                axes.text(
                    column,
                    row,
                    f"{int(counts[row, column])}",
                    ha="center",
                    va="center",
                    fontsize=8,
                    color="white" if share[row, column] > 0.5 else INK,
                )
        bar: Any = figure.colorbar(
            image, ax=axes, fraction=0.04, pad=0.03, format=PercentFormatter(1)
        )
        bar.outline.set_visible(False)
        bar.ax.tick_params(length=0, labelsize=8)
        return to_svg(figure)


def frame_sheet(frames: Tensor, columns: int = 2, height: int = 96) -> bytes:
    """Sets frames (T, 3, H, W) uint8 in rows of ``columns``, ``height`` pixels each; JPEG."""
    width = max(1, round(frames.shape[-1] * height / frames.shape[-2]))
    gap = 2
    rows = math.ceil(len(frames) / columns)
    size = (columns * (width + gap) - gap, rows * (height + gap) - gap)
    sheet = Image.new("RGB", size, "white")
    for place, frame in enumerate(frames):
        pixels = frame.movedim(0, -1).contiguous().numpy()
        tile = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        row, column = divmod(place, columns)
        sheet.paste(tile, (column * (width + gap), row * (height + gap)))
    stream = io.BytesIO()
    sheet.save(stream, format="JPEG", quality=85)
    return stream.getvalue()
