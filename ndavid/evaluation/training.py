"""Train a classifier on labels, choose which of its weights count, and test those.

What is read (the videos of a fold, a share of an image set) is the `Task`'s business. The epoch is
the last one, or the best on items that the task holds out of *train*; a test item never chooses,
but under ``paper_compat``, which says so.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn

from ndavid.checkpoint_files import EMA_FILE, MODEL_FILE
from ndavid.collectives import world_size
from ndavid.config import to_values
from ndavid.engine import checkpoint
from ndavid.engine.environment import describe as describe_environment
from ndavid.engine.loader import Collate, KeyedDataset
from ndavid.engine.loop import RunResult, fit
from ndavid.errors import TrainingError
from ndavid.evaluation.agreement import together
from ndavid.evaluation.chance import classification_chances
from ndavid.evaluation.classify import PerItem, accuracies, classification_details, top_outcomes
from ndavid.evaluation.data_warnings import absent_classes, skipped_in_training, unreadable
from ndavid.evaluation.features import state_digest
from ndavid.evaluation.pretrained import Pretrained
from ndavid.evaluation.protocol import Protocol as MeasuredHow
from ndavid.evaluation.protocol import Result
from ndavid.evaluation.provenance import Provenance
from ndavid.evaluation.selection import BestEpoch
from ndavid.evaluation.settings import TrainingConfig
from ndavid.files import file_sha256
from ndavid.methods.classification import ClassificationMethod
from ndavid.models.batchnorm import track_running_stats


class Task(Protocol):
    """What a classifier is trained and tested on."""

    @property
    def classes(self) -> Sequence[str]:
        """Names in label order."""

    @property
    def selected_on(self) -> str:
        """In words, the items that choose the epoch; empty where none do and the last counts."""

    @property
    def num_training(self) -> int:
        """Items to train on."""

    @property
    def collate(self) -> Collate:
        """Training samples -> a batch with ``video`` (pixels) and ``label``."""

    def training_data(self) -> KeyedDataset:
        """Augmented training items by (index, seed), with a ``digest``."""

    def validate(self, method: ClassificationMethod, device: torch.device, epoch: int) -> PerItem:
        """Predictions on the items that choose the epoch."""

    def test(
        self, method: ClassificationMethod, device: torch.device, epoch: int
    ) -> tuple[PerItem, Sequence[str], MeasuredHow]:
        """Predictions on the test items, and how they were made; of ``epoch``, or 0: the last.

        Between them the names of all test items, unreadable ones too, by the predictions' indices.
        """


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

    def digest(self) -> str:
        """Returns the SHA-256 of everything that must stay as it was."""
        return "".join(state_digest(part) for part in self._frozen())

    def _frozen(self) -> list[nn.Module]:
        return [part for name, part in self.classifier.named_children() if name != "head"]


def build_method(
    loaded: Pretrained, *, frozen: bool, label_smoothing: float
) -> ClassificationMethod:
    """Returns the method that trains a loaded classifier, or only its head."""
    if frozen:
        return FrozenEncoderMethod(loaded.classifier, label_smoothing)
    # Released DPC weights come without running statistics; fine-tuning learns them.
    track_running_stats(loaded.classifier)
    return ClassificationMethod(loaded.classifier, label_smoothing)


def parameter_groups(method: ClassificationMethod, encoder_lr_scale: float) -> list[dict[str, Any]]:
    """Returns the optimizer's groups: pretrained parameters at their own rate, and the head.

    Raises:
        AssertionError: If a trained parameter is in neither.
    """
    classifier: Any = method.classifier
    encoder, head = list(classifier.encoder_parameters()), list(classifier.head_parameters())
    assert {id(p) for p in (*encoder, *head)} == {id(p) for p in method.parameters()}
    return [{"params": encoder, "lr_scale": encoder_lr_scale}, {"params": head, "lr_scale": 1.0}]


def what_decides(
    config: TrainingConfig, loaded: Pretrained, *, without: Iterable[str], extra: dict[str, Any]
) -> dict[str, Any]:
    """Returns what decides the trained weights, nested: the run's config.yaml, compared on resume.

    Args:
        config: The evaluator's config.
        loaded: The classifier; which weights training starts from is told by their digest.
        without: Dotted keys that only matter after training, so that trained weights can be tested
            again with others.
        extra: Further keys.
    """
    values = to_values(config)
    for dotted in (*without, "model.weights"):
        *path, last = dotted.split(".")
        inner = values
        for name in path:
            inner = inner[name]
        del inner[last]
    values["model"]["encoder"] = loaded.encoder
    return values | extra | {"checkpoint_sha256": loaded.source.get("sha256", "")}


@dataclass(frozen=True)
class _Chosen:
    """The weights to test: how they were chosen, of which epoch (0: the last), and their file."""

    selection: str
    epoch: int
    file: Path


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training and its test.

    Attributes:
        name: The Result's task.
        config: How to train.
        task: On what.
        method: What is trained; its classifier is that of ``loaded``.
        loaded: The pretrained weights.
        provenance: What they have seen before.
        folder: The run's folder.
        decides: What decides the trained weights, of `what_decides`.
    """

    name: str
    config: TrainingConfig
    task: Task
    method: ClassificationMethod
    loaded: Pretrained
    provenance: Provenance
    folder: Path
    decides: Mapping[str, Any]

    def run(self) -> Result:
        """Trains (or goes on, or only tests what is trained), and returns the test's Result."""
        started = time.monotonic()
        untouched = self._frozen_digest()
        best = self._best_epoch()
        trained = fit(
            self.method,
            self.task.training_data(),
            run=dataclasses.replace(self.config.run, output=str(self.folder)),
            optim=self.config.optim,
            config=self.config,
            config_values=self.decides,
            collate=self.task.collate,
            param_groups=lambda m: parameter_groups(m, self.config.optim.encoder_lr_scale),
            on_epoch_end=best,
        )
        device = next(self.method.parameters()).device
        chosen = self._choose_weights(trained, best)
        if self._frozen_digest() != untouched:
            raise TrainingError("the frozen encoder changed while its head was trained")
        predictions, names, protocol = self.task.test(self.method, device, chosen.epoch)
        protocol.selection = chosen.selection
        protocol.num_bad = len(predictions.bad)
        protocol.notes = [*self.loaded.notes, *self.provenance.notes, *protocol.notes]
        unit = "images" if protocol.num_images else "videos"
        protocol.warn(
            *unreadable(predictions.bad, "test", unit),
            *absent_classes(self.task.classes, predictions.labels, "test", unit),
            *skipped_in_training(trained.bad_clips, unit),
        )
        seconds = time.monotonic() - started
        return self._result(trained, chosen, predictions, names, protocol, device, seconds)

    def _frozen_digest(self) -> str:
        return self.method.digest() if isinstance(self.method, FrozenEncoderMethod) else ""

    def _best_epoch(self) -> BestEpoch | None:
        if not self.task.selected_on:
            return None
        return BestEpoch(self.folder, self._score, self.config.validate_every)

    def _score(self, method: nn.Module, device: torch.device, epoch: int) -> float:
        predictions = self.task.validate(cast(ClassificationMethod, method), device, epoch)
        return accuracies(predictions)["top1"].value

    def _choose_weights(self, trained: RunResult, best: BestEpoch | None) -> _Chosen:
        """Loads the weights to test, always out of the file that the Result names."""
        found = best.load_into(self.method) if best is not None else None
        if best is not None and found is not None:
            epoch, score = found
            where = f"the best of those scored on {self.task.selected_on}: {100 * score:.2f}%"
            return _Chosen(f"epoch {epoch}, {where}", epoch, best.path)
        stored = together(lambda: checkpoint.load(trained.checkpoint))
        last = f"last step ({trained.steps})"
        if stored.ema is not None:
            self.method.load_state_dict(stored.ema)
            return _Chosen(f"{last}, averaged weights", 0, stored.path / EMA_FILE)
        self.method.load_state_dict(stored.model)
        return _Chosen(last, 0, stored.path / MODEL_FILE)

    def _result(
        self,
        trained: RunResult,
        chosen: _Chosen,
        predictions: PerItem,
        names: Sequence[str],
        protocol: MeasuredHow,
        device: torch.device,
        seconds: float,
    ) -> Result:
        run = self.config.run
        metrics = accuracies(predictions)
        chances = classification_chances(predictions.labels, metrics)
        return Result(
            task=self.name,
            metrics=metrics,
            protocol=protocol,
            network=self.loaded.encoder,
            chance=chances["top1"],
            chances=chances,
            checkpoint=self.loaded.source,
            tested={"path": str(chosen.file), "sha256": file_sha256(chosen.file)},
            seed=run.seed,
            seconds=seconds,
            environment=describe_environment(
                seed=run.seed, device=device, world_size=world_size(), precision=run.precision
            ),
            details={
                **classification_details(predictions, self.task.classes),
                "key_report": self.loaded.key_report,
                "pretraining": self.provenance.details,
                "training": {
                    "items": self.task.num_training,
                    "steps": trained.steps,
                    "checkpoint": str(trained.checkpoint),
                    "bad_items": trained.bad_clips,
                    "last_metrics": {
                        name: value
                        for name, value in trained.last_metrics.items()
                        if value == value  # JSON has no NaN
                    },
                },
                "bad": [list(entry) for entry in predictions.bad],
            },
            outcomes=top_outcomes(predictions, names),
        )
