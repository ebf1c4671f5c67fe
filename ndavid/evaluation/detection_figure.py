"""A sheet of images with annotated and detected boxes."""

from __future__ import annotations

import io
from collections.abc import Sequence

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from ndavid.evaluation.detection_ap import ImageResult
from ndavid.evaluation.figure_text import escaped, shortened

_COLUMNS = 4
_SHOWN_SCORE = 0.5


def detections_figure(
    pixels: Sequence[Tensor], results: Sequence[ImageResult], classes: Sequence[str]
) -> bytes:
    """A JPEG of the images, uint8 (3, H, W): annotated boxes in white, found ones in colours."""
    rows = -(-len(pixels) // _COLUMNS)
    figure = Figure(figsize=(3 * _COLUMNS, 3 * rows), layout="constrained")
    axes = figure.subplots(rows, _COLUMNS, squeeze=False).flatten()
    for axis in axes:
        axis.set_axis_off()
    colours = colormaps["tab20"]
    names = [escaped(name) for name in shortened(classes)]
    for axis, image, one in zip(axes, pixels, results, strict=False):
        axis.imshow(image.permute(1, 2, 0).numpy())
        uncounted = one.difficult | one.crowd
        for box, grey in zip(one.boxes.tolist(), uncounted.tolist(), strict=True):
            axis.add_patch(_outline(box, "0.6" if grey else "white", 2.5))
        for box, score, label in _shown(one):
            colour = colours(label % colours.N)
            axis.add_patch(_outline(box, colour, 1.5))
            axis.text(
                box[0] - 0.5,
                box[1] - 0.5,
                f"{names[label]} {score:.2f}",
                fontsize=7,
                parse_math=False,
                va="bottom",
                color="white",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.8},
                clip_on=True,
            )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="jpeg", dpi=90)
    return buffer.getvalue()


def _shown(one: ImageResult) -> list[tuple[list[float], float, int]]:
    """Box, score and label of the detections that are sure enough."""
    sure = one.found_scores >= _SHOWN_SCORE
    columns = (one.found_boxes[sure], one.found_scores[sure], one.found_labels[sure])
    return list(zip(*(column.tolist() for column in columns), strict=True))


def _outline(box: Sequence[float], colour: str | tuple[float, ...], width: float) -> Rectangle:
    x1, y1, x2, y2 = box
    # Pixel centres are at whole numbers here, and edges half a pixel before.
    corner = (x1 - 0.5, y1 - 0.5)
    return Rectangle(corner, x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width)
