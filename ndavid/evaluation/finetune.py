"""Action recognition: train a classifier on a pretrained (or random) encoder, then test it.

The recipe is that of DPC's fine-tuning (Han, Xie and Zisserman 2019): all blocks through encoder
and GRU, batch norm, dropout, one linear layer; Adam 1e-3, weight decay 1e-3.

Differences from the original code: the encoder's own learning rate really applies (the original's
filter matched no parameter); the reported epoch is the last one, or the best on
held-out *train groups*, never the best on test; short videos loop instead of being dropped; test is
K clips x crops with probabilities averaged. ``protocol: paper_compat`` brings the original's
questionable choices back, for comparison (``paper_compat.py``).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import nn
from torch.utils.data import Dataset

from ndavid.checkpoint_files import EMA_FILE, MODEL_FILE
from ndavid.collectives import world_size
from ndavid.config import to_yaml
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.sampling import usable
from ndavid.data.transforms import AugmentConfig, train_transform
from ndavid.data.video import ClipDataset, collate
from ndavid.engine import checkpoint
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.environment import describe as describe_environment
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import derive_seed, generator
from ndavid.engine.runner import RunConfig, RunResult, fit
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.agreement import together
from ndavid.evaluation.classify import (
    PerItem,
    accuracies,
    classification_details,
    classify,
    pool_confusions,
)
from ndavid.evaluation.paper_compat import NOTES, Subset, draw_subset, long_enough
from ndavid.evaluation.pretrained import ClassifierConfig, load_classifier, locate_each
from ndavid.evaluation.protocol import (
    Protocol,
    ProtocolName,
    Result,
    file_digest,
    mean_over_folds,
)
from ndavid.evaluation.provenance import checkpoint_of, gallery, trace
from ndavid.evaluation.report import write_outputs
from ndavid.evaluation.selection import BestEpoch
from ndavid.evaluation.views import ViewsConfig, describe, labelled, open_manifest, views_dataset
from ndavid.methods.classification import ClassificationMethod
from ndavid.models.batchnorm import track_running_stats

# Keys that only matter after training, so that a trained fold can be tested again with others.
_TEST_KEYS = ("clips", "crops", "on_bad", "views_per_batch", "num_workers")


@dataclass(kw_only=True)
class FinetuneConfig:
    """Fine-tuning, linear probing with augmentation, or training from scratch."""

    output: str = "runs/finetune"
    """folder for result.json, report.html and one run a fold"""
    manifest: str = ""
    """manifest.csv of the prepared dataset, or its folder"""
    checkpoint: str = ""
    """run, checkpoint, saved model or file of the original DPC; empty: random weights. {fold} in it
    stands for the fold's number: one pretraining a fold, which never saw that fold's test videos"""
    mode: Literal["finetune", "linear", "scratch"] = "finetune"
    """train everything; only the head, the rest frozen; everything, and refuse a checkpoint"""
    protocol: ProtocolName = "full"
    """full, or paper_compat: the original's questionable protocol, labelled as such"""
    paper_batch_size: int = 16
    """paper_compat only: batch whose incomplete last one is never scored"""
    folds: list[int] = field(default_factory=lambda: [1])
    """official folds; several are averaged"""
    split: Literal["test", "val"] = "test"
    """the split that is measured; Kinetics is measured on val"""
    validation: float = 0.0
    """share of each class's training videos, by whole groups, held out to choose the epoch;
    0 trains on all and reports the last epoch"""
    validate_every: int = 1
    """epochs between validations"""
    label_smoothing: float = 0.0
    """of the cross entropy"""
    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    """encoder and head"""
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """what is read from each video"""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(preset="finetune"))
    """augmentation of training clips; its size must be that of the views"""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=1e-3, weight_decay=1e-3))
    """optimizer; encoder_lr_scale is the encoder's learning rate as a share of lr"""
    run: RunConfig = field(default_factory=lambda: RunConfig(output="set by output"))
    """length, seed, precision; run.output follows from output"""

    def __post_init__(self) -> None:
        if not self.folds or len(set(self.folds)) != len(self.folds):
            raise ConfigError(f"folds must name each official fold once, not {self.folds}")
        if self.validate_every < 1 or not 0 <= self.validation < 1:
            raise ConfigError("validate_every must be at least 1, and validation in [0, 1)")
        if self.protocol == "paper_compat" and self.validation:
            raise ConfigError("paper_compat chooses the epoch on test videos: set validation: 0")
        if self.mode == "scratch" and self.checkpoint:
            raise ConfigError("mode: scratch takes no checkpoint; use mode: finetune")
        if self.augment.size != self.views.size:
            raise ConfigError(
                f"augment.size is {self.augment.size} and views.size {self.views.size}: "
                "set both to the same"
            )


def run(config: FinetuneConfig) -> Result:
    """Trains and tests every fold; writes ``result.json`` and ``report.html``; returns the result.

    A fold that was interrupted goes on where it was; one that is finished is only tested again.

    Raises:
        ConfigError, CheckpointError, DataError, TrainingError: See ``errors``; each in one line.
    """
    make_accelerator(device=config.run.device)  # Ranks know each other before they print or load.
    manifest = open_manifest(config.manifest)
    locate_each(config.checkpoint, config.folds)
    results = [_Fold(config, manifest, fold).run() for fold in config.folds]
    result = pool_confusions(mean_over_folds(results))
    return write_outputs(
        result,
        config,
        config.output,
        config.manifest,
        backend=config.views.backend,
        pictures=gallery(config.checkpoint, config.folds),
    )


class FrozenEncoderMethod(ClassificationMethod):
    """Classification whose encoder stays as it was: no gradient, and always in eval mode.

    In train mode its batch norm would keep drifting to the new data, which is no linear probe.
    """

    def __init__(self, classifier: nn.Module, label_smoothing: float = 0.0) -> None:
        super().__init__(classifier, label_smoothing)
        for part in self._frozen():
            part.requires_grad_(False)

    def train(self, mode: bool = True) -> FrozenEncoderMethod:
        super().train(mode)
        for part in self._frozen():
            part.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        return [part for name, part in self.classifier.named_children() if name != "head"]


class RandomViews(Dataset[dict[str, Any]]):
    """One random, augmented clip a video, as ``paper_compat`` validates; a test dataset otherwise.

    Args:
        clips: Training-style dataset of the videos.
        seed: With the video's position, decides clip and augmentation.
    """

    def __init__(self, clips: ClipDataset, seed: int) -> None:
        self.clips = clips
        self.seed = seed

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            sample = self.clips[index, derive_seed(self.seed, "view", index)]
        except DataError as error:
            return {"index": index, "bad": [(error.path, error.reason)]}
        return sample | {"video": sample["video"].unsqueeze(0)}


def parameter_groups(method: ClassificationMethod, encoder_lr_scale: float) -> list[dict[str, Any]]:
    """Returns the optimizer's groups: pretrained parameters at their own rate, and the head.

    Raises:
        AssertionError: If a trained parameter is in neither.
    """
    classifier: Any = method.classifier
    encoder, head = list(classifier.encoder_parameters()), list(classifier.head_parameters())
    assert {id(p) for p in (*encoder, *head)} == {id(p) for p in method.parameters()}
    return [{"params": encoder, "lr_scale": encoder_lr_scale}, {"params": head, "lr_scale": 1.0}]


@dataclass(frozen=True)
class _Chosen:
    """The weights to test: how they were chosen, of which epoch (0: the last), and their file."""

    selection: str
    epoch: int
    file: Path


class _Fold:
    """One official fold: its videos, its model, its training run and its test."""

    def __init__(self, config: FinetuneConfig, manifest: Manifest, fold: int) -> None:
        self.config = config
        self.manifest = manifest
        self.fold = fold
        self.seed = derive_seed(config.run.seed, "fold", fold)
        self.folder = Path(config.output) / f"fold_{fold}"
        self.sampler = config.views.sampler()
        self.validation: tuple[ClipRecord, ...] = ()
        self.subset: Subset | None = None
        # Everything that a wrong config or manifest can break is looked at before training.
        self.train = self._split()
        weights = checkpoint_of(config.checkpoint, fold)
        self.provenance = trace(weights, manifest.select(config.split, fold), fold)
        self.loaded = load_classifier(
            weights,
            config.model,
            config.views,
            len(manifest.classes),
            seed=config.run.seed,
        )
        self.method = self._method()

    def run(self) -> Result:
        started = time.monotonic()
        best = self._best_epoch()
        trained = fit(
            self.method,
            self._training_clips(self.train, on_error="next"),
            run=dataclasses.replace(self.config.run, output=str(self.folder)),
            optim=self.config.optim,
            config_yaml=self._training_yaml(),
            collate=collate,
            param_groups=self._groups,
            on_epoch_end=best,
        )
        device = next(self.method.parameters()).device
        chosen = self._choose_weights(trained, best)
        predictions, protocol = self._test(device, chosen.epoch)
        protocol.selection = chosen.selection
        seconds = time.monotonic() - started
        return self._result(trained, chosen, predictions, protocol, device, seconds)

    # ---- videos -----------------------------------------------------------------------------

    def _split(self) -> tuple[ClipRecord, ...]:
        """The training videos; sets the validation videos or the paper's subset beside them."""
        config, manifest, span = self.config, self.manifest, self.sampler.span
        test = labelled(manifest.select(config.split, self.fold), manifest)
        train = labelled(manifest.select("train", self.fold), manifest)
        if config.protocol == "paper_compat":
            draw = generator(self.seed, "paper_compat")
            self.subset = draw_subset(test, span, draw, batch_size=config.paper_batch_size)
            return labelled(long_enough(train, span), manifest)
        if config.validation:
            seed = derive_seed(self.seed, "holdout")
            train, self.validation = manifest.holdout(config.validation, seed, self.fold)
        return usable(train, self.sampler)[0]

    def _training_clips(
        self, records: Sequence[ClipRecord], *, on_error: Literal["raise", "next"]
    ) -> ClipDataset:
        return ClipDataset(
            records,
            self.manifest.root,
            self.sampler,
            train_transform(self.config.augment),
            backend=self.config.views.backend,
            on_error=on_error,
        )

    # ---- model and training -----------------------------------------------------------------

    def _method(self) -> ClassificationMethod:
        if self.config.mode == "linear":
            return FrozenEncoderMethod(self.loaded.classifier, self.config.label_smoothing)
        # Released DPC weights come without running statistics; fine-tuning learns them.
        track_running_stats(self.loaded.classifier)
        return ClassificationMethod(self.loaded.classifier, self.config.label_smoothing)

    def _groups(self, method: ClassificationMethod) -> Iterable[dict[str, Any]]:
        return parameter_groups(method, self.config.optim.encoder_lr_scale)

    def _training_yaml(self) -> str:
        """What decides the trained weights: the run's config.yaml, compared on resume."""
        values = yaml.safe_load(to_yaml(self.config))
        for key in _TEST_KEYS:
            del values["views"][key]
        del values["folds"], values["split"]
        # Which weights training starts from is told by their digest.
        del values["model"]["weights"]
        values["model"]["encoder"] = self.loaded.encoder
        values["fold"] = self.fold
        values["checkpoint_sha256"] = self.loaded.source.get("sha256", "")
        return yaml.safe_dump(values, sort_keys=False)

    # ---- choosing the epoch -----------------------------------------------------------------

    def _best_epoch(self) -> BestEpoch | None:
        if not self.validation and self.subset is None:
            return None
        return BestEpoch(self.folder, self._score, self.config.validate_every)

    def _score(self, method: nn.Module, device: torch.device, epoch: int) -> float:
        assert isinstance(method, ClassificationMethod)
        if self.subset is not None:
            predictions = self._classify_subset(method, device, epoch)
        else:
            dataset, _ = views_dataset(
                self.validation, self.manifest, self.config.views, clips=1, crops=1
            )
            predictions = self._classify(method, dataset, device, "validating")
        return accuracies(predictions)["top1"].value

    def _choose_weights(self, trained: RunResult, best: BestEpoch | None) -> _Chosen:
        """Loads the weights to test, always out of the file that the Result names."""
        found = best.load_into(self.method) if best is not None else None
        if best is not None and found is not None:
            epoch, score = found
            if self.subset is not None:
                where = "the reported test subset itself (questionable)"
            else:
                where = f"{len(self.validation)} videos of held-out train groups, one centre clip"
            words = f"epoch {epoch}, the best of those scored on {where}: {100 * score:.2f}%"
            return _Chosen(words, epoch, best.path)
        stored = together(lambda: checkpoint.load(trained.checkpoint))
        last = f"last step ({trained.steps})"
        if stored.ema is not None:
            self.method.load_state_dict(stored.ema)
            return _Chosen(f"{last}, averaged weights", 0, stored.path / EMA_FILE)
        self.method.load_state_dict(stored.model)
        return _Chosen(last, 0, stored.path / MODEL_FILE)

    # ---- test -------------------------------------------------------------------------------

    def _test(self, device: torch.device, epoch: int) -> tuple[PerItem, Protocol]:
        config, manifest = self.config, self.manifest
        test = manifest.select(config.split, self.fold)
        if self.subset is None:
            dataset, report = views_dataset(test, manifest, config.views)
            predictions = self._classify(self.method, dataset, device, "testing")
        else:
            _, report = usable(test, self.sampler)
            predictions = self._classify_subset(self.method, device, epoch)
        protocol = describe(
            config.views, config.manifest, manifest, report, split=config.split, fold=self.fold
        )
        protocol.num_videos = len(predictions.labels)
        protocol.num_bad = len(predictions.bad)
        protocol.averaging = "softmax averaged over views"
        protocol.notes = [*self.loaded.notes, *self.provenance.notes]
        if self.subset is not None:
            protocol.name = "paper_compat"
            protocol.clips = protocol.crops = 1
            protocol.averaging = "one random augmented clip"
            protocol.short = "drop"
            protocol.num_dropped = self.subset.num_test - self.subset.num_long
            protocol.notes += [*NOTES, self.subset.describe() + "."]
        return predictions, protocol

    def _classify(
        self, method: ClassificationMethod, dataset: Any, device: torch.device, description: str
    ) -> PerItem:
        views = self.config.views
        return classify(
            method,
            dataset,
            device=device,
            on_bad=views.on_bad,
            views_per_batch=views.views_per_batch,
            num_workers=views.num_workers,
            description=description,
        )

    def _classify_subset(
        self, method: ClassificationMethod, device: torch.device, epoch: int
    ) -> PerItem:
        assert self.subset is not None
        scored = self.subset.records[: self.subset.num_scored]
        clips = self._training_clips(scored, on_error="raise")
        dataset = RandomViews(clips, derive_seed(self.seed, "paper_compat", epoch))
        return self._classify(method, dataset, device, "scoring the test subset")

    def _result(
        self,
        trained: RunResult,
        chosen: _Chosen,
        predictions: PerItem,
        protocol: Protocol,
        device: torch.device,
        seconds: float,
    ) -> Result:
        config = self.config
        # Training from random weights is that, whichever mode asked for it.
        from_scratch = not config.checkpoint and config.mode != "linear"
        return Result(
            task="scratch" if from_scratch else config.mode,
            metrics=accuracies(predictions),
            protocol=protocol,
            chance=1 / len(self.manifest.classes),
            checkpoint=self.loaded.source,
            tested={"path": str(chosen.file), "sha256": file_digest(chosen.file)},
            seed=config.run.seed,
            seconds=seconds,
            environment=describe_environment(
                seed=config.run.seed,
                device=device,
                world_size=world_size(),
                precision=config.run.precision,
            ),
            details={
                **classification_details(predictions, self.manifest.classes),
                "key_report": self.loaded.key_report,
                "pretraining": self.provenance.details,
                "training": {
                    "videos": len(self.train),
                    "steps": trained.steps,
                    "checkpoint": str(trained.checkpoint),
                    "bad_clips": trained.bad_clips,
                    "last_metrics": {
                        name: value
                        for name, value in trained.last_metrics.items()
                        if value == value  # JSON has no NaN
                    },
                },
                "bad": [list(entry) for entry in predictions.bad],
            },
        )
