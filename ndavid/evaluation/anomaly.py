"""Does a GAN's discriminator know its own data? Anomalies told by its output alone.

An image's score is -D(x): the less real it seems, the more anomalous. Images are shown as in
training, short side resized, centre cut out, pixels in [-1, 1]. A conditional discriminator is
asked about every class; the class that it finds most real counts (``over_labels: max``), or the
mean over classes.

Test images of the GAN's own data are set against

    other sets     any image set; the headline is their mean
    corruptions    of the test images: CIFAR-10-C's files (Hendrycks and Dietterich 2019), or made
                   here (``ndavid.data.corruptions``)
    NDA columns    the test images, broken by an operation of negative augmentation. They say
                   whether the discriminator sees that damage; one that was trained on the operation
                   has seen its like. They are in no mean.

Differences from the paper (Sinha et al. 2021, "Negative Data Augmentation"): its code shows pixels
in [0, 1] to a discriminator that was trained on [-1, 1], and gives numbers without an interval.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from ndavid.collectives import rank, world_size
from ndavid.data.cifar_c import corruption_files, open_cifar_c
from ndavid.data.config import DataConfig
from ndavid.data.corruptions import CORRUPTIONS, SEVERITIES, check_corruption
from ndavid.data.image_sources import ImageSource
from ndavid.data.image_subsets import class_subset
from ndavid.data.images import open_images
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.environment import describe as describe_environment
from ndavid.engine.rng import generator
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.anomaly_figures import histogram_figure, severity_figure
from ndavid.evaluation.anomaly_metrics import Bootstrap, Detection, mean_of, quartiles
from ndavid.evaluation.anomaly_score import AnomalyScore, OverLabels
from ndavid.evaluation.classify import PerItem, per_item
from ndavid.evaluation.data_warnings import unreadable
from ndavid.evaluation.figures import accuracy_figure
from ndavid.evaluation.generation_samples import at_most
from ndavid.evaluation.image_views import (
    ImageViews,
    ImageViewsConfig,
    describe_images,
)
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.other_images import (
    BrokenImages,
    CorruptedImages,
    on_unchanged,
    only_changed,
    parse_operations,
    parse_others,
)
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result
from ndavid.evaluation.provenance import trace_images, training_run
from ndavid.evaluation.report import Picture, write_outputs
from ndavid.files import whole_path
from ndavid.models.gan.spectral_norm import shared_spectral_norm
from ndavid.models.weights.release import LoadedGan, load_gan
from ndavid.progress import Progress
from ndavid.ranges import AT_LEAST_1, check_ranges, check_workers

SCORES_FILE = "scores.safetensors"

_ALL = "all"


@dataclass(kw_only=True)
class AnomalyConfig:
    """Whose discriminator is asked, and about which images."""

    output: str = ""
    """folder for result.json, report.html and the scores; empty:
    runs/, the checkpoint\'s name and -anomaly (evaluation/output_folder.py)"""
    checkpoint: str = ""
    """a GAN's run or one of its checkpoints; of the discriminator there is no average"""
    data: DataConfig = field(default_factory=lambda: DataConfig(split="test"))
    """images of the GAN's own data that it was not trained on; the same classes"""
    others: list[str] = field(default_factory=list)
    """other image sets, each [NAME=]SOURCE:KEY=VALUE,... with the keys of data, such as
    svhn:root=data/svhn,download=true or Places365=flat:root=data/places365/val_256,split="""
    cifar_c: str = ""
    """folder of CIFAR-10-C's .npy files; empty: corruptions are made here"""
    corruptions: list[str] = field(default_factory=list)
    """corruptions of the test images, by name; [all]: all of the folder, or that are made here"""
    severities: list[int] = field(default_factory=lambda: list(SEVERITIES))
    """of corruptions, from 1 to 5"""
    nda: list[str] = field(default_factory=list)
    """operations that break copies of the test images (jigsaw:grid=2), a column each"""
    over_labels: OverLabels = "max"
    """of a conditional discriminator: the class that it finds most real, or the mean over all"""
    max_images: int = 0
    """images of each set, at most, drawn from the seed; 0 takes all"""
    resamples: int = 1000
    """of the bootstrap"""
    on_bad: Literal["raise", "skip"] = "raise"
    """an unreadable image: an error, or left out and counted in the result"""
    batch_size: int = 256
    """images a forward pass"""
    num_workers: int = 0
    """loader processes; 0 is fastest for small images, which lie in memory"""
    seed: int = 0
    """draws what corruptions, operations and the bootstrap draw"""
    device: Literal["auto", "cpu"] = "auto"
    """a GPU where there is one, or always the CPU"""

    def __post_init__(self) -> None:
        if not (self.others or self.nda or self.corruptions):
            raise ConfigError("name what to compare with: others, corruptions or nda")
        if self.cifar_c and not self.corruptions:
            raise ConfigError("cifar_c wants corruptions: [all], or some of them by name")
        if not set(self.severities) <= set(SEVERITIES) or not self.severities:
            raise ConfigError(f"severities lie from 1 to 5, got {self.severities}")
        for name in ("corruptions", "severities"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"{name}: name each once, not {getattr(self, name)}")
        check_ranges(self, batch_size=AT_LEAST_1)
        check_workers(self)
        if self.max_images < 0 or self.resamples < 2:
            raise ConfigError("max_images must not be negative, and resamples be at least 2")


@alone_in_output
def run(config: AnomalyConfig) -> Result:
    """Scores every set, writes ``result.json``, ``report.html`` and the scores; returns the result.

    Raises:
        ConfigError, CheckpointError, DataError: See ``errors``; each in one line.
    """
    started = time.monotonic()
    if not config.checkpoint:
        raise ConfigError("checkpoint is empty; give a GAN's run or one of its checkpoints")
    loaded = load_gan(config.checkpoint, ema=False)
    columns = _Columns(config, loaded)
    scored = columns.scored()
    return _write(config, loaded, columns, scored, time.monotonic() - started)


# ---- scores -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scored:
    """A column's scores: of the test images, another set, or copies of the test images."""

    scores: Tensor
    indices: Tensor
    bad: Sequence[tuple[str, str]]
    copies: bool = False
    unchanged: int = 0
    """broken copies that are their originals, left out"""


class _Columns:
    """The test images, and everything that they are set against."""

    def __init__(self, config: AnomalyConfig, loaded: LoadedGan) -> None:
        self.config = config
        size = loaded.gan.config.image_size
        # All that can be wrong with the config is found out before the first image is scored.
        self.operations = parse_operations(config.nda, size)
        self.views = ImageViewsConfig(
            size=size,
            resize=size,  # as recipes/train_gan.py shows images
            on_bad=config.on_bad,
            views_per_batch=config.batch_size,
            num_workers=config.num_workers,
        )
        self.corruptions = self._corruption_names()
        self.others = {
            name: self._some(open_images(data))
            for name, data in parse_others(config.others).items()
        }
        whole = open_images(dataclasses.replace(config.data, classes=[]))
        self.all_classes = whole.classes
        self.test = self._some(self._chosen(whole))
        self.device = make_accelerator(device=config.device).device
        self.score = AnomalyScore(loaded.gan.discriminator, config.over_labels)
        self.score.to(self.device).eval()

    @property
    def corrupted_set(self) -> str:
        """What the corruptions are called together."""
        if self.config.cifar_c:
            return Path(self.config.cifar_c).absolute().name
        return "made corruptions"

    def scored(self) -> dict[str, _Scored]:
        """Returns the scores by column; those of the test images come first, as ``test``."""
        found = {"test": self._scored(ImageViews(self.test, self.views), "test images")}
        for name, source in self.others.items():
            found[name] = self._scored(ImageViews(source, self.views), name)
        for spec, operation in self.operations.items():
            broken = BrokenImages(self.test, self.views, operation, self.config.seed)
            found[f"NDA {spec}"] = self._scored(broken, spec, copies=True)
        for name in self.corruptions:
            for severity in self.config.severities:
                corrupted, copies = self._corrupted(name, severity)
                words = corruption_column(name, severity)
                found[words] = self._scored(corrupted, words, copies=copies)
        return found

    def _corruption_names(self) -> list[str]:
        wanted = self.config.corruptions
        if self.config.cifar_c:
            known = corruption_files(self.config.cifar_c)
            if unknown := set(wanted) - {_ALL, *known}:
                raise ConfigError(
                    f"{self.config.cifar_c} has no {sorted(unknown)[0]}.npy; it holds "
                    f"{', '.join(known)}"
                )
            return known if _ALL in wanted else wanted
        if _ALL in wanted:
            return list(CORRUPTIONS)
        for name in wanted:
            check_corruption(name, SEVERITIES[0])
        return wanted

    def _corrupted(self, name: str, severity: int) -> tuple[ImageViews, bool]:
        """The corrupted test images, and whether each is a copy of that test image."""
        config = self.config
        if not config.cifar_c:
            return CorruptedImages(self.test, self.views, name, severity, config.seed), True
        files = open_cifar_c(config.cifar_c, name, severity, self.all_classes)
        source = self._some(self._chosen(files))
        return ImageViews(source, self.views), torch.equal(source.labels, self.test.labels)

    def _chosen(self, source: ImageSource) -> ImageSource:
        classes = self.config.data.classes
        return class_subset(source, classes) if classes else source

    def _some(self, source: ImageSource) -> ImageSource:
        if not len(source):
            raise DataError(source.origin, "no images to score")
        return at_most(source, self.config.max_images, self.config.seed)

    def _scored(self, dataset: ImageViews, words: str, *, copies: bool = False) -> _Scored:
        with shared_spectral_norm(self.score.discriminator):
            found: PerItem = per_item(
                self.score,
                dataset,
                device=self.device,
                on_bad=self.views.on_bad,
                views_per_batch=self.views.views_per_batch,
                num_workers=self.views.num_workers,
                description=words,
            )
        kept = only_changed(found.unchanged, len(found.indices), words)
        return _Scored(
            found.values.flatten()[kept],
            found.indices[kept],
            found.bad,
            copies,
            int((~kept).sum()),
        )


def corruption_column(name: str, severity: int) -> str:
    """Returns what a corruption at one severity is called."""
    return f"{name} {severity}"


# ---- result -------------------------------------------------------------------------------------


def compare(
    scored: Mapping[str, _Scored], resamples: int, draws: torch.Generator
) -> dict[str, Detection]:
    """Returns how well each column is told from ``test``, its first."""
    test = scored["test"]
    bootstrap = Bootstrap(test.scores, resamples, draws)
    found = {}
    columns = {name: column for name, column in scored.items() if name != "test"}
    with Progress(len(columns), "intervals", unit="column", silent=rank() != 0) as progress:
        for name, column in columns.items():
            copies_of = None
            if column.copies:
                # Of an image that could not be read there is no copy either.
                copies_of = torch.searchsorted(test.indices, column.indices)
            found[name] = bootstrap.compare(column.scores, copies_of)
            progress.advance()
    return found


def _write(
    config: AnomalyConfig,
    loaded: LoadedGan,
    columns: _Columns,
    scored: dict[str, _Scored],
    seconds: float,
) -> Result:
    found = compare(scored, config.resamples, generator(config.seed, "anomaly bootstrap"))
    metrics, details = _numbers(found, columns)
    shares = _shares(scored)
    provenance = trace_images(loaded.opened, config.data, len(scored["test"].scores))
    protocol = describe_images(columns.views, config.data, columns.test, split=config.data.split)
    protocol.num_images = len(scored["test"].scores)
    protocol.num_bad = len(scored["test"].bad)
    protocol.averaging = _score_in_words(config, loaded)
    protocol.selection = f"step {loaded.step}, weights as trained: a discriminator has no average"
    for name, column in scored.items():
        protocol.warn(*unreadable(column.bad, name, "images"))
    protocol.notes += [*provenance.notes, *_notes(config, loaded, columns, scored)]
    left_out = {name: column.unchanged for name, column in scored.items() if column.unchanged}
    protocol.warn(*on_unchanged(left_out))
    result = Result(
        task="anomaly",
        metrics=metrics,
        protocol=protocol,
        network=f"{loaded.gan.config.architecture} discriminator",
        chances=_chances(metrics, shares, columns),
        checkpoint={"path": config.checkpoint, "sha256": loaded.opened.digest},
        seed=config.seed,
        seconds=seconds,
        environment=describe_environment(
            seed=config.seed, device=columns.device, world_size=world_size(), precision="no"
        ),
        details={
            **details,
            "scores": {name: quartiles(column.scores) for name, column in scored.items()},
            "sets": shares,
            "unchanged": left_out,
            "step": loaded.step,
            "pretraining": provenance.details,
            "bad": [list(entry) for column in scored.values() for entry in column.bad],
        },
    )
    pictures: list[Picture] = []
    if rank() == 0:
        _save_scores(Path(config.output), scored)
        pictures = _pictures(metrics, found, columns, scored)
    return write_outputs(result, config, config.output, pictures=pictures)


def _numbers(
    found: Mapping[str, Detection], columns: _Columns
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Every headline by name; single corruptions and severities go into the details."""
    named = {name: found[name] for name in columns.others}
    if len(named) > 1:
        named["mean of the other sets"] = mean_of(list(named.values()))
    details: dict[str, Any] = {}
    if columns.corruptions:
        severities = columns.config.severities
        grid = {
            name: [found[corruption_column(name, severity)] for severity in severities]
            for name in columns.corruptions
        }
        everything = [one for row in grid.values() for one in row]
        named[f"mean of {columns.corrupted_set}"] = mean_of(everything)
        details["corruptions"] = {
            name: {
                "mean": _plain(mean_of(row)),
                **{str(s): _plain(one) for s, one in zip(severities, row, strict=True)},
            }
            for name, row in grid.items()
        }
        details["severities"] = {
            str(severity): _plain(mean_of([row[place] for row in grid.values()]))
            for place, severity in enumerate(severities)
        }
    named |= {f"NDA {spec}": found[f"NDA {spec}"] for spec in columns.operations}
    metrics = {
        f"{metric} {name}": value
        for name, detection in named.items()
        for metric, value in detection.metrics().items()
    }
    return metrics, details


def _plain(detection: Detection) -> dict[str, Any]:
    return {name: dataclasses.asdict(metric) for name, metric in detection.metrics().items()}


def _shares(scored: Mapping[str, _Scored]) -> dict[str, dict[str, float]]:
    """How many images each column has, and what an AUPR of guessing would be."""
    known = len(scored["test"].scores)
    counts = {name: len(column.scores) for name, column in scored.items() if name != "test"}
    return {
        name: {"images": count, "AUPR of guessing": count / (count + known)}
        for name, count in counts.items()
    }


def _chances(
    metrics: Mapping[str, Metric], shares: Mapping[str, Mapping[str, float]], columns: _Columns
) -> dict[str, float]:
    """What guessing scores in each column; of a mean over columns, the mean of theirs."""
    corruptions = [
        corruption_column(name, severity)
        for name in columns.corruptions
        for severity in columns.config.severities
    ]
    means = {
        "mean of the other sets": list(columns.others),
        f"mean of {columns.corrupted_set}": corruptions,
    }
    chances = {}
    for full in metrics:
        metric, name = full.split(" ", 1)
        over = means.get(name, [name])
        aupr = sum(shares[column]["AUPR of guessing"] for column in over) / len(over)
        chances[full] = {"AUROC": 0.5, "AUPR": aupr, "FPR95": 0.95}[metric]
    return chances


def _score_in_words(config: AnomalyConfig, loaded: LoadedGan) -> str:
    number = loaded.gan.config.num_classes
    if number <= 1:
        return "score -D(x), pixels in [-1, 1]"
    over = "the largest" if config.over_labels == "max" else "the mean"
    return f"score -D(x, y), {over} D over all {number} classes y; pixels in [-1, 1]"


def _notes(
    config: AnomalyConfig,
    loaded: LoadedGan,
    columns: _Columns,
    scored: Mapping[str, _Scored],
) -> list[str]:
    notes = [
        "Anomalies are the class to be found. AUROC and FPR95 of guessing are 50% and 95%, less "
        "FPR95 is better; AUPR of guessing is the anomalies' share of the images, which differs "
        "between sets.",
        f"Intervals: percentiles of {config.resamples} bootstrap resamples of the images; copies "
        "are drawn with their originals, and n does not count them. They know nothing of seeds.",
    ]
    if config.max_images:
        notes.append(f"At most {config.max_images} images of each set, drawn from the seed.")
    if columns.corruptions and not config.cifar_c:
        notes.append(
            f"Corruptions: {len(columns.corruptions)}, made here, not CIFAR-10-C's: the two must "
            "not be compared."
        )
    if columns.corruptions and not scored[_last_corruption(columns)].copies:
        notes.append(f"{columns.corrupted_set} is not of the test images that it is set against.")
    if columns.operations:
        notes.append(
            "NDA columns: test images against broken copies of themselves; no other data, and in "
            "no mean."
        )
    run_of_ours = training_run(loaded.opened)
    if run_of_ours is not None:
        notes += run_of_ours.notes_on_operations() + run_of_ours.notes_on_classes(config.data)
    return notes


def _last_corruption(columns: _Columns) -> str:
    return corruption_column(columns.corruptions[-1], columns.config.severities[-1])


def _save_scores(folder: Path, scored: Mapping[str, _Scored]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: column.scores.contiguous() for name, column in scored.items()}
    with whole_path(folder / SCORES_FILE) as partial:
        save_file(tensors, partial)


def _pictures(
    metrics: Mapping[str, Metric],
    found: Mapping[str, Detection],
    columns: _Columns,
    scored: Mapping[str, _Scored],
) -> list[Picture]:
    """AUROC at a glance, a histogram a set, and the corruptions by severity."""
    prefix = "AUROC "
    rows = [
        (name.removeprefix(prefix), metric)
        for name, metric in metrics.items()
        if name.startswith(prefix)
    ]
    pictures = [Picture(title="AUROC", image=accuracy_figure(rows, 0.5, "AUROC"))]
    test = scored["test"].scores
    label = "score, -D(x); known images filled"
    for name in [*columns.others, *(f"NDA {spec}" for spec in columns.operations)]:
        image = histogram_figure(test, {name: scored[name].scores}, label)
        pictures.append(Picture(title=f"Scores: {name}", image=image))
    if not columns.corruptions:
        return pictures
    severities = columns.config.severities
    grid = {
        name: [float(found[corruption_column(name, s)].values[0]) for s in severities]
        for name in columns.corruptions
    }
    title = f"{columns.corrupted_set.capitalize()}: AUROC by severity"
    pictures.append(Picture(title=title, image=severity_figure(grid, severities)))
    for name in columns.corruptions:
        by_severity = {
            f"severity {s}": scored[corruption_column(name, s)].scores for s in severities
        }
        image = histogram_figure(test, by_severity, label)
        pictures.append(Picture(title=f"Scores: {name.replace('_', ' ')}", image=image))
    return pictures
