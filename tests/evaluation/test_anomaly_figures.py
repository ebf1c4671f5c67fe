"""A legend names what it stands beside, and a figure of the same scores has the same bytes."""

from __future__ import annotations

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ndavid.evaluation import anomaly_figures
from ndavid.evaluation.anomaly_figures import histogram_figure, severity_figure
from ndavid.evaluation.figures import PALETTE


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are drawn, before they become SVG."""
    figures: list[Figure] = []
    to_svg = anomaly_figures.to_svg

    def kept(figure: Figure) -> bytes:
        figures.append(figure)
        return to_svg(figure)

    monkeypatch.setattr(anomaly_figures, "to_svg", kept)
    return figures


def scores(shift: float) -> torch.Tensor:
    return torch.randn(500, generator=torch.Generator().manual_seed(0)) + shift


def test_a_legend_names_what_it_stands_beside(drawn: list[Figure]) -> None:
    severities = {f"severity {s}": scores(2.0 * s) for s in (1, 2, 3)}
    first = histogram_figure(scores(0), severities, "score")
    assert first.startswith(b"<?xml") and histogram_figure(scores(0), severities, "score") == first
    legend = drawn[0].axes[0].get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["known", "severity 1", "severity 2", "severity 3"]
    known, *others = legend.get_patches()
    assert to_hex(known.get_facecolor()) == PALETTE[0]
    # Each outline's peak, found by its colour, lies where its scores do.
    outlines = {to_hex(p.get_edgecolor()): p.get_path() for p in drawn[0].axes[0].patches[-3:]}
    for place, handle in enumerate(others, start=1):
        vertices = outlines[to_hex(handle.get_edgecolor())].vertices
        assert abs(float(vertices[vertices[:, 1].argmax(), 0]) - 2 * place) < 1


def test_scores_that_are_all_the_same_can_be_drawn() -> None:
    same = torch.zeros(4)
    assert histogram_figure(same, {"also": same}, "score").startswith(b"<?xml")


def test_each_corruption_and_severity_has_its_number(drawn: list[Figure]) -> None:
    severity_figure({"fog": [0.5, 0.75], "gaussian_noise": [0.25, 1.0]}, [2, 5])
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.texts] == ["50", "75", "25", "100"]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["fog", "gaussian noise"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["2", "5"]
