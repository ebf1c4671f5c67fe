"""Names of classes, runs and encoders in figures: short enough, and in letters that can be drawn.

matplotlib comes with one font for the figures. A letter that it lacks becomes a box, and letters
that join or run from right to left come out apart and reversed. So a figure with such names keeps
them as text in its SVG, for the fonts of whoever reads the page; a picture of pixels has escapes.
"""

from __future__ import annotations

import functools
import math
import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.transforms import Bbox

# Beyond what matplotlib takes a letter that it lacks to be wide, in units of the font's size: a
# Chinese character is 1 wide, an emoji 1.25, the box 0.6.
_WIDER = 0.65
_POINTS_PER_INCH = 72


def is_foreign(name: str) -> bool:
    """Returns whether a figure would show boxes, or letters in the wrong form or order."""
    return any(_lacks(letter) or _is_joined(letter) for letter in name)


def escaped(name: str) -> str:
    """Returns the name with an escape (``\\u732b``) for each letter that cannot be drawn."""
    return "".join(
        letter.encode("unicode_escape").decode() if _lacks(letter) else letter for letter in name
    )


def shortened(names: Sequence[str], most: int = 32) -> list[str]:
    """Returns names of at most ``most`` letters, cut in the middle; whole where two became one.

    Letters as wide as Chinese ones count twice.
    """
    short = [_cut(name, most) for name in names]
    count = Counter(short)
    return [name if count[cut] > 1 else cut for name, cut in zip(names, short, strict=True)]


def foreign_texts(figure: Figure) -> list[Text]:
    """Returns the figure's texts whose letters have to be left to the reader's fonts."""
    for axes in figure.axes:
        # Labels of ticks get their text when they are asked for.
        axes.get_xticklabels()
        axes.get_yticklabels()
    return [text for text in figure.findobj(Text) if is_foreign(text.get_text())]


def room_for(figure: Figure, texts: Sequence[Text]) -> Bbox:
    """Returns the figure's tight box in inches, with room for texts that will be wider."""
    with without_glyph_warnings():
        figure.draw_without_rendering()
        boxes = [figure.get_tightbbox(), *(_grown(text, figure.dpi) for text in texts)]
    return Bbox.union(boxes)


def _grown(text: Text, dpi: float) -> Bbox:
    """The box, in inches, of a text in the reader's font: it grows away from where it is held."""
    box = text.get_window_extent()
    wider = _WIDER * float(text.get_fontsize()) / _POINTS_PER_INCH * _wide_letters(text)
    turned = math.radians(text.get_rotation())
    across, up = wider * math.cos(turned), wider * math.sin(turned)
    to_the_left = text.get_horizontalalignment() != "left"
    to_the_right = text.get_horizontalalignment() != "right"
    return Bbox.from_extents(
        box.x0 / dpi - to_the_left * across,
        box.y0 / dpi - to_the_left * up,
        box.x1 / dpi + to_the_right * across,
        box.y1 / dpi + to_the_right * up,
    )


@contextmanager
def without_glyph_warnings() -> Iterator[None]:
    """Inside, matplotlib is silent about letters that it will not have to draw."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support")
        yield


def _wide_letters(text: Text) -> int:
    return sum(_lacks(letter) or _is_wide(letter) for letter in text.get_text())


def _is_wide(letter: str) -> bool:
    return unicodedata.east_asian_width(letter) in "WF"


def _cut(name: str, most: int) -> str:
    if any(map(_is_wide, name)):
        most //= 2
    if len(name) <= most:
        return name
    head = (most - 1) // 2
    return f"{name[:head]}…{name[len(name) - (most - 1 - head) :]}"


def _is_joined(letter: str) -> bool:
    return unicodedata.bidirectional(letter) in ("R", "AL")


def _lacks(letter: str) -> bool:
    return not letter.isspace() and not _font().get_char_index(ord(letter))


@functools.cache
def _font() -> FT2Font:
    return get_font(findfont(FontProperties(family=["sans-serif"])))
