"""Detection transfer: train a Faster R-CNN on a pretrained image encoder, then measure its AP.

The schedule is that of MoCo's detection part (He et al. 2020, arXiv 1911.05722), in optimizer
steps: 24k of 16 images on VOC 2007+2012 trainval, SGD 0.02, a tenth of it from step 18k and a
hundredth from 22k, 100 steps of warm-up, short sides of 480 to 800 pixels, measured on VOC 2007
test at 800.

Differences from it are those of the detector (``models.detector``), and: VOC's `difficult` objects
are not trained on unless ``data.train_difficult`` says so (detectron2 does); learning rate warms up
from 1/101 of its value, not from 1/1000; images are drawn without replacement epoch by epoch, and
an epoch's last incomplete batch is left out.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import torch

from ndavid.checkpoint_files import EMA_FILE, MODEL_FILE
from ndavid.collectives import world_size
from ndavid.config import changeable, to_values
from ndavid.data.detection import DetectionDataset, DetectionSet, collate_detection
from ndavid.data.detection_sets import DetectionDataConfig, open_detection
from ndavid.data.detection_transforms import DetectionTransform
from ndavid.engine import checkpoint
from ndavid.engine.distributed import make_accelerator
from ndavid.engine.environment import describe as describe_environment
from ndavid.engine.loop import RunResult, fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import generator, seeded
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError
from ndavid.evaluation.agreement import together
from ndavid.evaluation.data_warnings import absent_classes, skipped_in_training
from ndavid.evaluation.detection_ap import (
    ImageResult,
    MatchedDetections,
    Rule,
    bootstrap,
    class_table,
    coco_ap,
)
from ndavid.evaluation.detection_encoder import (
    Backbone,
    BackboneConfig,
    load_backbone,
)
from ndavid.evaluation.detection_inference import detect_all, picture_of
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Protocol, Result
from ndavid.evaluation.report import write_outputs
from ndavid.files import file_sha256
from ndavid.methods.detection import DetectionMethod
from ndavid.models.batchnorm import track_running_stats
from ndavid.models.detector import DetectorConfig, build_detector

RUN_FOLDER = "training"


@dataclass(kw_only=True)
class DetectionConfig:
    """Detection transfer of one pretrained encoder to one detection set."""

    output: str = changeable("")
    """folder for result.json, report.html and the training run; empty:
    runs/, the checkpoint\'s name and -detection (evaluation/output_folder.py)"""
    checkpoint: str = changeable("", when="with the same data")
    """run, checkpoint, saved model or file of the original MoCo; empty: see model"""
    data: DetectionDataConfig = field(default_factory=DetectionDataConfig)
    """the detection set"""
    model: BackboneConfig = field(default_factory=BackboneConfig)
    """the encoder"""
    detector: DetectorConfig = field(default_factory=DetectorConfig)
    """what is built around it"""
    train_sizes: list[int] = field(default_factory=lambda: list(range(480, 801, 32)))
    """short sides of training images, one drawn for each image"""
    test_size: int = 800
    """short side at test"""
    max_size: int = 1333
    """longest long side, in training and at test"""
    flip: bool = True
    """mirror half of the training images"""
    steps: int = 24000
    """optimizer steps of the training"""
    milestones: list[int] = field(default_factory=lambda: [18000, 22000])
    """optimizer steps at which the learning rate is multiplied by optim.gamma"""
    test_batch_size: int = 1
    """images a forward pass at test, on each rank"""
    bootstrap: int = 500
    """resamplings of the test images for the intervals"""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            name="sgd", lr=0.02, momentum=0.9, weight_decay=1e-4, warmup_steps=100
        )
    )
    """optimizer; encoder_lr_scale is the encoder's learning rate as a share of lr"""
    run: RunConfig = field(default_factory=lambda: RunConfig(output="set by output", batch_size=16))
    """seed, precision, bookkeeping; output, epochs and max_steps in it follow from the above"""

    def __post_init__(self) -> None:
        if not self.train_sizes or min(*self.train_sizes, self.test_size, self.max_size) < 32:
            raise ConfigError("train_sizes, test_size and max_size must be at least 32 pixels")
        if self.steps < 1 or self.test_batch_size < 1 or self.bootstrap < 1:
            raise ConfigError("steps, test_batch_size and bootstrap must be at least 1")
        if self.optim.milestones:
            raise ConfigError(
                "optim.milestones counts epochs; give the detector's schedule in optimizer steps, "
                "as milestones"
            )
        if self.milestones != sorted(set(self.milestones)):
            raise ConfigError(f"milestones must increase, not {self.milestones}")


@alone_in_output
def run(config: DetectionConfig) -> Result:
    """Trains and measures; writes ``result.json`` and ``report.html``; returns the result.

    A training that was interrupted goes on where it was; one that is finished is only tested again.

    Raises:
        ConfigError, CheckpointError, DataError, TrainingError: See ``errors``; each in one line.
    """
    started = time.monotonic()
    make_accelerator(
        device=config.run.device, data_timeout=config.run.data_timeout
    )  # Ranks know each other before they print or load.
    # Everything that a wrong config or set can break is looked at before training.
    train, test = together(lambda: _open_sets(config))
    loaded = together(lambda: load_backbone(config.checkpoint, config.model, seed=config.run.seed))
    method = _method(config, loaded, len(train.classes))
    trained = _train(config, method, train, loaded)
    selection, weights = _load_trained(method, trained)
    results = detect_all(
        method,
        DetectionDataset(test, _transform(config)),
        device=next(method.parameters()).device,
        batch_size=config.test_batch_size,
        num_workers=config.run.num_workers,
    )
    metrics, table = _measure(config, test, results)
    result = Result(
        task="detection",
        metrics=metrics,
        protocol=_protocol(config, train, test, loaded, trained, selection),
        network=loaded.encoder.name,
        checkpoint=loaded.source,
        tested={"path": str(weights), "sha256": file_sha256(weights)},
        seed=config.run.seed,
        seconds=time.monotonic() - started,
        environment=describe_environment(
            seed=config.run.seed,
            device=next(method.parameters()).device,
            world_size=world_size(),
            precision=config.run.precision,
        ),
        details={
            "classes": list(test.classes),
            "ap_by_class": table,
            "images": len(test.images),
            "boxes": test.num_objects,
            "boxes_not_counted": sum(int((~image.counted).sum()) for image in test.images),
            "data_digest": test.digest,
            "key_report": loaded.key_report,
            "pretraining": loaded.pretraining,
            "training": _training_details(train, trained),
        },
    )
    return write_outputs(result, config, config.output, pictures=[picture_of(test, results)])


def _open_sets(config: DetectionConfig) -> tuple[DetectionSet, DetectionSet]:
    """The images to train on, and those to measure on."""
    data = config.data
    train = open_detection(data, data.train).with_objects(keep_difficult=data.train_difficult)
    test = open_detection(data, data.test)
    if train.classes != test.classes:
        raise ConfigError(f"{train.name} and {test.name} do not have the same classes")
    both = {image.path for image in train.images} & {image.path for image in test.images}
    if both:
        raise ConfigError(f"{len(both)} images are in data.train and data.test: {min(both)}, ...")
    return train, test


def _transform(config: DetectionConfig) -> DetectionTransform:
    return DetectionTransform(
        config.train_sizes, config.test_size, config.max_size, flip=config.flip
    )


# --- training ---------------------------------------------------------------------------------


def _method(config: DetectionConfig, loaded: Backbone, num_classes: int) -> DetectionMethod:
    if config.detector.norm != "frozen":
        # Weights without running statistics learn them here.
        track_running_stats(loaded.encoder)
    with seeded(config.run.seed, "detector"):
        return DetectionMethod(build_detector(loaded.encoder, config.detector, num_classes))


def _train(
    config: DetectionConfig, method: DetectionMethod, train: DetectionSet, loaded: Backbone
) -> RunResult:
    steps_per_epoch = _steps_per_epoch(config, len(train.images))
    return fit(
        method,
        DetectionDataset(train, _transform(config), on_error="next"),
        run=dataclasses.replace(
            config.run,
            output=str(Path(config.output) / RUN_FOLDER),
            epochs=-(-config.steps // steps_per_epoch),
            max_steps=config.steps,
        ),
        optim=_schedule(config, steps_per_epoch),
        config=config,
        config_values=_what_decides(config, loaded),
        collate=collate_detection,
        param_groups=lambda method: parameter_groups(method, config.optim.encoder_lr_scale),
    )


def _steps_per_epoch(config: DetectionConfig, num_images: int) -> int:
    batches = num_images // (config.run.batch_size * world_size())
    steps = batches // config.optim.accumulate_steps
    if not steps:
        raise ConfigError(
            f"an epoch of {num_images} images makes no step of run.batch_size "
            f"{config.run.batch_size} x optim.accumulate_steps {config.optim.accumulate_steps} "
            f"on {world_size()} rank(s)"
        )
    return steps


def _schedule(config: DetectionConfig, steps_per_epoch: int) -> OptimConfig:
    """The engine's milestones are epochs: ours as exact fractions of one."""
    epochs = [Fraction(step, steps_per_epoch) for step in config.milestones]
    return dataclasses.replace(config.optim, milestones=cast("list[int]", epochs))


def parameter_groups(method: Any, encoder_lr_scale: float) -> Iterable[dict[str, Any]]:
    """Returns the optimizer's groups: the encoder's parameters at their own rate, and the rest."""
    encoder = list(method.detector.backbone.encoder.parameters())
    inside = {id(parameter) for parameter in encoder}
    rest = [parameter for parameter in method.parameters() if id(parameter) not in inside]
    return [{"params": encoder, "lr_scale": encoder_lr_scale}, {"params": rest, "lr_scale": 1.0}]


def _what_decides(config: DetectionConfig, loaded: Backbone) -> dict[str, Any]:
    """What decides the trained weights: the run's config.yaml, compared on resume."""
    values = to_values(config)
    for key in ("test_size", "test_batch_size", "bootstrap"):
        del values[key]
    del values["data"]["test"], values["detector"]["score_threshold"]
    # Which weights training starts from is told by their digest.
    del values["model"]["weights"]
    values["model"]["encoder"] = loaded.encoder.name
    values["checkpoint_sha256"] = loaded.source.get("sha256", "")
    return values


def _load_trained(method: DetectionMethod, trained: RunResult) -> tuple[str, Path]:
    """Loads the weights to test out of the file that the Result names; says which they are."""
    stored = together(lambda: checkpoint.load(trained.checkpoint))
    last = f"last step ({trained.steps})"
    if stored.ema is not None:
        method.load_state_dict(stored.ema)
        return f"{last}, averaged weights", stored.path / EMA_FILE
    method.load_state_dict(stored.model)
    return last, stored.path / MODEL_FILE


def _training_details(train: DetectionSet, trained: RunResult) -> dict[str, Any]:
    return {
        "set": train.name,
        "images": len(train.images),
        "boxes": sum(len(image.labels) for image in train.images),
        "empty_boxes_left_out": train.num_empty_boxes,
        "boxes_cut_at_the_edge": train.num_cut_boxes,
        "steps": trained.steps,
        "checkpoint": str(trained.checkpoint),
        "bad_images": trained.bad_clips,
        "last_metrics": {
            name: value
            for name, value in trained.last_metrics.items()
            if value == value  # JSON has no NaN
        },
    }


# --- numbers ----------------------------------------------------------------------------------


def _measure(
    config: DetectionConfig, test: DetectionSet, results: Sequence[ImageResult]
) -> tuple[dict[str, Metric], list[dict[str, Any]]]:
    """The metrics with intervals, COCO's and for VOC's layout VOC 2007's; and a row a class."""
    matched = MatchedDetections(results, len(test.classes), "coco")
    values = coco_ap(results)
    ours = matched.ap()
    if any(abs(values[name] - ours[name]) > 1e-6 for name in values):
        raise AssertionError(f"torchmetrics has {values}, the bootstrap's own matching {ours}")
    metrics = _with_intervals(config, matched, values, "coco")
    if config.data.format == "voc":
        by_voc = MatchedDetections(results, len(test.classes), "voc07")
        for name, metric in _with_intervals(config, by_voc, by_voc.ap(), "voc07").items():
            metrics[f"{name}_voc07"] = metric
    return metrics, class_table(matched, test.classes)


def _with_intervals(
    config: DetectionConfig, matched: MatchedDetections, values: dict[str, float], rule: Rule
) -> dict[str, Metric]:
    # The same draws of images under both rules.
    draws = generator(config.run.seed, "bootstrap")
    return bootstrap(matched, values, draws=config.bootstrap, generator=draws)


def _protocol(
    config: DetectionConfig,
    train: DetectionSet,
    test: DetectionSet,
    loaded: Backbone,
    trained: RunResult,
    selection: str,
) -> Protocol:
    notes = list(loaded.notes)
    if config.data.format == "voc":
        notes += [
            "AP, AP50 and AP75 are COCO's (101 recalls). Tables of transfer papers on VOC 2007 "
            "hold the VOC 2007 metric (11 recalls), here AP_voc07, AP50_voc07 and AP75_voc07.",
            "Objects marked difficult count neither as found nor as missed.",
        ]
    protocol = Protocol(
        dataset=Path(config.data.root).name,
        split=test.name,
        folds=[],
        num_classes=len(test.classes),
        sampling=f"whole images, short side {config.test_size}, long side up to {config.max_size}",
        size=config.test_size,
        num_images=len(test.images),
        selection=selection,
        notes=notes,
    )
    # Objects that are trained on, and those that a detector has to find.
    learnt = torch.cat([image.labels for image in train.images])
    sought = torch.cat([image.labels[image.counted] for image in test.images])
    protocol.warn(
        *skipped_in_training(trained.bad_clips, "images"),
        *absent_classes(train.classes, learnt, "training", "boxes", "boxes"),
        *absent_classes(test.classes, sought, "test", "boxes", "boxes"),
        *(f"{note}." for note in (*train.notes, *test.notes)),
    )
    return protocol
