"""Names in figures: nobody's class is a box, a formula, or wider than the picture."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from ndavid.evaluation.anomaly_figures import histogram_figure
from ndavid.evaluation.detection_ap import ImageResult
from ndavid.evaluation.detection_figure import detections_figure
from ndavid.evaluation.figure_text import escaped, is_foreign, shortened
from ndavid.evaluation.figures import accuracy_figure, confusion_figure, curves_figure
from ndavid.evaluation.intervals import wilson
from ndavid.study.figures import difference_figure
from ndavid.study.paired import Difference

pytestmark = pytest.mark.filterwarnings("error")  # matplotlib warns of a letter that it lacks

JAPANESE, EMOJI, ARABIC = "走っている子供たち", "🦖 jump", "الجري"
FORMULAS = ["$5 and $6", "a_b^{c", "$\\no_such$", "_hidden", "<i>&"]
SVG = "{http://www.w3.org/2000/svg}"


def confusion(names: list[str]) -> bytes:
    return confusion_figure(torch.eye(len(names), dtype=torch.long) * 3, names)


def accuracy(names: list[str]) -> bytes:
    return accuracy_figure([(name, wilson(3, 5)) for name in names], 0.5, "top-1 accuracy")


def curves(names: list[str]) -> bytes:
    runs = {name: ([1.0, 2.0], [3.0, float(k)]) for k, name in enumerate(names)}
    return curves_figure({"loss": runs, "rate": runs})


def histogram(names: list[str]) -> bytes:
    scores = torch.linspace(0, 1, 30)
    return histogram_figure(scores, dict.fromkeys(names, scores + 1), "score")


DRAWN = pytest.mark.parametrize("draw", [confusion, accuracy, curves, histogram])


def texts(svg: bytes) -> list[str]:
    return ["".join(t.itertext()) for t in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@DRAWN
def test_names_that_the_font_lacks_are_text_in_the_figure(draw) -> None:
    names = [JAPANESE, EMOJI, ARABIC, "walk & run"]
    svg = draw(names)
    assert set(names) <= set(texts(svg))
    assert svg == draw(names), "the same names give the same bytes"


@DRAWN
def test_names_that_the_font_has_are_shapes_and_no_formulas(draw) -> None:
    svg = draw(["laufen über", *FORMULAS])
    assert texts(svg) == []
    # The letters of a shape stand in a comment before it.
    comments = re.findall(r"<!-- (.*?) -->", svg.decode())
    for name in ("laufen über", "$5 and $6", "_hidden"):
        assert name in comments


@pytest.mark.parametrize("draw", [confusion, accuracy])
@pytest.mark.parametrize("wide", ["走" * 16, "🦖" * 16])
def test_a_wide_name_has_its_room(draw, wide: str) -> None:
    svg = draw([wide, "walk"])
    root = ElementTree.fromstring(svg)
    left, top, _, height = map(float, root.attrib["viewBox"].split())
    found = 0
    for text in root.iter(f"{SVG}text"):
        if text.text != wide:
            continue
        size = float(re.search(r"([\d.]+)px", text.attrib["style"])[1])  # type: ignore[index]
        assert "text-anchor: end" in text.attrib["style"]
        x, y = float(text.attrib["x"]), float(text.attrib["y"])
        turned = "rotate(-45" in text.attrib.get("transform", "")
        reach = 16 * size * (0.7072 if turned else 1.0)
        assert x - reach >= left, (x, reach)
        if turned:
            assert y + reach <= top + height
        found += 1
    assert found == (2 if draw is confusion else 1)


def test_pictures_of_pixels_have_escapes(tmp_path: Path) -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    one = ImageResult(
        boxes=torch.zeros(0, 4),
        labels=torch.zeros(0, dtype=torch.long),
        difficult=torch.zeros(0, dtype=torch.bool),
        crowd=torch.zeros(0, dtype=torch.bool),
        found_boxes=torch.tensor([[5.0, 20.0, 40.0, 50.0]]),
        found_labels=torch.tensor([0]),
        found_scores=torch.tensor([0.9]),
    )
    pages = [detections_figure([image], [one], [name]) for name in (JAPANESE, "$\\no_such$")]
    assert all(page.startswith(b"\xff\xd8") for page in pages)
    arms = [JAPANESE, "$\\no_such$"]
    found = [
        Difference(
            method="dpc",
            arm=arm,
            measurement="猫",
            metric="top1",
            seeds=(0, 1),
            by_seed_values=(0.1, 0.2),
            value=0.15,
            items=0,
            sources=0,
            design="",
            by_item=None,
            by_seed=None,
            both=None,
        )
        for arm in arms
    ]
    path = difference_figure(found, baseline="無", percent={}, path=tmp_path / "d.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_escapes_and_what_is_foreign() -> None:
    assert escaped("über 猫") == "über \\u732b" and escaped("🦖") == "\\U0001f996"
    assert not is_foreign("Größe, naïve – “quoted” ½") and is_foreign("猫") and is_foreign(ARABIC)


def test_long_names_are_cut_in_the_middle_and_stay_apart() -> None:
    long = "PlayingTheVeryLongNamedInstrumentFromTheNorth"
    assert shortened(["walk", long], 20) == ["walk", "PlayingTh…omTheNorth"]
    alike = [f"{long[:30]}{k}{long[30:]}" for k in range(2)]
    assert shortened(["walk", *alike], 20) == ["walk", *alike]
    assert [len(name) for name in shortened(["猫" * 40, "x" * 40], 20)] == [10, 20]
