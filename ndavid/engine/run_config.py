"""The `run` section of every training config: length, place, speed and bookkeeping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ndavid.config import changeable
from ndavid.errors import ConfigError
from ndavid.ranges import check_workers


@dataclass(kw_only=True)
class RunConfig:
    """Length, place, speed and bookkeeping of a run."""

    # device, precision, compile, channels_last and find_unused_parameters change the order of
    # floating-point sums and with it the last bits: another machine may, the same one not.
    # (epochs and max_steps: see `resume_rules.check_same_length`.)

    output: str = changeable("runs/unnamed")
    """the run's folder: config, metrics, checkpoints, TensorBoard"""
    epochs: int = changeable(1)
    """passes over the training set"""
    max_steps: int | None = changeable(None)
    """stop after this many optimizer steps, if the epochs have not ended before"""
    batch_size: int = changeable(32, when="elsewhere, in other batches")
    """samples a batch on each rank"""
    seed: int = 0
    """the one seed; everything random follows from it"""
    precision: Literal["no", "bf16", "fp16"] = changeable("no", when="elsewhere")
    """autocast: no is float32"""
    device: Literal["auto", "cpu"] = changeable("auto", when="elsewhere")
    """auto takes a GPU if there is one"""
    resume: str = changeable("auto")
    """auto (newest whole checkpoint of this output), never, or a run's or a checkpoint's path"""
    resume_elsewhere: bool = changeable(False)
    """let a run go on with another number of processes, batch size, precision or device: not equal
    to the bit, and said in its log, environment and evaluations; where its data comes in another
    order, from the start of the epoch it was in"""
    save_every_steps: int = changeable(1000)
    """optimizer steps between checkpoints; one is also written at the end and on SIGTERM/SIGINT"""
    keep_checkpoints: int = changeable(2)
    """how many of the newest checkpoints stay; 0 keeps all"""
    log_every: int = changeable(10)
    """optimizer steps between writes; each step has its record, timings are means between writes"""
    num_workers: int = changeable(2)
    """data loading processes a rank; 0 loads in the training process"""
    data_timeout: float = changeable(1800.0)
    """seconds that one batch of the data loading processes may take; 0 for no limit"""
    max_bad_fraction: float = changeable(0.01)
    """share of the clips that may be undecodable before the run stops"""
    compile: bool = changeable(False, when="elsewhere")
    """torch.compile the method's networks"""
    channels_last: bool = changeable(False, when="elsewhere")
    """channels-last convolution weights; faster on most devices"""
    ema_decay: float = 0.0
    """decay of an exponential moving average of the weights, kept in checkpoints; 0 keeps none"""
    ema_start_step: int = 0
    """the optimizer step, counted from 1, from which on the average decays; after each step before
    it, the average is a copy of the weights"""
    trackers: list[str] = changeable(default_factory=list)
    """accelerate trackers beside JSONL and TensorBoard, such as wandb"""
    deterministic: bool = False
    """deterministic algorithms on a GPU, where there are some; slower"""
    find_unused_parameters: bool = changeable(False, when="elsewhere")
    """for methods that leave some parameters without gradient in some steps, on several ranks"""

    def __post_init__(self) -> None:
        for name, least in [
            ("epochs", 1), ("batch_size", 1), ("save_every_steps", 1),
            ("keep_checkpoints", 0), ("log_every", 1), ("max_steps", 1),
            ("ema_start_step", 0), ("data_timeout", 0), ("seed", 0),
        ]:  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < least:
                raise ConfigError(f"run.{name} must be at least {least}, not {value}")
        for name in ("max_bad_fraction", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"run.{name} must be between 0 and 1, not {getattr(self, name)}")
        check_workers(self, "run")
        if not self.output:
            raise ConfigError("run.output must name a folder")
