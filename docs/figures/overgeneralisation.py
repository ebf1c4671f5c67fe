"""Draws what broken images do to a model that over-generalises: docs/figures/overgeneralisation.png

    python docs/figures/overgeneralisation.py

After figure 3 of Sinha et al. 2021, "Negative Data Augmentation", as numbers instead of a sketch.
Data live on two lobes with a hole between them. A discriminator has seen a finite sample of them,
and is as smooth as that sample asks for: the data it knows are the sample blurred by a Gaussian
(Silverman's rule for its width, which knows nothing of lobes), and they leak into the hole. Against
it the best generator leaks too. Broken images in the hole, of which there are as many as one likes,
take the leak away.

Nothing is trained: against the best discriminator, every objective of ndavid.losses but hinge and
wasserstein has the same best generator, in closed form (docs/negatives_theory.md), and the tests
play the game with the losses themselves to the same end. Seconds on one core.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray

from ndavid.evaluation.figures import FAINT, INK, PALETTE, STYLE

Array = NDArray[np.float64]

# The line from -1 to 1, in cells; all distributions are shares of the cells and sum to 1.
LINE: Array = np.linspace(-1, 1, 401)
LOBES = ((-0.66, -0.20), (0.20, 0.66))
LAMBDA = 0.25  # the paper's share of generated images in what the discriminator is to reject
STILL_DATA = 0.15  # share of the broken images that are data, in the panels where some are
SAMPLES = 60  # of the three panels with densities
SIZES = (30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000)
REPEATS = 24  # samples of each size

DATA_COLOUR, PLAIN_COLOUR, NDA_COLOUR, OVERLAP_COLOUR = FAINT, PALETTE[1], PALETTE[0], PALETTE[4]
BROKEN_COLOUR = PALETTE[2]


def best_generator(data: Array, broken: Array, share: float) -> Array:
    """The generator that no discriminator tells apart better than any other generator.

    It is ``max(0, level * data - (1 - share) * broken) / share``, with the level at which it sums
    to 1: as data minus what the broken images already supply, where that is not negative.

    Args:
        data, broken: (K,) distributions.
        share: lambda, in (0, 1]: of generated images in the mixture with broken ones.
    """
    supplied = (1 - share) * broken
    inside = data > 0
    # Cells join one by one as the level rises; it is right when the next one would not join yet.
    joins_at = supplied[inside] / data[inside]
    order = np.argsort(joins_at)
    levels = (share + np.cumsum(supplied[inside][order])) / np.cumsum(data[inside][order])
    level = levels[np.flatnonzero(levels > joins_at[order])[-1]]
    return np.maximum(0, level * data - supplied) / share


def within(low: float, high: float) -> NDArray[np.bool_]:
    """Which cells of the line lie between two places."""
    return (low < LINE) & (high > LINE)


def two_lobes() -> Array:
    """The data: two half waves with nothing between them."""
    density = np.zeros_like(LINE)
    for low, high in LOBES:
        inside = within(low, high)
        density[inside] += np.sin(np.pi * (LINE[inside] - low) / (high - low))
    return density / density.sum()


def broken_in_the_hole() -> Array:
    """Broken images where there are no data: between the lobes, and beyond them."""
    outside = two_lobes() == 0
    return outside / outside.sum()


def broken_on_data() -> Array:
    """Broken images from an op that leaves some images whole: 15% of them lie on the right lobe.

    As if the op could not break one kind of image: a jigsaw of a plain wall, say.
    """
    whole = within(*LOBES[1]) / within(*LOBES[1]).sum()
    return (1 - STILL_DATA) * broken_in_the_hole() + STILL_DATA * whole


def known_data(sample: Array) -> Array:
    """The data that a smooth discriminator knows: shares (K,) of the sample, blurred.

    Args:
        sample: (N,) places on the line.
    """
    counts = np.histogram(sample, bins=_edges())[0] / len(sample)
    width = 1.06 * np.std(sample) * len(sample) ** -0.2
    kernel = np.exp(-0.5 * ((LINE[:, None] - LINE[None, :]) / width) ** 2)
    return (kernel / kernel.sum(axis=0)) @ counts


def draw_sample(size: int, rng: np.random.Generator) -> Array:
    """(size,) places drawn from the data."""
    return rng.choice(LINE, size=size, p=two_lobes())


def mass_in_hole(distribution: Array) -> float:
    """The share of a distribution that lies between the lobes."""
    return float(distribution[within(LOBES[0][1], LOBES[1][0])].sum())


def distance(first: Array, second: Array) -> float:
    """Total variation: the share that would have to move to make one the other."""
    return float(np.abs(first - second).sum() / 2)


@dataclass(frozen=True)
class Trend:
    """How far the best generator is from the data, by the size of the sample.

    Attributes:
        mean: (sizes,) of total variation over repeats.
        limit: with all data known.
    """

    mean: Array
    limit: float


def trends(broken: dict[str, tuple[Array, float]], seed: int = 0) -> dict[str, Trend]:
    """The trend for each (broken distribution, share), on the same samples."""
    rng = np.random.default_rng(seed)
    data = two_lobes()
    distances = {name: np.zeros((len(SIZES), REPEATS)) for name in broken}
    for row, size in enumerate(SIZES):
        for repeat in range(REPEATS):
            known = known_data(draw_sample(size, rng))
            for name, (distribution, share) in broken.items():
                model = best_generator(known, distribution, share)
                distances[name][row, repeat] = distance(model, data)
    return {
        name: Trend(
            distances[name].mean(axis=1), distance(best_generator(data, distribution, share), data)
        )
        for name, (distribution, share) in broken.items()
    }


def _edges() -> Array:
    half = (LINE[1] - LINE[0]) / 2
    return np.append(LINE - half, LINE[-1] + half)


_STYLE: dict[Any, Any] = STYLE | {
    "font.size": 9.5,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.grid": False,
    "legend.fontsize": 9,
}


def draw(path: Path) -> None:
    """Writes the figure as PNG."""
    sample = draw_sample(SAMPLES, np.random.default_rng(4))
    known = known_data(sample)
    nothing, hole, on_data = np.zeros_like(LINE), broken_in_the_hole(), broken_on_data()
    with matplotlib.rc_context(_STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12)
        figure = Figure(figsize=(10.4, 6.6), layout=layout)
        grid = figure.subplots(2, 2)
        plain = best_generator(known, nothing, 1.0)
        with_hole = best_generator(known, hole, LAMBDA)
        carved = best_generator(two_lobes(), on_data, LAMBDA)
        _draw_densities(
            grid[0, 0],
            "a  Without NDA: the model leaks into the hole",
            plain,
            PLAIN_COLOUR,
            f"{100 * mass_in_hole(plain):.0f}% of the model\nin the hole",
            sample=sample,
        )
        _draw_densities(
            grid[0, 1],
            "b  NDA in the hole: the leak is gone",
            with_hole,
            NDA_COLOUR,
            f"{100 * mass_in_hole(with_hole):.0f}% of the model\nin the hole",
            sample=sample,
            broken=hole,
        )
        _draw_densities(
            grid[1, 0],
            "c  NDA that hits data: the model moves",
            carved,
            OVERLAP_COLOUR,
            f"all data known:\n{100 * distance(carved, two_lobes()):.0f}% of the model\nmisplaced",
            broken=on_data,
        )
        _draw_trends(grid[1, 1], nothing, hole, on_data)
        figure.savefig(path, format="png", dpi=150, metadata={"Software": None})


def _draw_densities(
    axes: Any,
    title: str,
    model: Array,
    colour: str,
    note: str,
    *,
    sample: Array | None = None,
    broken: Array | None = None,
) -> None:
    density = 1 / (LINE[1] - LINE[0])
    top = 3.6
    axes.axvspan(LOBES[0][1], LOBES[1][0], color="#f3f5f7", lw=0, zorder=0)
    data = two_lobes() * density
    axes.fill_between(LINE, data, color=DATA_COLOUR, alpha=0.28, lw=0, label="data")
    axes.plot(LINE, model * density, color=colour, lw=2.2, label="best generator")
    if broken is not None:
        shown = np.where(broken > 0, broken * density, np.nan)
        axes.plot(LINE, shown, color=BROKEN_COLOUR, lw=1.8, ls=(0, (4, 2)), label="NDA")
    if sample is not None:
        axes.plot(
            sample,
            np.full_like(sample, -0.13),
            "|",
            color=INK,
            ms=7,
            mew=0.8,
            alpha=0.55,
            label=f"{len(sample)} samples",
        )
    axes.annotate(
        note,
        (0, 0.97),
        xycoords=("data", "axes fraction"),
        ha="center",
        va="top",
        color=colour,
        fontsize=9.5,
    )
    axes.set(title=title, xlim=(-1, 1), ylim=(-0.28, top), ylabel="density", xticks=[])
    axes.spines["bottom"].set_visible(False)
    axes.axhline(0, color="#c3c9d0", lw=0.8, zorder=1)
    axes.legend(loc="upper left", handlelength=1.6, borderaxespad=0.1)


def _draw_trends(axes: Any, nothing: Array, hole: Array, on_data: Array) -> None:
    found = trends(
        {
            "NDA that hits data": (on_data, LAMBDA),
            "without NDA": (nothing, 1.0),
            "NDA in the hole": (hole, LAMBDA),
        }
    )
    colours = (OVERLAP_COLOUR, PLAIN_COLOUR, NDA_COLOUR)
    for (name, trend), colour in zip(found.items(), colours, strict=True):
        axes.plot(SIZES, trend.mean, "o-", color=colour, lw=1.8, ms=4.5, label=name)
    limit = found["NDA that hits data"].limit
    axes.axhline(limit, color=OVERLAP_COLOUR, lw=1, ls=(0, (4, 3)))
    axes.annotate(
        "with all data known",
        (SIZES[-1], limit),
        (0, -4),
        textcoords="offset points",
        color=OVERLAP_COLOUR,
        fontsize=9,
        ha="right",
        va="top",
    )
    axes.set_xscale("log")
    axes.set(
        title="d  The same, with more and more samples",
        xlabel="samples seen",
        ylabel="total variation to the data",
        ylim=(0, 0.45),
        yticks=[0, 0.1, 0.2, 0.3, 0.4],
    )
    axes.grid(True)
    axes.legend(loc="upper right")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".png"))
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
