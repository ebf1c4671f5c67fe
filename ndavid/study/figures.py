"""A study's figure: every arm's paired difference to the baseline, one panel a metric."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from textwrap import fill

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from ndavid.evaluation.figure_text import escaped, shortened
from ndavid.evaluation.figures import FAINT, INK, PALETTE, STYLE
from ndavid.study.paired import Difference

_PANELS_A_ROW = 3
_TITLE_WIDTH = 45  # characters
_TOLD, _UNTOLD = PALETTE[0], "#9aa3ad"
_THICK, _THIN, _PALE = 4.2, 1.2, 0.45


def difference_figure(
    found: Sequence[Difference],
    *,
    baseline: str,
    percent: Mapping[tuple[str, str], bool],
    lower_is_better: Collection[tuple[str, str]] = (),
    path: Path,
) -> Path:
    """Writes a PNG of differences with their intervals; arms are rows.

    The thick line is the interval over items, the thin one over items and seeds; ticks are single
    seeds. Filled and blue: the thin one excludes 0. Of two seeds the thin one can be twelve times
    as wide as their distance: it ends in an arrow where it leaves the panel.

    Args:
        found: Differences of one method.
        baseline: The arm subtracted.
        percent: (measurement, metric) -> whether it is shown in per cent.
        lower_is_better: (measurement, metric) of which that is so.
        path: Where to.
    """
    panels = list(dict.fromkeys((d.measurement, d.metric) for d in found))
    arms = list(dict.fromkeys(d.arm for d in found))
    columns = min(_PANELS_A_ROW, len(panels))
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(STYLE):
        height = rows * (0.85 + 0.27 * len(arms)) + 0.4
        figure = Figure(figsize=(1.4 + 3.1 * max(columns, 2), height), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (measurement, metric) in zip(grid.flat, panels, strict=False):
            scale = 100.0 if percent.get((measurement, metric), False) else 1.0
            drawn = [d for d in found if (d.measurement, d.metric) == (measurement, metric)]
            room = _room(drawn, scale)
            for difference in drawn:
                _draw(axes, difference, arms.index(difference.arm), scale, room)
            axes.axvline(0, color=FAINT, lw=1, zorder=0)
            # A metric may be called by all that it is measured on.
            axes.set_title(fill(escaped(f"{measurement}: {metric}"), _TITLE_WIDTH), color=INK)
            axes.set_yticks(range(len(arms)), [escaped(arm) for arm in shortened(arms)])
            axes.set_ylim(len(arms) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="y", visible=False)
            axes.xaxis.set_major_locator(MaxNLocator(5))
            unit = ", points" if scale == 100 else ""
            reading = "; lower is better" if (measurement, metric) in lower_is_better else ""
            axes.set_xlabel(f"minus {escaped(baseline)}{unit}{reading}")
        figure.legend(handles=_legend(), loc="outside lower left", ncols=4, fontsize=8.5)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130)
    return path


def _room(drawn: Sequence[Difference], scale: float) -> tuple[float, float]:
    """How far thin lines may reach: as far again on each side as all else is wide."""
    ends = [0.0]
    for difference in drawn:
        ends += difference.by_seed_values
        if difference.by_item is not None:
            ends += [difference.by_item.low, difference.by_item.high]
    low, high = min(ends) * scale, max(ends) * scale
    return 2 * low - high, 2 * high - low


def _draw(
    axes: Axes, difference: Difference, row: int, scale: float, room: tuple[float, float]
) -> None:
    told = difference.is_told()
    colour = _TOLD if told else _UNTOLD
    wide = difference.deciding
    if wide is not None:
        low, high = max(wide.low * scale, room[0]), min(wide.high * scale, room[1])
        axes.plot([low, high], [row, row], color=colour, lw=_THIN)
        for end, whole, arrow in ((low, wide.low, "<"), (high, wide.high, ">")):
            if end != whole * scale:
                axes.plot([end], [row], arrow, color=colour, ms=5)
    if difference.by_item is not None:
        low, high = difference.by_item.low * scale, difference.by_item.high * scale
        thick = axes.plot([low, high], [row, row], color=colour, lw=_THICK, alpha=_PALE)
        thick[0].set_solid_capstyle("butt")
    singles = [value * scale for value in difference.by_seed_values]
    axes.plot(singles, [row] * len(singles), "|", color=colour, ms=7)
    face = colour if told else "white"
    axes.plot([difference.value * scale], [row], "o", color=colour, mfc=face, ms=5.5)


def _legend() -> list[Line2D]:
    """What the marks mean, in a colour that no panel uses."""
    return [
        Line2D([], [], color=INK, lw=_THICK, alpha=_PALE, label="95% by item"),
        Line2D([], [], color=INK, lw=_THIN, label="95% by item and seed"),
        Line2D([], [], color=INK, marker="|", ls="", ms=7, label="single seeds"),
        Line2D([], [], color=_TOLD, marker="o", ls="", ms=5.5, label="mean, interval excludes 0"),
    ]
