"""What an evaluation returns: numbers with intervals, and everything needed to question them.

A number on action recognition moves by 5 to 8 points with the protocol alone (one study lists the
same weights at 78.7 and 84.9), so a Result never travels without its Protocol, the digest of the
weights it measured and the versions it ran on. One Result is one JSON file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.intervals import Metric, mean_of_independent
from ndavid.evaluation.outcomes import Outcome
from ndavid.files import write_whole_text

SCHEMA_VERSION = 1

ProtocolName = Literal["full", "paper_compat"]


@dataclass(kw_only=True)
class Protocol:
    """How the numbers were measured.

    Attributes:
        name: ``full``, or ``paper_compat`` for the questionable one (``paper_compat.py``).
        manifest: File name of the manifest that defined the splits; empty for images.
        dataset: Name of the dataset, where no manifest has it as its folder's.
        split: The split measured, e.g. ``test``.
        folds: Official folds measured, 1-based; empty where the dataset has none.
        num_classes: Classes of the dataset.
        sampling: In words, which frames make a clip.
        clips: Temporal views a video.
        crops: Spatial views a clip; a video is scored by ``clips * crops`` views.
        size: Side of the square input, pixels.
        averaging: In words, how views become one decision.
        short: What happens to videos shorter than a clip (``loop``, ``pad`` or ``drop``).
        num_videos: Videos scored; 0 in evaluations on images.
        num_images: Images scored; 0 in evaluations on videos.
        num_short: Videos shorter than a clip.
        num_dropped: Videos left out for being short.
        num_bad: Unreadable videos or images left out (``on_bad="skip"``); 0 means none was.
        selection: In words, how the weights (epoch, regularisation) were chosen.
        notes: Anything a reader must know before comparing the numbers.
        warnings: Those of the notes that are printed before the numbers: what was skipped or
            dropped, what train and test share, what could not be computed.
    """

    name: ProtocolName = "full"
    manifest: str = ""
    dataset: str = ""
    split: str = "test"
    folds: list[int] = field(default_factory=lambda: [1])
    num_classes: int = 0
    sampling: str = ""
    clips: int = 1
    crops: int = 1
    size: int = 0
    averaging: str = ""
    short: str = ""
    num_videos: int = 0
    num_images: int = 0
    num_short: int = 0
    num_dropped: int = 0
    num_bad: int = 0
    selection: str = ""
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def warn(self, *warnings: str) -> None:
        """Adds warnings, to the notes too; what is there already is not added again."""
        for warning in warnings:
            if warning not in self.warnings:
                self.warnings.append(warning)
            if warning not in self.notes:
                self.notes.append(warning)


@dataclass(kw_only=True)
class Result:
    """One evaluation, as written to ``result.json``.

    Attributes:
        task: What was measured, e.g. ``finetune`` or ``retrieval``.
        metrics: Value, n and 95% interval by name; fractions, not per cent.
        protocol: How.
        network: Name of what was measured: an encoder (``resnet2d3d18``), or one network of a GAN
            (``biggan generator``); empty where the numbers are of files, or older than this field.
        chance: Expected value of guessing, from the items and classes tested, of the first metric;
            None where it has no meaning.
        checkpoint: ``path`` and ``sha256`` of the pretrained weights; empty for random ones. Of a
            mean over folds with one each, joined by commas in their order.
        tested: The same of the weights that made the predictions, where training followed: those of
            the last step, the moving average, or the best epoch. Empty: ``checkpoint`` as it is.
        seed: The run's seed.
        seconds: Wall time of the whole evaluation.
        environment: Versions, device, commit (``engine.environment.describe``).
        config: The resolved config.
        details: Task-specific tables: confusion matrix, per-class accuracy, neighbours, folds.
        schema: Version of this layout.
        chances: Expected value of guessing, by metric, of those where it has a meaning.
        outcomes: Each item's part in the metrics that have one. Not in ``result.json`` but written
            beside it (``outcomes.csv``), and no part of a comparison of Results.
    """

    task: str
    metrics: dict[str, Metric]
    protocol: Protocol
    network: str = ""
    chance: float | None = None
    checkpoint: dict[str, str] = field(default_factory=dict)
    tested: dict[str, str] = field(default_factory=dict)
    seed: int = 0
    seconds: float = 0.0
    environment: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    schema: int = SCHEMA_VERSION
    chances: dict[str, float] = field(default_factory=dict)
    outcomes: list[Outcome] = field(default_factory=list, compare=False, repr=False)

    def chance_of(self, metric: str) -> float | None:
        """Returns what guessing would score; None where that is not known or has no meaning.

        Results of older versions have one chance. It is that of their first metric, or of ``top1``;
        R@10 is guessed far more often than R@1.
        """
        if self.chances:
            return self.chances.get(metric)
        named = metric in self.metrics and metric in (next(iter(self.metrics)), "top1")
        return self.chance if named else None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes this Result as JSON, in one step, so that no reader sees half of it.

        ``outcomes`` are left out: thousands of rows are a table, not a part of a page to read.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        values = dataclasses.asdict(dataclasses.replace(self, outcomes=[]))
        del values["outcomes"]
        text = json.dumps(values, indent=2, allow_nan=False)
        write_whole_text(target, text + "\n")
        return target

    def summary(self) -> str:
        """Returns one line a metric for a terminal: per cent, interval, and what guessing gives."""
        width = max(map(len, self.metrics), default=0)
        return "\n".join(
            f"{name:<{width}}  {metric}{self._beside(name)}"
            for name, metric in self.metrics.items()
        )

    def _beside(self, name: str) -> str:
        chance = self.chance_of(name)
        if chance is None:
            return ""
        shown = f"{100 * chance:.2f}" if self.metrics[name].percent else f"{chance:.4g}"
        return f"  chance {shown}"


def load_result(path: str | os.PathLike[str]) -> Result:
    """Reads a Result that ``Result.save`` wrote; its ``outcomes`` are empty.

    Raises:
        DataError: If the file is missing, not JSON, not a Result, or of another schema version.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        version = raw["schema"]
        if version != SCHEMA_VERSION:
            raise DataError(path, f"result schema {version}; this ndavid reads {SCHEMA_VERSION}")
        raw["metrics"] = {name: Metric(**entry) for name, entry in raw["metrics"].items()}
        raw["protocol"] = Protocol(**raw["protocol"])
        return Result(**raw)
    except OSError as error:
        raise DataError(path, f"cannot read the result: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(path, f"not a result of ndavid: {error!r}") from error


def mean_over_folds(results: Sequence[Result]) -> Result:
    """Returns the mean of the same evaluation on several official folds.

    The interval treats the folds' test videos as independent, which holds where the official test
    splits do not overlap (UCF101; HMDB51's overlap a little, so its interval is slightly narrow).
    The folds' own numbers stay in ``details["folds"]``; outcomes get their fold's number. A metric
    that some folds lack, such as R@50 where a gallery is smaller, has no mean: a warning names it.

    Raises:
        ConfigError: Without results, or if they have no metric in common.
    """
    if not results:
        raise ConfigError("no fold to average; give at least one in `folds`")
    first = results[0]
    outcomes = [
        dataclasses.replace(outcome, fold=result.protocol.folds[0])
        for result in results
        for outcome in result.outcomes
    ]
    if len(results) == 1:
        return dataclasses.replace(first, outcomes=outcomes)
    common = [name for name in first.metrics if all(name in one.metrics for one in results)]
    if not common:
        raise ConfigError("the folds have no metric in common, and cannot be averaged")
    protocols = [result.protocol for result in results]
    protocol = dataclasses.replace(
        first.protocol,
        folds=[fold for one in protocols for fold in one.folds],
        num_videos=sum(one.num_videos for one in protocols),
        num_short=sum(one.num_short for one in protocols),
        num_dropped=sum(one.num_dropped for one in protocols),
        num_bad=sum(one.num_bad for one in protocols),
        selection="; ".join(dict.fromkeys(one.selection for one in protocols)),
        notes=list(dict.fromkeys(note for one in protocols for note in one.notes)),
        warnings=list(dict.fromkeys(note for one in protocols for note in one.warnings)),
    )
    protocol.warn(*_partly_measured(results, common))
    return dataclasses.replace(
        first,
        metrics={
            name: mean_of_independent([result.metrics[name] for result in results])
            for name in common
        },
        protocol=protocol,
        chance=_mean([result.chance_of(common[0]) for result in results]),
        chances={
            name: mean
            for name in common
            if (mean := _mean([result.chances.get(name) for result in results])) is not None
        },
        checkpoint=_joined([result.checkpoint for result in results]),
        tested=_joined([result.tested for result in results]),
        seconds=sum(result.seconds for result in results),
        details={
            "folds": [
                {
                    "fold": result.protocol.folds[0],
                    "metrics": {k: dataclasses.asdict(v) for k, v in result.metrics.items()},
                    "checkpoint": result.checkpoint,
                    "tested": result.tested,
                    **result.details,
                }
                for result in results
            ]
        },
        outcomes=outcomes,
    )


def _partly_measured(results: Sequence[Result], common: Sequence[str]) -> list[str]:
    """Which metrics only some folds have, and which folds, in a sentence each."""
    names = dict.fromkeys(name for result in results for name in result.metrics)
    return [
        f"{name} is measured on fold{'s' if len(folds) > 1 else ''} {', '.join(folds)} of "
        f"{len(results)} only, and not averaged: see the folds' own numbers (details.folds)."
        for name in names
        if name not in common
        for folds in [[str(one.protocol.folds[0]) for one in results if name in one.metrics]]
    ]


def _mean(chances: Sequence[float | None]) -> float | None:
    """The mean over folds; None where a fold has none."""
    known = [chance for chance in chances if chance is not None]
    return math.fsum(known) / len(known) if len(known) == len(chances) else None


def _joined(weights: Sequence[dict[str, str]]) -> dict[str, str]:
    """One entry for all folds where they share their weights, else each key's values in a row."""
    if all(one == weights[0] for one in weights):
        return dict(weights[0])
    return {key: ", ".join(one.get(key, "none") for one in weights) for key in ("path", "sha256")}
