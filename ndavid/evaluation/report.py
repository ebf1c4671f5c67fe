"""One self-contained HTML page of an experiment: numbers, protocol, curves, pictures.

The page embeds every figure and needs no network, so it can be mailed or archived beside the
``result.json`` files it was made from.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import torch
import yaml

from ndavid.checkpoint_files import FOLDER
from ndavid.collectives import rank
from ndavid.data.decode import open_reader
from ndavid.data.manifest import read_manifest
from ndavid.errors import DataError, printable, printable_lines
from ndavid.evaluation.figures import (
    accuracy_figure,
    confusion_figure,
    curves_figure,
    frame_sheet,
)
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.outcomes import OUTCOMES_FILE, write_outcomes
from ndavid.evaluation.protocol import Protocol, Result
from ndavid.files import write_whole_text

RESULT_FILE = "result.json"
LEAK = "LEAK"
REPORT_FILE = "report.html"

_MAX_PER_CLASS_OPEN = 30
# More numbers of one evaluation than fit side by side stand below each other.
_MOST_COLUMNS = 6
_OVERVIEW = {
    "top1": "top-1 accuracy",
    "R@1": "retrieval R@1",
    "top1_k20": "kNN top-1, k = 20",
    "top1_k200": "kNN top-1, k = 200",
    "reversed": "told from reversed",
    "shuffled": "told from shuffled",
}
_OF_GANS = {"generation", "anomaly"}
_NOT_DRAWN = {"step", "epoch", "time", "seconds_data", "seconds_compute", "samples_per_s"}


@dataclass(kw_only=True)
class ReportRow:
    """One evaluated network: the name a reader knows it by, and its Result."""

    name: str
    result: Result


@dataclass(kw_only=True)
class CurveGroup:
    """Training curves drawn together: run name -> run directory (or its metrics.jsonl).

    ``keys`` names the quantities to draw; empty draws every one that was logged as a number.
    """

    title: str
    runs: dict[str, Path]
    keys: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Picture:
    """A picture from elsewhere, e.g. the gallery of negatives: encoded bytes or a file."""

    title: str
    image: bytes | Path
    caption: str = ""


@dataclass(kw_only=True)
class Report:
    """What goes on the page.

    Attributes:
        title: Heading.
        lead: One paragraph under it.
        rows: Evaluations, in table order.
        curves: Groups of training curves.
        pictures: Extra pictures.
        videos: Folder that the paths of retrieved neighbours start from; None leaves frames out.
        backend: Decoder for those frames.
    """

    title: str
    lead: str = ""
    rows: list[ReportRow] = field(default_factory=list)
    curves: list[CurveGroup] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    videos: Path | None = None
    backend: str = "pyav"


def write_report(report: Report, output: str | os.PathLike[str]) -> Path:
    """Writes ``report`` as one HTML file and returns its path.

    Raises:
        DataError: If a metrics file or a picture cannot be read.
    """
    template = resources.files("ndavid.evaluation").joinpath("report.html.jinja").read_text("utf-8")
    engine = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    engine.filters["percent"] = lambda value: f"{100 * value:.1f}"
    engine.filters["number"] = _shown
    page = engine.from_string(template).render(
        title=report.title,
        lead=report.lead,
        alerts=[
            (row.name, text) for row in report.rows for text in said_first(row.result.protocol)
        ],
        overview=_overview(report.rows),
        tables=_tables(report.rows),
        most_columns=_MOST_COLUMNS,
        curves=[
            {"title": group.title, "image": image}
            for group in report.curves
            if (image := _curves_image(group))
        ],
        pictures=[
            {"title": item.title, "caption": item.caption, "image": _picture_url(item)}
            for item in report.pictures
        ],
        evaluations=[_evaluation(row, report) for row in report.rows],
    )
    target = Path(output)
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole_text(target, page)
    return target


def write_outputs(
    result: Result,
    config: Any,
    output: str | os.PathLike[str],
    manifest: str = "",
    *,
    backend: str = "pyav",
    pictures: Sequence[Picture] = (),
) -> Result:
    """Writes and prints the result on rank 0 (``result.json``, ``report.html``); returns it.

    ``outcomes.csv`` lies beside them where the result has outcomes; an older one is removed.

    Args:
        result: Gets the resolved config.
        config: The evaluator's config dataclass.
        output: Folder; the run that it is, or runs inside it (``fold_1/``), become curves.
        manifest: Where the videos of retrieved neighbours are; empty for images.
        backend: Decoder for their frames.
        pictures: Extra pictures, e.g. the negatives of the pretraining.
    """
    result.config = dataclasses.asdict(config)
    if rank() != 0:
        return result
    folder = Path(output)
    # Before the result: whoever sees that finds the outcomes which belong to it.
    if result.outcomes:
        write_outcomes(result.outcomes, folder / OUTCOMES_FILE)
    else:
        (folder / OUTCOMES_FILE).unlink(missing_ok=True)
    result.save(folder / RESULT_FILE)
    logs = [*folder.glob("metrics.jsonl"), *sorted(folder.glob("*/metrics.jsonl"))]
    runs = {path.parent.name: path for path in logs}
    dataset = result.protocol.dataset or Path(result.protocol.manifest).parent.name
    report = Report(
        title=f"{result.task.replace('_', ' ').capitalize()} on {dataset}",
        rows=[ReportRow(name=result.network or result.task, result=result)],
        curves=[CurveGroup(title="Training", runs=runs)] if runs else [],
        pictures=list(pictures),
        videos=read_manifest(manifest).root if manifest else None,
        backend=backend,
    )
    page = write_report(report, folder / REPORT_FILE)
    print(printable_lines(f"{summary_lines(result)}\n{page}"))
    return result


def summary_lines(result: Result) -> str:
    """Returns what a terminal shows of a result: warnings first, then numbers, then the notes."""
    protocol = result.protocol
    first = said_first(protocol)
    lines = [f"warning: {warning}" for warning in first]
    lines += [result.summary()]
    lines += [f"note: {note}" for note in protocol.notes if note not in first]
    return "\n".join(printable(part) for line in lines for part in line.split("\n"))


def said_first(protocol: Protocol) -> list[str]:
    """Returns what a reader must know before any number: warnings, and what the weights have seen.

    What they have seen before weighs as much as what was left out.
    """
    leaks = [note for note in protocol.notes if note.startswith(LEAK)]
    return list(dict.fromkeys([*protocol.warnings, *leaks]))


def format_table(rows: Sequence[ReportRow], metric: str = "top1") -> str:
    """Returns a plain-text table: name, ``metric`` with its interval, n, chance.

    Shares are in per cent. A row whose Result has no such metric shows a dash.
    """
    plain = any(
        not row.result.metrics[metric].percent for row in rows if metric in row.result.metrics
    )
    header = ("encoder", metric if plain else f"{metric} %", "95% interval", "n", "chance %")
    lines = [header]
    for row in rows:
        found = row.result.metrics.get(metric)
        known = row.result.chance_of(metric)
        chance = "-" if known is None else f"{100 * known:.1f}"
        if found is None:
            lines.append((row.name, "-", "-", "-", chance))
        else:
            interval = f"{_shown(found.low, found)} to {_shown(found.high, found)}"
            lines.append((row.name, _shown(found.value, found), interval, str(found.n), chance))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    rule = "  ".join("-" * width for width in widths)
    text = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join([text[0], rule, *text[1:]])


def _shown(value: float, metric: Metric) -> str:
    """A number of ``metric`` as readers see it: shares in per cent."""
    return f"{100 * value:.1f}" if metric.percent else f"{value:.4g}"


def _url(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _picture_url(picture: Picture) -> str:
    data = picture.image
    if isinstance(data, Path):
        try:
            data = data.read_bytes()
        except OSError as error:
            raise DataError(
                str(picture.image), f"cannot read the picture: {error.strerror}"
            ) from error
    for magic, kind in ((b"\x89PNG", "png"), (b"\xff\xd8", "jpeg"), (b"<", "svg+xml")):
        if data.startswith(magic):
            return _url(data, kind)
    raise DataError(str(picture.title), "a report takes PNG, JPEG or SVG pictures")


def _overview(rows: Sequence[ReportRow]) -> list[dict[str, str]]:
    """One interval plot for each of the usual numbers that two evaluations have."""
    plots = []
    for metric, label in _OVERVIEW.items():
        found = [
            (row.name, row.result.metrics[metric]) for row in rows if metric in row.result.metrics
        ]
        if len(found) < 2:
            continue
        chances = {row.result.chance_of(metric) for row in rows if metric in row.result.metrics}
        chance = chances.pop() if len(chances) == 1 else None
        plots.append(
            {"label": label, "image": _url(accuracy_figure(found, chance, label), "svg+xml")}
        )
    return plots


def _tables(rows: Sequence[ReportRow]) -> list[dict[str, Any]]:
    """Results grouped by task: evaluations with the same metrics share one table."""
    groups: dict[tuple[str, ...], list[ReportRow]] = {}
    for row in rows:
        groups.setdefault(tuple(row.result.metrics), []).append(row)
    return [
        {
            "what": _kind_of_network(members),
            "metrics": metrics,
            "rows": [
                {
                    "name": row.name,
                    "weights": _origin(row.result),
                    "task": row.result.task,
                    "values": [row.result.metrics[name] for name in metrics],
                    "n": next(iter(row.result.metrics.values())).n if metrics else 0,
                    "chances": [row.result.chance_of(name) for name in metrics],
                    "questionable": row.result.protocol.name == "paper_compat",
                }
                for row in members
            ],
        }
        for metrics, members in groups.items()
    ]


def _kind_of_network(rows: Sequence[ReportRow]) -> str:
    """The head of the column of names."""
    return "network" if any(row.result.task in _OF_GANS for row in rows) else "encoder"


def _origin(result: Result) -> str:
    """Where the weights come from, as short as it goes: the run rather than the file in it."""
    if result.checkpoint:
        paths = [Path(path) for path in result.checkpoint["path"].split(", ")]
        return ", ".join(dict.fromkeys(str(_run_of(path)) for path in paths))
    return "no checkpoint" if result.network else ""


def _run_of(path: Path) -> Path:
    folders = [folder for folder in path.parents if folder.name == FOLDER]
    return folders[0].parent if folders else path


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, float]]:
    """Reads a ``metrics.jsonl``: the finite numbers of each line that has a ``step``.

    A last line cut short by a kill is left out; any other bad line is an error.

    Raises:
        DataError: If the file cannot be read or holds a line that is not a JSON object.
    """
    source = Path(path)
    source = source / "metrics.jsonl" if source.is_dir() else source
    try:
        lines = source.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DataError(source, f"cannot read the metrics: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            rows.append(
                {
                    key: float(value)
                    for key, value in entry.items()
                    if isinstance(value, int | float) and math.isfinite(value)
                }
            )
        except (ValueError, AttributeError) as error:
            if number == len(lines):
                break
            raise DataError(source, f"line {number} is not a JSON object") from error
    return [row for row in rows if "step" in row]


def _curves_image(group: CurveGroup) -> str:
    """The group's figure as a URL; empty when nothing was logged."""
    panels: dict[str, dict[str, tuple[list[float], list[float]]]] = {}
    for name, path in group.runs.items():
        for entry in read_metrics(path):
            for key, value in entry.items():
                if key in _NOT_DRAWN or (group.keys and key not in group.keys):
                    continue
                steps, values = panels.setdefault(key, {}).setdefault(name, ([], []))
                steps.append(entry["step"])
                values.append(value)
    # A quantity that never changes (a constant rate, no bad clips) would only take up room.
    panels = {
        key: runs
        for key, runs in panels.items()
        if any(len(set(values)) > 1 for _, values in runs.values())
    }
    if group.keys:
        panels = {key: panels[key] for key in group.keys if key in panels}
    return _url(curves_figure(panels), "svg+xml") if panels else ""


def _evaluation(row: ReportRow, report: Report) -> dict[str, Any]:
    """Everything one evaluation shows under its own heading."""
    result = row.result
    details = result.details
    confusion = ""
    if details.get("confusion"):
        counts = torch.tensor(details["confusion"])
        confusion = _url(confusion_figure(counts, details["classes"]), "svg+xml")
    per_class = details.get("per_class", [])
    return {
        "name": row.name,
        "task": result.task,
        "protocol": _protocol_rows(result),
        "notes": result.protocol.notes,
        "warnings": result.protocol.warnings,
        "questionable": result.protocol.name == "paper_compat",
        "confusion": confusion,
        "per_class": per_class,
        "per_class_open": len(per_class) <= _MAX_PER_CLASS_OPEN,
        "folds": [
            {
                "fold": fold["fold"],
                "metrics": {name: Metric(**value) for name, value in fold["metrics"].items()},
            }
            for fold in details.get("folds", [])
        ],
        "neighbours": _neighbours(_first(details, "neighbours"), report),
        "environment": _flat(result.environment),
        "config": yaml.safe_dump(result.config, sort_keys=False) if result.config else "",
    }


def _first(details: dict[str, Any], key: str) -> list[Any]:
    """The result's own list, or that of its first fold."""
    return details.get(key) or next((f[key] for f in details.get("folds", []) if f.get(key)), [])


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested dicts as one level with dotted names."""
    rows: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            rows |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            rows[prefix + key] = " ".join(value) if isinstance(value, list) else str(value)
    return rows


def _protocol_rows(result: Result) -> list[tuple[str, str]]:
    protocol = result.protocol
    rows = [
        ("protocol", protocol.name),
        ("data", f"{protocol.dataset or protocol.manifest}, {protocol.num_classes} classes"),
        ("split", _split(protocol)),
        *_looked_at(protocol),
        ("averaging", protocol.averaging),
        ("short videos", protocol.short),
        ("weights chosen by", protocol.selection),
        ("pretrained weights", _weights(result.checkpoint) or "none"),
        ("pretraining data", _pretraining_data(result.details.get("pretraining", {}))),
        ("tested weights", _weights(result.tested)),
        ("seed", str(result.seed)),
        ("wall time", f"{result.seconds:.0f} s"),
    ]
    return [(key, value) for key, value in rows if value]


def _weights(source: dict[str, str]) -> str:
    """Path and short digest; of several folds, each."""
    if not source:
        return ""
    both = zip(source["path"].split(", "), source["sha256"].split(", "), strict=False)
    return "; ".join(f"{path} (sha256 {digest[:16]}…)" for path, digest in both)


def _pretraining_data(details: dict[str, Any]) -> str:
    if not details:
        return ""
    unit = "images" if "test_images_seen" in details else "videos"
    seen = details[f"test_{unit}_seen"]
    overlap = "overlap with test unknown" if seen is None else f"{seen} test {unit} among it"
    return f"{details['trained_on']}; {overlap}"


def _split(protocol: Protocol) -> str:
    folds = f", fold {', '.join(map(str, protocol.folds))}" if protocol.folds else ""
    return protocol.split + folds


def _looked_at(protocol: Protocol) -> list[tuple[str, str]]:
    """How many test items there were, and what was seen of each."""
    if not protocol.num_videos and protocol.dataset:
        return [
            ("images", f"{protocol.num_images} scored; {protocol.num_bad} unreadable"),
            ("view", f"{protocol.sampling}, {protocol.size} px"),
        ]
    counts = (
        f"{protocol.num_videos} scored; {protocol.num_short} shorter than a clip, "
        f"{protocol.num_dropped} dropped, {protocol.num_bad} undecodable"
    )
    return [
        ("videos", counts),
        ("clip", protocol.sampling),
        ("views", f"{protocol.clips} clips × {protocol.crops} crops, {protocol.size} px"),
    ]


def _neighbours(examples: list[dict[str, Any]], report: Report) -> list[dict[str, Any]]:
    """The stored neighbour examples with a picture each; none without a video folder."""
    if report.videos is None:
        return []
    return [
        {
            "query": _clip(example["query"], report),
            "found": [_clip(neighbour, report) for neighbour in example["neighbours"]],
        }
        for example in examples
    ]


def _clip(entry: dict[str, Any], report: Report) -> dict[str, Any]:
    """A clip's entry with four frames in their order, as a picture."""
    assert report.videos is not None
    with open_reader(report.videos / entry["path"], backend=report.backend) as reader:
        count = len(reader)
        frames = reader.read([(place * count) // 8 for place in (1, 3, 5, 7)])
    return {**entry, "image": _url(frame_sheet(frames), "jpeg")}
