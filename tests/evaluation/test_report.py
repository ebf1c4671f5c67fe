"""The page is one file that needs no network, and shows what the results hold."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from ndavid.errors import DataError
from ndavid.evaluation.figures import accuracy_figure, confusion_figure, frame_sheet
from ndavid.evaluation.intervals import wilson
from ndavid.evaluation.protocol import Protocol, Result
from ndavid.evaluation.report import (
    CurveGroup,
    Picture,
    Report,
    ReportRow,
    format_table,
    read_metrics,
    write_outputs,
    write_report,
)
from ndavid.evaluation.views import ViewsConfig

VIEWS = ViewsConfig()  # any config will do


def result(correct: int, name: str = "full") -> Result:
    return Result(
        task="finetune",
        metrics={"top1": wilson(correct, 80)},
        protocol=Protocol(
            name=name,  # type: ignore[arg-type]
            manifest="clips/manifest.csv",
            num_classes=2,
            num_videos=80,
            num_bad=3,
            selection="last step (20)",
            notes=["a note to read"],
        ),
        chance=0.5,
        checkpoint={"path": "runs/x/model.safetensors", "sha256": "0123456789abcdef" * 4},
        environment={"device": "a cpu", "packages": {"torch": "2.x"}},
        config={"run": {"seed": 7}},
        details={
            "classes": ["walk", "run"],
            "confusion": [[30, 10], [correct - 30, 70 - correct]],
            "per_class": [
                {
                    "class": "walk",
                    "accuracy": 0.75,
                    "low": 0.6,
                    "high": 0.86,
                    "correct": 30,
                    "count": 40,
                    "confused_with": "run",
                    "confused_count": 10,
                },
                {
                    "class": "unseen",
                    "accuracy": None,
                    "low": None,
                    "high": None,
                    "correct": 0,
                    "count": 0,
                    "confused_with": "",
                    "confused_count": 0,
                },
            ],
        },
    )


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(stream, format="PNG")
    return stream.getvalue()


class Page(HTMLParser):
    """Text and attributes of a page; an element that is closed but not open fails the parse."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.feed(markup)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        lines = [
            {"step": s, "loss": 1 / s, "lr": 0.1, "time": 5.0, "grad": None} for s in (1, 2, 3)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path


def test_the_page_is_whole_and_self_contained(runs: Path) -> None:
    report = Report(
        title="A title",
        lead="A lead.",
        rows=[ReportRow(name="none", result=result(40)), ReportRow(name="nda", result=result(60))],
        curves=[CurveGroup(title="Pretraining", runs={"a": runs / "a", "b": runs / "b"})],
        pictures=[Picture(title="The negatives", image=picture(), caption="Each row.")],
    )
    path = write_report(report, runs / "deep" / "report.html")
    page = Page(path.read_text())
    assert page.open == []
    assert page.links and all(link.startswith("data:image/") for link in page.links)
    # Overview, curves, picture and two confusion matrices.
    assert len(page.links) == 5
    for text in ("A title", "A lead.", "none", "nda", "The negatives", "Each row.", "Pretraining"):
        assert text in page.text
    for text in ("50.0", "75.0", "last step (20)", "3 undecodable", "0123456789abcdef…", "seed: 7"):
        assert text in page.text
    assert "a note to read" in page.text and "run (10)" in page.text


def test_many_numbers_of_one_evaluation_stand_below_each_other(tmp_path: Path) -> None:
    many = result(60)
    many.metrics = {f"AUROC set {k}": wilson(40 + k, 80) for k in range(7)}
    many.chances = dict.fromkeys(many.metrics, 0.5)
    few = result(60)
    pages = [
        Page(write_report(Report(title="t", rows=rows), tmp_path / "page.html").read_text())
        for rows in (
            [ReportRow(name="gan", result=many)],
            [ReportRow(name="a", result=few), ReportRow(name="b", result=few)],
        )
    ]
    assert "95% interval n chance AUROC set 0 % 50.0" in pages[0].text and not pages[0].open
    assert "AUROC set 6 % 57.5 46.6 to 67.7 80 50.0" in pages[0].text
    assert "encoder task top1 %" in pages[1].text


def test_the_column_of_encoders_names_them_and_where_their_weights_are_from(
    tmp_path: Path,
) -> None:
    stored = {"path": "runs/a/checkpoints/step_9/model.safetensors", "sha256": "0" * 64}
    of_folds = {"path": "runs/a_1/checkpoints/step_9, runs/a_2/x.pt", "sha256": "0, 1"}
    for changes, cell in (
        ({"checkpoint": stored}, "resnet2d3d18 runs/a finetune"),
        ({"checkpoint": of_folds}, "resnet2d3d18 runs/a_1, runs/a_2/x.pt finetune"),
        ({"checkpoint": {}}, "resnet2d3d18 no checkpoint finetune"),
    ):
        one = dataclasses.replace(result(40), network="resnet2d3d18", **changes)  # type: ignore[arg-type]
        write_outputs(one, VIEWS, tmp_path)
        page = Page((tmp_path / "report.html").read_text())
        assert re.search(rf"encoder task top1 % n.* {re.escape(cell)} 50\.0", page.text)
        assert "resnet2d3d18 (finetune)" in page.text
    gan = dataclasses.replace(result(40), task="generation", network="biggan generator")
    write_outputs(gan, VIEWS, tmp_path)
    assert "network task" in Page((tmp_path / "report.html").read_text()).text


def test_names_are_text_and_never_markup(tmp_path: Path) -> None:
    row = ReportRow(name="<script>alert(1)</script>", result=result(40))
    text = write_report(Report(title="<b>&", rows=[row]), tmp_path / "report.html").read_text()
    assert "<script" not in text and "<b>&" not in text
    assert "<script>alert(1)</script>" in Page(text).text


def test_the_questionable_protocol_is_marked(tmp_path: Path) -> None:
    rows = [ReportRow(name="x", result=result(40, name="paper_compat"))]
    text = Page(write_report(Report(title="t", rows=rows), tmp_path / "r.html").read_text()).text
    assert "Not comparable with the full protocol." in text
    rows = [ReportRow(name="x", result=result(40))]
    text = Page(write_report(Report(title="t", rows=rows), tmp_path / "r.html").read_text()).text
    assert "Not comparable" not in text


def test_the_same_report_is_the_same_file(runs: Path) -> None:
    curves = [CurveGroup(title="c", runs={"a": runs / "a"})]
    report = Report(title="t", rows=[ReportRow(name="x", result=result(40))], curves=curves)
    first = write_report(report, runs / "1.html").read_bytes()
    assert write_report(report, runs / "2.html").read_bytes() == first


def test_motion_probes_of_several_encoders_are_drawn(tmp_path: Path) -> None:
    def probe(right: int) -> Result:
        metrics = {"reversed": wilson(right, 80), "shuffled": wilson(right + 5, 80)}
        return dataclasses.replace(result(right), metrics=metrics)

    rows = [ReportRow(name=name, result=probe(k)) for name, k in (("DPC", 60), ("MoCo", 50))]
    page, alone = (
        write_report(Report(title="Motion", rows=rows[:count]), tmp_path / "page.html").read_text()
        for count in (2, 1)
    )
    assert "told from reversed of each" in page and "told from shuffled of each" in page
    assert "told from" not in alone


def test_an_empty_report_is_a_page_too(tmp_path: Path) -> None:
    assert "nothing yet" in write_report(Report(title="nothing yet"), tmp_path / "r").read_text()


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="PNG, JPEG or SVG"):
        write_report(
            Report(title="t", pictures=[Picture(title="p", image=b"GIF89a")]), tmp_path / "r"
        )
    gone = Picture(title="p", image=tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"gone\.png"):
        write_report(Report(title="t", pictures=[gone]), tmp_path / "r")


def test_metrics_survive_a_kill_but_not_a_wrong_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.0, "note": "x"}\n{"step": 2, "lo')
    assert read_metrics(path) == read_metrics(tmp_path) == [{"step": 1.0, "loss": 2.0}]
    path.write_text('nonsense\n{"step": 2}\n')
    with pytest.raises(DataError, match="line 1"):
        read_metrics(path)
    with pytest.raises(DataError, match="cannot read"):
        read_metrics(tmp_path / "gone.jsonl")


def test_the_table_lines_up_and_shows_intervals() -> None:
    rows = [
        ReportRow(name="random encoder", result=result(40)),
        ReportRow(name="DPC", result=result(60)),
    ]
    lines = format_table(rows).splitlines()
    assert lines[0].split() == ["encoder", "top1", "%", "95%", "interval", "n", "chance", "%"]
    metric = wilson(60, 80)
    interval = f"{100 * metric.low:.1f} to {100 * metric.high:.1f}"
    assert re.fullmatch(rf"DPC +75\.0 +{interval} +80 +50\.0", lines[3])
    assert len({len(line) for line in lines}) == 1
    assert format_table(rows, "R@1").splitlines()[2].split()[2:] == ["-", "-", "-", "-"]


def test_a_sheet_holds_frames_in_reading_order() -> None:
    frames = torch.zeros(4, 3, 20, 40, dtype=torch.uint8)
    for place, value in enumerate((0, 80, 160, 240)):
        frames[place] = value
    sheet = Image.open(io.BytesIO(frame_sheet(frames, columns=2, height=50)))
    assert sheet.size == (2 * 100 + 2, 2 * 50 + 2)
    centres = [(50, 25), (152, 25), (50, 77), (152, 77)]
    values = [sheet.getpixel(place)[0] for place in centres]  # type: ignore[index]
    assert values == pytest.approx([0, 80, 160, 240], abs=4)


@pytest.mark.parametrize("classes", [2, 21, 101])
def test_figures_are_drawn_for_any_number_of_classes(classes: int) -> None:
    names = [f"class {index} & <more>" for index in range(classes)]
    counts = torch.randint(0, 9, (classes, classes), generator=torch.Generator().manual_seed(0))
    assert confusion_figure(counts, names).startswith(b"<?xml")
    rows = [(name, wilson(index % 5, 5)) for index, name in enumerate(names[:12])]
    assert b"</svg>" in accuracy_figure(rows, 0.1, "top-1 accuracy")


def test_what_weighs_on_the_numbers_stands_above_them(tmp_path: Path) -> None:
    """A leak, and what was left out: on the page as in the terminal."""
    leaky = result(60)
    leaky.protocol.notes.append("LEAK: 9 of the 80 test videos were in the pretraining data.")
    leaky.protocol.warn("3 test videos could not be read.")
    row = ReportRow(name="mine", result=leaky)
    page = write_report(Report(title="t", rows=[row]), tmp_path / "report.html").read_text()
    table = page.index("<table")
    assert page.index("LEAK: 9 of the 80") < table and page.index("3 test videos could") < table
