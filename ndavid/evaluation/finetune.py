"""Action recognition: train a classifier on a pretrained (or random) encoder, then test it.

The recipe is that of DPC's fine-tuning (Han, Xie and Zisserman 2019): all blocks through encoder
and GRU, batch norm, dropout, one linear layer that starts orthogonal; Adam 1e-3, weight decay 1e-3;
a tenth of the rate from epoch 61 on and a hundredth from 81 on (UCF101), or 151 and 251 (HMDB51).
The original's lists of milestones hold one more, which its scheduler never comes to, and name each
epoch one too early.

Differences from the original code: the encoder's own learning rate really applies (the original's
filter matched no parameter); the reported epoch is the last one, or the best on
held-out *train groups*, never the best on test; short videos loop instead of being dropped; test is
K clips x crops with probabilities averaged. ``protocol: paper_compat`` brings the original's
questionable choices back, for comparison (``paper_compat.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from ndavid.config import changeable
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.sampling import ShortClipReport, usable
from ndavid.data.transforms import train_transform
from ndavid.data.video import ClipDataset, collate
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.rng import derive_seed, generator
from ndavid.errors import ConfigError, DataError
from ndavid.evaluation.classify import PerItem, classify, pool_confusions
from ndavid.evaluation.data_warnings import (
    absent_classes,
    damaged,
    dropped,
    shared_videos,
    used_though_damaged,
)
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.paper_compat import NOTES, Subset, draw_subset, long_enough
from ndavid.evaluation.prepared_files import PreparedFiles
from ndavid.evaluation.pretrained import load_classifier, open_folds
from ndavid.evaluation.protocol import Protocol, ProtocolName, Result, mean_over_folds
from ndavid.evaluation.provenance import gallery, trace
from ndavid.evaluation.report import write_outputs
from ndavid.evaluation.settings import TrainingConfig, VideoConfig
from ndavid.evaluation.training import Trial, build_method, what_decides
from ndavid.evaluation.views import (
    describe,
    labelled,
    open_manifest,
    select_labelled,
    views_dataset,
)
from ndavid.methods.classification import ClassificationMethod
from ndavid.models.weights.checkpoint import LoadedCheckpoint
from ndavid.ranges import AT_LEAST_1, check_ranges

# Keys that only matter after training.
_TEST_KEYS = (
    *("folds", "test_split"),
    *("views.clips", "views.crops", "views.on_bad", "views.on_changed"),
    *("views.views_per_batch", "views.num_workers"),
)


@dataclass(kw_only=True)
class FinetuneConfig(VideoConfig, TrainingConfig):
    """Fine-tuning, linear probing with augmentation, or training from scratch."""

    output: str = changeable("")
    """folder for result.json, report.html and one run a fold; empty:
    runs/, the checkpoint\'s name and -finetune (evaluation/output_folder.py)"""
    mode: Literal["finetune", "linear", "scratch"] = "finetune"
    """train everything; only the head, the rest frozen; everything, and refuse a checkpoint"""
    protocol: ProtocolName = "full"
    """full, or paper_compat: the original's questionable protocol, labelled as such"""
    paper_batch_size: int = 16
    """paper_compat only: batch whose incomplete last one is never scored"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_training(self.views.size)
        check_ranges(self, paper_batch_size=AT_LEAST_1)
        if self.protocol == "paper_compat" and self.validation:
            raise ConfigError("paper_compat chooses the epoch on test videos: set validation: 0")
        if self.mode == "scratch" and self.checkpoint:
            raise ConfigError("mode: scratch takes no checkpoint; use mode: finetune")

    def task_name(self) -> str:
        """Returns what the Result calls it: from random weights it is scratch, whoever asked."""
        return "scratch" if not self.checkpoint and self.mode != "linear" else self.mode


@alone_in_output
def run(config: FinetuneConfig) -> Result:
    """Trains and tests every fold; writes ``result.json`` and ``report.html``; returns the result.

    A fold that was interrupted goes on where it was; one that is finished is only tested again.

    Raises:
        ConfigError, CheckpointError, DataError, TrainingError: See ``errors``; each in one line.
    """
    make_accelerator(
        device=config.run.device, data_timeout=config.run.data_timeout
    )  # Ranks know each other before they print or load.
    manifest = open_manifest(config.data)
    opened = open_folds(config.checkpoint, config.model, config.folds)
    results = [_trial(config, manifest, *each).run() for each in opened.items()]
    result = pool_confusions(mean_over_folds(results))
    return write_outputs(
        result,
        config,
        config.output,
        config.data.root,
        backend=config.views.backend,
        pictures=gallery(opened.values()),
    )


def _trial(
    config: FinetuneConfig, manifest: Manifest, fold: int, opened: LoadedCheckpoint | None
) -> Trial:
    """One fold; everything that a wrong config or manifest can break is looked at here."""
    task = _Fold(config, manifest, fold)
    provenance = trace(opened, manifest.select(config.test_split, fold), manifest.root, fold)
    loaded = load_classifier(
        opened, config.model, config.views, len(manifest.classes), seed=config.run.seed
    )
    return Trial(
        name=config.task_name(),
        config=config,
        task=task,
        method=build_method(
            loaded, frozen=config.mode == "linear", label_smoothing=config.label_smoothing
        ),
        loaded=loaded,
        provenance=provenance,
        folder=Path(config.output) / f"fold_{fold}",
        decides=what_decides(config, loaded, without=_TEST_KEYS, extra={"fold": fold}),
    )


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


class _Fold:
    """The videos of one official fold, as a `Task`."""

    collate = staticmethod(collate)

    def __init__(self, config: FinetuneConfig, manifest: Manifest, fold: int) -> None:
        self.config = config
        self.manifest = manifest
        self.fold = fold
        self.seed = derive_seed(config.run.seed, "fold", fold)
        self.sampler = config.views.sampler()
        self.validation: tuple[ClipRecord, ...] = ()
        self.subset: Subset | None = None
        self.train = self._split()

    def _split(self) -> tuple[ClipRecord, ...]:
        """The training videos; sets the validation videos or the paper's subset beside them."""
        config, manifest, span = self.config, self.manifest, self.sampler.span
        test = select_labelled(manifest, config.test_split, self.fold)
        train = select_labelled(manifest, config.data.split, self.fold)
        self.files = PreparedFiles([*train, *test], manifest, config.views.on_changed)
        if config.protocol == "paper_compat":
            draw = generator(self.seed, "paper_compat")
            self.subset = draw_subset(test, span, draw, batch_size=config.paper_batch_size)
            return labelled(long_enough(train, span), manifest)
        if config.validation:
            seed = derive_seed(self.seed, "holdout")
            train, self.validation = manifest.holdout(
                config.validation,
                seed,
                self.fold,
                otherwise="or set validation: 0 (the last epoch is tested then)",
            )
        return usable(train, self.sampler)[0]

    @property
    def classes(self) -> Sequence[str]:
        return self.manifest.classes

    @property
    def num_training(self) -> int:
        return len(self.train)

    @property
    def selected_on(self) -> str:
        if self.subset is not None:
            return "the reported test subset itself (questionable)"
        if self.validation:
            return f"{len(self.validation)} videos of held-out train groups, one centre clip"
        return ""

    def training_data(self) -> ClipDataset:
        return self._training_clips(self.train, on_error="next")

    def validate(self, method: ClassificationMethod, device: torch.device, epoch: int) -> PerItem:
        if self.subset is not None:
            return self._classify_subset(method, device, epoch)
        dataset, _ = views_dataset(
            self.validation, self.manifest, self.config.views, clips=1, crops=1
        )
        return self._classify(method, dataset, device, 1, "validating")

    def test(
        self, method: ClassificationMethod, device: torch.device, epoch: int
    ) -> tuple[PerItem, Sequence[str], Protocol]:
        config, manifest, views = self.config, self.manifest, self.config.views
        test = manifest.select(config.test_split, self.fold)
        if self.subset is None:
            dataset, report = views_dataset(test, manifest, views)
            count = views.clips * views.crops
            scored = dataset.records
            predictions = self._classify(method, dataset, device, count, "testing")
        else:
            _, report = usable(test, self.sampler)
            scored = self.subset.scored
            predictions = self._classify_subset(method, device, epoch)
        protocol = describe(
            views, config.data, manifest, report, split=config.test_split, fold=self.fold
        )
        protocol.num_videos = len(predictions.labels)
        protocol.averaging = "softmax averaged over views"
        if self.subset is not None:
            protocol.name = "paper_compat"
            protocol.clips = protocol.crops = 1
            protocol.averaging = "one random augmented clip"
            protocol.short = "drop"
            protocol.num_dropped = self.subset.num_test - self.subset.num_long
            protocol.notes += [*NOTES, self.subset.describe() + "."]
            protocol.warn(self.subset.describe() + ".")
        self._warn(protocol, test, report)
        protocol.warn(*used_though_damaged(predictions.damaged, test, "test"))
        return predictions, [record.path for record in scored], protocol

    def _warn(
        self, protocol: Protocol, test: Sequence[ClipRecord], report: ShortClipReport
    ) -> None:
        """What was left out of training and test, and what they share."""
        manifest, train = self.manifest, self.manifest.select(self.config.data.split, self.fold)
        if self.subset is None:
            protocol.warn(*dropped(usable(train, self.sampler)[1], len(train), "training"))
            protocol.warn(*dropped(report, len(test), "test"))
        trained = torch.tensor([record.label for record in self.train])
        protocol.warn(*absent_classes(manifest.classes, trained, "training", "videos"))
        protocol.warn(*damaged(train, "training"))
        protocol.warn(*shared_videos(train, test, manifest))
        self.files.tell(protocol)

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
            damaged=self.config.views.damaged,
        )

    def _classify(
        self,
        method: ClassificationMethod,
        dataset: Any,
        device: torch.device,
        views_per_item: int,
        description: str,
    ) -> PerItem:
        views = self.config.views
        return classify(
            method,
            dataset,
            device=device,
            on_bad=views.on_bad,
            views_per_batch=views.views_per_batch,
            views_per_item=views_per_item,
            num_workers=views.num_workers,
            description=description,
        )

    def _classify_subset(
        self, method: ClassificationMethod, device: torch.device, epoch: int
    ) -> PerItem:
        assert self.subset is not None
        clips = self._training_clips(self.subset.scored, on_error="raise")
        dataset = RandomViews(clips, derive_seed(self.seed, "paper_compat", epoch))
        return self._classify(method, dataset, device, 1, "scoring the test subset")
