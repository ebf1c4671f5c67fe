"""Fine-tune an encoder of images on all of the labels, or on 1% or 10% of them, and test it.

The share is the same for every class and drawn from the seed, and a larger share holds the smaller
one (Chen et al. 2020, "A Simple Framework for Contrastive Learning", section 4.2, draws shares of
each class too, but publishes its own lists for ImageNet: numbers there are not quite comparable).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ndavid.config import changeable
from ndavid.engine.optim import OptimConfig
from ndavid.errors import ConfigError
from ndavid.evaluation.image_task import (
    ImageTask,
    ImageTrainingConfig,
    load_for_task,
    meet_ranks,
    run_trial,
)
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result


@dataclass(kw_only=True)
class ImageFinetuneConfig(ImageTrainingConfig):
    """Fine-tuning on images, or training from scratch."""

    output: str = changeable("")
    """folder for result.json, report.html and the run (training/); empty:
    runs/, the checkpoint\'s name and -image_finetune (evaluation/output_folder.py)"""
    mode: Literal["finetune", "scratch"] = "finetune"
    """scratch refuses a checkpoint"""
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(name="sgd", lr=0.03, weight_decay=0.0)
    )
    """optimizer; encoder_lr_scale is the encoder's learning rate as a share of lr"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode == "scratch" and self.checkpoint:
            raise ConfigError("mode: scratch takes no checkpoint; use mode: finetune")


@alone_in_output
def run(config: ImageFinetuneConfig) -> Result:
    """Trains all parameters and tests them; writes ``result.json`` and returns it.

    Raises:
        ConfigError, CheckpointError, DataError, TrainingError: See ``errors``; each in one line.
    """
    meet_ranks(config)
    task = ImageTask(config)
    loaded = load_for_task(config, task)
    name = "finetune" if config.checkpoint else "scratch"
    return run_trial(name, config, task, loaded, frozen=False)
