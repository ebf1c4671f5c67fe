"""How good are generated images? Distances to real ones, from a GAN's checkpoint or from files.

    fcd, kcd   Frechet and kernel distance in the features of a classifier that
               recipes/train_classifier.py trained: no download, never comparable with FID.
    FID, KID, IS   the same in Inception's features, and the Inception Score: from a local file of
               its weights, or after a download that was asked for.
    precision, recall   shares of generated images near real ones, and the reverse, in each space.

A number moves by several points with the number of images, the reference split, the resizer and
the weights (averaged or not; last, or the best of many), with batch norm's statistics and the way
to uint8: a Result carries all of them. The
checkpoint is the last one, or the best of those kept, chosen by other samples against the *train*
split.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from scipy.special import stdtrit
from torch import Tensor
from torch_fidelity.metric_isc import isc_features_to_metric

from ndavid.checkpoint_files import FOLDER, step_folders
from ndavid.collectives import rank, world_size
from ndavid.data.config import DataConfig
from ndavid.data.image_sources import ImageSource
from ndavid.data.images import open_images
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.environment import describe as describe_environment
from ndavid.engine.rng import generator
from ndavid.errors import CheckpointError, ConfigError, DataError, TrainingError
from ndavid.evaluation.data_warnings import unreadable
from ndavid.evaluation.gan_sheets import write_sheet
from ndavid.evaluation.generation_distances import (
    frechet,
    kernel_distance,
    precision_and_recall,
)
from ndavid.evaluation.generation_features import (
    FeatureSpace,
    classifier_space,
    inception_space,
)
from ndavid.evaluation.generation_samples import (
    Compute,
    GanSamples,
    at_most,
    source_features,
    source_sheet,
    together_in_one,
)
from ndavid.evaluation.image_views import (
    ImageViewsConfig,
    dataset_name,
    describe_images,
    share_images,
)
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result
from ndavid.evaluation.provenance import training_run
from ndavid.evaluation.report import Picture, write_outputs
from ndavid.evaluation.settings import feature_folder
from ndavid.models.batchnorm import drop_running_stats
from ndavid.models.weights.checkpoint import LoadedCheckpoint, Weights
from ndavid.models.weights.release import LoadedGan, load_gan

_SPLITS_OF_IS = 10
_FEWEST = 20


@dataclass(kw_only=True)
class GenerationConfig:
    """What is measured against what, and in which features."""

    output: str = ""
    """folder for result.json, report.html and the sheets; empty:
    runs/, the checkpoint\'s name and -generation (evaluation/output_folder.py)"""
    checkpoint: str = ""
    """a GAN's run or one of its checkpoints; empty: images from files (generated)"""
    weights: Weights = "ema"
    """ema: the averaged generator; model: the generator as trained"""
    choose: Literal["last", "best"] = "last"
    """of a run: its last checkpoint, or the best of those kept, by other samples against
    choose_split"""
    choose_split: str = "train"
    """the split of reference that chooses; not the one that is measured, unless that is train"""
    choose_samples: int = 5000
    """images of each side to choose by"""
    statistics: Literal["running", "batch"] = "running"
    """what the generator's batch norm uses: its running statistics (eval mode), or those of each
    batch of samples (train mode, as published FIDs; batch_size 64 there)"""
    pixels: Literal["rounded", "floored"] = "rounded"
    """how samples become uint8: the nearest number, or the one below (as published FIDs)"""
    generated: DataConfig = field(default_factory=DataConfig)
    """generated images in files (source flat, folder or packed), where there is no checkpoint"""
    num_samples: int = 10000
    """generated images, at most; 0 takes all there are in files"""
    reference: DataConfig = field(default_factory=lambda: DataConfig(split="test"))
    """the real images"""
    reference_samples: int = 0
    """real images, drawn from the seed; 0 takes all"""
    classifier: str = ""
    """run of recipes/train_classifier.py, for fcd and kcd; empty: none"""
    inception_weights: str = ""
    """torch-fidelity's file of Inception's weights, for FID, KID and IS; empty: none"""
    download: bool = False
    """fetch Inception's weights, where no file of them is given"""
    views: ImageViewsConfig = field(default_factory=ImageViewsConfig)
    """the size at which images are compared, real and generated alike"""
    subset_size: int = 1000
    """images of each side in a subset of the kernel distance"""
    k: int = 3
    """the neighbour whose distance is the radius for precision and recall"""
    manifold_samples: int = 10000
    """images of each side for precision and recall, at most"""
    batch_size: int = 250
    """samples drawn at a time"""
    seed: int = 0
    """draws latents and subsets"""
    device: Literal["auto", "cpu"] = "auto"
    """a GPU where there is one, or always the CPU"""
    cache: str = ""
    """folder for the features of real images; empty keeps them in output/features"""

    def __post_init__(self) -> None:
        for name, least in (
            ("num_samples", _FEWEST if self.checkpoint else 0),
            ("choose_samples", _FEWEST),
            ("subset_size", 2),
            ("k", 1),
            ("manifold_samples", self.k + 1),
            ("batch_size", 1),
            ("reference_samples", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.views.resize is None:
            # As GANs are trained: the short side fills the image.
            self.views = dataclasses.replace(self.views, resize=self.views.size)

    def check_named(self) -> None:
        """Raises ConfigError unless the config names what to measure, and in which features."""
        if bool(self.checkpoint) == bool(self.generated.root):
            raise ConfigError(
                "name what to measure: checkpoint (a GAN's run) or generated.root (a folder or "
                "archive of images), and only one of them"
            )
        if not self.classifier and not self.inception_weights and not self.download:
            raise ConfigError(
                "name the features to compare in: classifier (a run of recipes/train_classifier.py)"
                ", --inception-weights FILE, or --download true for Inception's weights"
            )
        if self.choose == "best" and not self.checkpoint:
            raise ConfigError("choose: best chooses among checkpoints; files have none")
        if self.choose == "best" and self.choose_split == self.reference.split != "train":
            raise ConfigError(
                f"choose_split is {self.choose_split}, which is what is measured: choose by train, "
                "or the best of many is reported on the images that chose it"
            )


@alone_in_output
def run(config: GenerationConfig) -> Result:
    """Measures, writes ``result.json``, ``report.html`` and the sheets, and returns the Result.

    Raises:
        ConfigError, CheckpointError, DataError, TrainingError: See ``errors``; each in one line.
    """
    config.check_named()
    return _Evaluation(config).run()


@dataclass(frozen=True)
class _Generated:
    """Features of generated images, and what is known about them."""

    features: Tensor
    sheet: Tensor
    source: dict[str, str]
    selection: str
    notes: list[str]
    details: dict[str, Any]
    card: dict[str, str] = field(default_factory=dict)
    network: str = ""


class _Evaluation:
    """One evaluation: what to measure is generated or read, then compared in every space."""

    def __init__(self, config: GenerationConfig) -> None:
        self.config = config
        self.started = time.monotonic()
        self.warnings: list[str] = []
        self.device = make_accelerator(device=config.device).device
        self.reference = self._images(config.reference, config.reference_samples)
        self.spaces = _spaces(config)
        self.compute: Compute = together_in_one([s.network for s in self.spaces], self.device)

    def run(self) -> Result:
        config = self.config
        made = self._from_gan() if config.checkpoint else self._from_files()
        real = self._features(self.reference, "real images")
        metrics: dict[str, Metric] = {}
        details: dict[str, Any] = {"spaces": []}
        start = 0
        for space in self.spaces:
            columns = slice(start, start + space.dim + space.logits)
            found, more = _measure(space, made.features[:, columns], real[:, columns], config)
            metrics |= found
            details["spaces"].append(space.card() | more | made.card)
            start = columns.stop
        protocol = describe_images(
            config.views, config.reference, self.reference, split=config.reference.split
        )
        protocol.num_images = len(real)
        protocol.num_bad = len(self.reference) - len(real)
        protocol.warn(*self.warnings)
        protocol.averaging = (
            f"{len(made.features)} generated against {len(real)} real images, both uint8"
        )
        protocol.selection = made.selection
        protocol.notes += [*made.notes, *self._notes()]
        result = Result(
            task="generation",
            metrics=metrics,
            protocol=protocol,
            network=made.network,
            checkpoint=made.source,
            seed=config.seed,
            seconds=time.monotonic() - self.started,
            environment=describe_environment(
                seed=config.seed, device=self.device, world_size=world_size(), precision="no"
            ),
            details=details | made.details,
        )
        return write_outputs(result, config, config.output, pictures=self._pictures(made))

    # ---- generated images -----------------------------------------------------------------------

    def _from_gan(self) -> _Generated:
        config = self.config
        checkpoint, chosen_by = config.checkpoint, "last checkpoint"
        table: list[dict[str, Any]] = []
        if config.choose == "best":
            checkpoint, table = self._best_checkpoint()
            chosen_by = (
                f"best of the {len(table)} kept checkpoints by {self.spaces[0].frechet} of "
                f"{config.choose_samples} other samples against {config.choose_split}"
            )
        loaded = self._load(checkpoint)
        samples = self._samples(loaded, config.num_samples, "samples")
        kind = "averaged weights (EMA)" if loaded.ema else "weights as trained, not averaged"
        notes = [f"Samples of {checkpoint}, step {loaded.step}, {kind}."]
        card = self._card()
        notes.append(f"Batch norm by {card['batch norm']}; pixels {card['pixels']}.")
        notes += self._notes_on_training(loaded.opened, loaded.gan.config.image_size)
        return _Generated(
            features=samples.features(self.compute),
            sheet=samples.sheet(),
            source={"path": checkpoint, "sha256": loaded.generator.digest},
            selection=f"{chosen_by}: step {loaded.step}, {kind}",
            notes=notes,
            details={"step": loaded.step, "ema": loaded.ema, "choice": table},
            card=card,
            network=f"{loaded.gan.config.architecture} generator",
        )

    def _card(self) -> dict[str, str]:
        """How samples are made, in words: the same weights have other distances otherwise."""
        config = self.config
        by_batch = f"statistics of each batch of {config.batch_size} samples (train mode)"
        running = config.statistics == "running"
        return {
            "batch norm": "running statistics (eval mode)" if running else by_batch,
            "pixels": f"{config.pixels} to uint8",
        }

    def _from_files(self) -> _Generated:
        config = self.config
        source = self._images(config.generated, config.num_samples)
        return _Generated(
            features=self._features(source, "generated images"),
            sheet=source_sheet(source, config.views),
            source={"path": config.generated.root, "sha256": source.digest},
            selection="images as they were given",
            notes=[f"Generated images: {dataset_name(config.generated)}, from files."],
            details={},
        )

    def _best_checkpoint(self) -> tuple[str, list[dict[str, Any]]]:
        """The checkpoint that is nearest to the split that chooses, and how near all of them are.

        The first space's Frechet distance decides; of equal ones the earliest step stays.
        """
        config, space = self.config, self.spaces[0]
        kept = step_folders(Path(config.checkpoint))
        if not kept:
            raise CheckpointError(
                f"{config.checkpoint}: choose: best needs a run's folder, with {FOLDER}/ in it"
            )
        data = dataclasses.replace(config.reference, split=config.choose_split)
        real = self._features(self._images(data, config.choose_samples), "images that choose")
        table = []
        for folder in reversed(kept):
            loaded = self._load(str(folder))
            samples = self._samples(loaded, config.choose_samples, "choice")
            found = frechet(samples.features(self.compute)[:, : space.dim], real[:, : space.dim])
            row = {"step": loaded.step, space.name(space.frechet): found.value}
            if rank() == 0:
                print(f"step {loaded.step}: {space.frechet} {found.value:.4g} to choose by")
            table.append((found.value, str(folder), row))
        best = min(table, key=lambda entry: entry[0])
        return best[1], [row for _, _, row in table]

    def _load(self, checkpoint: str) -> LoadedGan:
        return load_gan(checkpoint, ema=self.config.weights == "ema")

    def _samples(self, loaded: LoadedGan, count: int, purpose: str) -> GanSamples:
        gan = loaded.gan
        gan.generator = gan.generator.to(self.device)
        config = self.config
        if config.statistics == "batch":
            # Not by train mode: ranks would wait for each other, and running statistics move.
            drop_running_stats(gan.generator)
        return GanSamples(
            gan=gan,
            count=count,
            seed=config.seed,
            purpose=purpose,
            views=config.views,
            batch_size=config.batch_size,
            device=self.device,
            floored=config.pixels == "floored",
        )

    def _notes_on_training(self, opened: LoadedCheckpoint, made_at: int) -> list[str]:
        """What of a GAN's training a reader of its numbers must know."""
        reference, size = self.config.reference, self.config.views.size
        notes = []
        if made_at != size:
            notes.append(f"Images are made at {made_at} px and compared at {size} px.")
        trained = training_run(opened)
        if trained is None:
            return notes
        if share_images(reference, trained.data):
            notes.append("The GAN was trained on the reference images.")
        return notes + trained.notes_on_operations() + trained.notes_on_classes(reference)

    # ---- images in files ------------------------------------------------------------------------

    def _images(self, data: DataConfig, count: int) -> ImageSource:
        source = at_most(open_images(data), count, self.config.seed)
        if len(source) < _FEWEST:
            raise ConfigError(
                f"{source.origin}: {len(source)} images are too few to measure by; need {_FEWEST}"
            )
        return source

    def _features(self, source: ImageSource, words: str) -> Tensor:
        networks = hashlib.sha256(" ".join(s.sha256 for s in self.spaces).encode()).hexdigest()
        found = source_features(
            source,
            self.config.views,
            self.compute,
            self.device,
            description=words,
            network=networks,
            cache=feature_folder(self.config.cache, self.config.output),
        )
        if len(found.values) < _FEWEST:
            raise DataError(
                source.origin,
                f"{len(found.values)} of {len(source)} images can be read, too few to measure by; "
                f"need {_FEWEST}",
            )
        self.warnings += unreadable(found.bad, *words.split(" ", 1))
        return found.values

    # ---- what a reader sees ---------------------------------------------------------------------

    def _notes(self) -> list[str]:
        config = self.config
        notes = []
        for space in self.spaces:
            notes.append(
                f"{space.name(space.frechet)}, {space.name(space.kernel)}: features of "
                f"{space.about} (sha256 {space.sha256[:16]}…), resizer: {space.resizer}."
            )
            notes += space.notes
        if any(space.frechet == "fcd" for space in self.spaces):
            notes.append("fcd and kcd are no FID and KID: compare them in the same features only.")
            classifiers = [training_run(space.opened) for space in self.spaces]
            if any(c is not None and share_images(config.reference, c.data) for c in classifiers):
                notes.append("The classifier was trained on the reference images.")
        notes.append(
            "The kernel distance is the mean over disjoint subsets of at most "
            f"{config.subset_size} images a side, without bias."
        )
        notes.append(
            f"Precision and recall: {config.k} neighbours, at most {config.manifold_samples} "
            "images a side. Intervals cover the choice of images, not the seed of the training; "
            "compare at the same number of images only."
        )
        return notes

    def _pictures(self, made: _Generated) -> Sequence[Picture]:
        """Writes the two sheets on rank 0."""
        if rank() != 0:
            return []
        folder = Path(self.config.output)
        sheets = {
            "generated": made.sheet,
            "reference": source_sheet(self.reference, self.config.views),
        }
        for name, sheet in sheets.items():
            write_sheet(sheet, folder / f"{name}.png")
        return [
            Picture(title=f"{name.capitalize()} images", image=folder / f"{name}.png")
            for name in sheets
        ]


def _spaces(config: GenerationConfig) -> list[FeatureSpace]:
    spaces = []
    if config.classifier:
        spaces.append(classifier_space(config.classifier, config.views.size))
    if config.inception_weights or config.download:
        spaces.append(inception_space(config.inception_weights, download=config.download))
    return spaces


def _measure(
    space: FeatureSpace, made: Tensor, real: Tensor, config: GenerationConfig
) -> tuple[dict[str, Metric], dict[str, Any]]:
    """Every number of one space by name, and what belongs into its card."""
    x, y = made[:, : space.dim], real[:, : space.dim]
    if config.k >= min(len(x), len(y)):
        raise ConfigError(
            f"k is {config.k}: precision and recall need more than {config.k} images of each side, "
            f"there are {len(x)} generated and {len(y)} real ones"
        )
    kernel = kernel_distance(
        x, y, subset_size=config.subset_size, generator=generator(config.seed, "subsets")
    )
    some = [
        rows[torch.randperm(len(rows), generator=generator(config.seed, "manifold", side))]
        for side, rows in enumerate((x, y))
    ]
    precision, recall = precision_and_recall(
        *(rows[: config.manifold_samples] for rows in some), k=config.k
    )
    found = {
        space.frechet: frechet(x, y),
        space.kernel: kernel,
        "precision": precision,
        "recall": recall,
    }
    card: dict[str, Any] = {"generated": len(x), "reference": len(y)}
    if space.logits:
        found["IS"] = _inception_score(made[:, space.dim :])
        card["IS of the reference"] = _inception_score(real[:, space.dim :]).value
    return {space.name(name): metric for name, metric in found.items()}, card


def _inception_score(logits: Tensor) -> Metric:
    """torch-fidelity's mean over ten parts, with Student's interval of their spread.

    Raises:
        ConfigError: With fewer than two images a part.
    """
    if len(logits) < 2 * _SPLITS_OF_IS:
        raise ConfigError(
            f"IS is a mean over {_SPLITS_OF_IS} parts of two images or more: {len(logits)} images "
            f"are too few, take {2 * _SPLITS_OF_IS} at least"
        )
    if not logits.isfinite().all():
        raise TrainingError("IS: logits that are not finite; the images or weights are broken")
    found = isc_features_to_metric(logits, splits=_SPLITS_OF_IS)
    mean, deviation = found["inception_score_mean"], found["inception_score_std"]
    # The deviation is that of the parts themselves, not of what they are drawn from.
    half = float(stdtrit(_SPLITS_OF_IS - 1, 0.975)) * deviation / math.sqrt(_SPLITS_OF_IS - 1)
    return Metric(mean, len(logits), mean - half, mean + half, percent=False)
