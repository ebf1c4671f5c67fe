"""The figures of an evaluation on anomalies: distributions of scores, and what corruption does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from torch import Tensor

from ndavid.evaluation.figure_text import shortened
from ndavid.evaluation.figures import INK, PALETTE, STYLE, to_svg

_BINS = 60
# Of all scores, the share on either side that may lie outside: a few far ones would hide the rest.
_CUT = 0.002


def histogram_figure(known: Tensor, others: Mapping[str, Tensor], label: str) -> bytes:
    """Draws known images' scores as a filled histogram and others' as outlines over it; SVG.

    Args:
        known: (M,) scores.
        others: Scores (N,) by the name in the legend.
        label: Of the axis.
    """
    everything = np.concatenate([known.numpy(), *(scores.numpy() for scores in others.values())])
    low, high = np.quantile(everything, [_CUT, 1 - _CUT])
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1).tolist()
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 2.6))
        axes = figure.add_subplot()
        filled = axes.hist(_inside(known, edges), edges, density=True, color=PALETTE[0], alpha=0.35)
        handles: list[Any] = [filled[2]]
        for colour, scores in zip(_shades(len(others)), others.values(), strict=True):
            outline = axes.hist(
                _inside(scores, edges), edges, density=True, histtype="step", color=colour, lw=1.6
            )
            handles.append(outline[2])
        # Named one by one: left to itself, a legend has outlines before what is filled.
        handles = [handle[0] for handle in handles]
        axes.legend(handles, shortened(["known", *others]), loc="upper left", bbox_to_anchor=(1, 1))
        axes.set_xlabel(label)
        axes.set_ylabel("density")
        axes.set_yticks([])
        return to_svg(figure)


def severity_figure(values: Mapping[str, Sequence[float]], severities: Sequence[int]) -> bytes:
    """Draws AUROC as a table of shades, one row a corruption, one column a severity; SVG."""
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(2.2 + 0.75 * len(severities), 0.8 + 0.3 * len(values)))
        axes = figure.add_subplot()
        table = np.array(list(values.values()))
        # White where the score is blind; below a half it has things the wrong way round.
        axes.imshow(table, cmap="RdBu", vmin=0, vmax=1, aspect="auto")
        for (row, column), value in np.ndenumerate(table):
            colour = "white" if abs(value - 0.5) > 0.35 else INK
            axes.text(
                column, row, f"{100 * value:.0f}", ha="center", va="center", color=colour, size=8
            )
        axes.set_xticks(range(len(severities)), [str(severity) for severity in severities])
        axes.set_yticks(range(len(values)), [name.replace("_", " ") for name in values])
        axes.set_xlabel("severity (AUROC in %)")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        return to_svg(figure)


def _inside(scores: Tensor, edges: Sequence[float]) -> np.ndarray:
    """Scores with those beyond the ends put into the first and last bin."""
    return np.clip(scores.numpy(), edges[0], edges[-1])


def _shades(count: int) -> Sequence[str]:
    """One strong colour for one set, darkening shades for the severities of a corruption."""
    if count == 1:
        return [PALETTE[1]]
    shades = matplotlib.colormaps["YlOrRd"]
    return [to_hex(shades(place)) for place in np.linspace(0.35, 1, count)]
