"""The one training loop: `fit` runs any module with the method protocol over any keyed dataset.

A method is an ``nn.Module`` whose ``forward(batch, *, generator, step)`` returns a dict with a
scalar "loss" and detached scalar metrics. Its ``state_dict()`` is all there is to save. A method of
several players, each with its optimizer, says how they take turns (`turns.py`).

Positions are optimizer steps. Epoch and batch follow from the step, random numbers from
(seed, rank, step), the learning rate from the step: a run resumed at a step goes on as if it had
never stopped, to the bit on a CPU with one or two ranks.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar, cast

import torch
import yaml
from accelerate import Accelerator
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import default_collate

from ndavid.collectives import rank, world_size
from ndavid.engine import checkpoint, environment, run_directory
from ndavid.engine.bad_clips import DAMAGED_FILE_NAME, BadClips, ClipLedger
from ndavid.engine.bad_clips import FILE_NAME as BAD_CLIPS_FILE
from ndavid.engine.distributed import (
    agree,
    from_main,
    gather_objects,
    make_accelerator,
    raise_first,
    raise_together,
    share_buffers,
)
from ndavid.engine.finite import FiniteWatch, check_parameters
from ndavid.engine.loader import (
    Collate,
    KeyedDataset,
    batches,
    build_loader,
    build_sampler,
    to_device,
)
from ndavid.engine.loader import close as close_loader
from ndavid.engine.memory_format import to_channels_last
from ndavid.engine.optim import OptimConfig, lr_factor, set_lr
from ndavid.engine.position import Position, describe_move
from ndavid.engine.records import StepRecords
from ndavid.engine.rng import derive_seed, generator
from ndavid.engine.shard_sampler import ShardSampler
from ndavid.engine.shared_memory import check_room
from ndavid.engine.signals import StopSignal, leave
from ndavid.engine.tracking import Tracker, other_trackers, say
from ndavid.engine.turns import (
    ONLY,
    Batch,
    ParamGroups,
    Players,
    TurnTaken,
    batches_per_step,
    build_optimizers,
    give_all_turns,
    give_turn,
    outputs_of_step,
    parameters_of,
    total_norm,
)
from ndavid.errors import CheckpointError, ConfigError, NdavidError, TrainingError, printable
from ndavid.interruption import command_again
from ndavid.locks import hold
from ndavid.ranges import check_workers


@dataclass(kw_only=True)
class RunConfig:
    """Length, place, speed and bookkeeping of a run."""

    output: str = "runs/unnamed"
    """the run's folder: config, metrics, checkpoints, TensorBoard"""
    epochs: int = 1
    """passes over the training set"""
    max_steps: int | None = None
    """stop after this many optimizer steps, if the epochs have not ended before"""
    batch_size: int = 32
    """samples a batch on each rank"""
    seed: int = 0
    """the one seed; everything random follows from it"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """autocast: no is float32"""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes a GPU if there is one"""
    resume: str = "auto"
    """auto (newest whole checkpoint of this output), never, or a run's or a checkpoint's path"""
    resume_elsewhere: bool = False
    """let a run go on with another number of processes, batch size, precision or device: not equal
    to the bit, and said in its log, environment and evaluations; where its data comes in another
    order, from the start of the epoch it was in"""
    save_every_steps: int = 1000
    """optimizer steps between checkpoints; one is also written at the end and on SIGTERM/SIGINT"""
    keep_checkpoints: int = 2
    """how many of the newest checkpoints stay; 0 keeps all"""
    log_every: int = 10
    """optimizer steps between writes; each step has its record, timings are means between writes"""
    num_workers: int = 2
    """data loading processes a rank; 0 loads in the training process"""
    data_timeout: float = 1800.0
    """seconds that one batch of the data loading processes may take; 0 for no limit"""
    max_bad_fraction: float = 0.01
    """share of the clips that may be undecodable before the run stops"""
    compile: bool = False
    """torch.compile the method's networks"""
    channels_last: bool = False
    """channels-last convolution weights; faster on most devices"""
    ema_decay: float = 0.0
    """decay of an exponential moving average of the weights, kept in checkpoints; 0 keeps none"""
    ema_start_step: int = 0
    """the optimizer step, counted from 1, from which on the average decays; after each step before
    it, the average is a copy of the weights"""
    trackers: list[str] = field(default_factory=list)
    """accelerate trackers beside JSONL and TensorBoard, such as wandb"""
    deterministic: bool = False
    """deterministic algorithms on a GPU, where there are some; slower"""
    find_unused_parameters: bool = False
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


@dataclass(frozen=True)
class Pause:
    """What a hook is given while training waits for it, on every rank."""

    epoch: int
    """whole epochs done"""
    step: int
    """optimizer steps done"""
    method: nn.Module
    """the bare method, in eval mode; the loop sets it back to train mode"""
    ema: nn.Module | None
    """the averaged method, or what it has averaged of it, if the run keeps an average"""
    device: torch.device
    output: Path
    show: Callable[[str, Tensor], None] = lambda name, picture: None
    """puts a picture, uint8 (3, H, W), into TensorBoard under a name, at this step"""
    total_steps: int = 0
    """the step the run ends at"""


Hook = Callable[[Pause], dict[str, float]]

# Runs whose checkpoints do not say when the average starts began it that many steps too late, and
# go on so.
_LATE = 2


@dataclass(frozen=True)
class EverySteps:
    """A hook that is called each time another ``every`` optimizer steps are done."""

    every: int
    call: Hook


@dataclass(frozen=True)
class RunResult:
    """What a run ended with."""

    steps: int
    last_metrics: dict[str, float]
    output: Path
    checkpoint: Path
    bad_clips: int
    damaged_clips: int = 0


T = TypeVar("T")


def fit(
    method: nn.Module,
    dataset: KeyedDataset,
    *,
    run: RunConfig,
    optim: OptimConfig,
    config_yaml: str = "",
    defaults_yaml: str = "",
    collate: Collate | None = None,
    param_groups: ParamGroups | None = None,
    on_epoch_end: Hook | None = None,
    on_steps: EverySteps | None = None,
    on_start: Hook | None = None,
    on_save: Hook | None = None,
    lock: contextlib.ExitStack | None = None,
) -> RunResult:
    """Trains ``method`` on ``dataset`` and leaves a run directory behind.

    Args:
        method: see the module's docstring; it ends trained, on the run's device.
        dataset: map-style, read by (index, seed) keys. A string ``digest`` of what it reads, if it
            has one, is compared on resume, and lets a dataset that was moved go on. One that lies
            in shards has their sizes in ``shard_sizes`` (shard_sampler.py).
        run: length, place and bookkeeping.
        optim: optimizer and schedule.
        config_yaml: the whole resolved config, kept in the folder and compared on resume.
        defaults_yaml: the config's defaults, for keys that are newer than a run to resume.
        collate: samples to a dict with tensors; a "bad" entry, a list of (path, reason), names the
            clips that others stand in for.
        param_groups: method -> dicts with ``params`` and ``lr_scale``; all parameters when None. A
            method of several players has groups of its own.
        on_epoch_end: called on every rank after each whole epoch; rank 0's result is logged under
            ``val/``.
        on_steps: the same every so many steps, before what the epoch's end calls.
        on_start: called on every rank before the first step, of a resumed run too; what it returns
            is not logged.
        on_save: the same after each checkpoint but the last.
        lock: takes over the hold on the run's folder, for what the caller writes there afterwards.
            None gives it back at the end.

    Raises:
        ConfigError: settings that cannot work, or that differ from those of the run to resume.
        CheckpointError: nothing to resume from, or a checkpoint that cannot be written.
        TrainingError: a loss that is not finite, or too many bad clips.
        KeyboardInterrupt: after SIGINT, a checkpoint saved if a step was done.
        SystemExit: with code 143 after SIGTERM, the same.
    """
    trackers = other_trackers(run.trackers)
    accelerator = make_accelerator(
        precision=run.precision,
        device=run.device,
        trackers=trackers,
        project_dir=Path(run.output),
        # In one player's turn the others' parameters are in no graph.
        find_unused_parameters=run.find_unused_parameters or isinstance(method, Players),
        data_timeout=run.data_timeout,
    )
    with _surroundings(run.deterministic, accelerator.device), StopSignal() as stop:
        loop = _Loop(accelerator, run, optim, config_yaml, defaults_yaml, stop, lock)
        try:
            loop.place(method, param_groups)
            loop.feed(dataset, collate)
            return loop.train(on_epoch_end, on_steps, on_start, on_save)
        except KeyboardInterrupt as error:
            raise error if error.args else KeyboardInterrupt(loop.how_to_go_on()) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise TrainingError(f"{run.output}: {error.strerror}; {loop.last_good()}") from error
        finally:
            loop.close()


class _Loop:
    """One run: `place` the method, `feed` it the data, `train`, `close`."""

    method: nn.Module
    ema: ModelEmaV3 | None
    tracker: Tracker

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunConfig,
        optim: OptimConfig,
        config_yaml: str,
        defaults_yaml: str,
        stop: StopSignal,
        lock: contextlib.ExitStack | None,
    ) -> None:
        self.accelerator = accelerator
        self.run = run
        self.optim = optim
        self.config_yaml = config_yaml
        self.defaults_yaml = defaults_yaml
        self.stop = stop
        self.output = Path(run.output)
        self.device = accelerator.device
        self.is_main = accelerator.is_main_process
        self.saved: Path | None = None
        self.begun_at = self.saved_step = -1
        self.watch = _Stopwatch()
        self.finite = FiniteWatch(self.device)
        self.records = StepRecords()
        self.closing = contextlib.ExitStack()
        self.lock = self.closing if lock is None else lock

    # Setting up

    def place(self, method: nn.Module, param_groups: ParamGroups | None) -> None:
        """Puts method, optimizer and average on the device and wraps them for the ranks."""
        run = self.run
        self.method = method.to(self.device)
        if run.channels_last:
            to_channels_last(method)
        self.averaged = _averaged(method)
        self.ema_start = run.ema_start_step
        self.ema = None
        if run.ema_decay:
            self.ema = ModelEmaV3(self.averaged, decay=run.ema_decay)
        optimizers = build_optimizers(method, self.optim, param_groups)
        if run.compile:
            for target in _compile_targets(method):
                target.compile()
        self.model, *prepared = self.accelerator.prepare(method, *optimizers.values())
        self.optimizers = dict(zip(optimizers, prepared, strict=True))
        # accelerate puts autocast around forward; the caller gets the method back without it.
        self.closing.callback(self.accelerator.unwrap_model, self.model, keep_fp32_wrapper=False)
        self.parameters = {name: parameters_of(o) for name, o in self.optimizers.items()}
        self.closing.callback(give_all_turns, self.parameters)

    def feed(self, dataset: KeyedDataset, collate: Collate | None) -> None:
        """Builds the loader and, from its length, the number of steps."""
        run, accumulate = self.run, self.optim.accumulate_steps
        self.batches_per_step = accumulate * batches_per_step(self.method)
        self.sampler = build_sampler(
            dataset,
            run.batch_size,
            seed=run.seed,
            rank=rank(),
            world_size=world_size(),
            num_workers=run.num_workers,
        )
        self._check_shared_memory(dataset, collate)
        self.loader = build_loader(
            dataset,
            self.sampler,
            collate,
            num_workers=run.num_workers,
            pin_memory=self.device.type == "cuda",
        )
        self.closing.callback(close_loader, self.loader)
        self.position = Position(len(self.sampler) // self.batches_per_step)
        if not self.position.steps_per_epoch:
            needed = self.batches_per_step * run.batch_size * world_size()
            raise ConfigError(
                f"a step reads {self.batches_per_step} batches (optim.accumulate_steps "
                f"{accumulate}), {needed} samples, and there are {len(dataset)}: lower "
                "run.batch_size or how many batches a step reads"
            )
        if isinstance(self.sampler, ShardSampler) and self.is_main:
            say(self.sampler.summary(self.position.steps_per_epoch * self.batches_per_step))
        self.total_steps = self.position.total(run.epochs, run.max_steps)
        self.bad_clips = BadClips(len(dataset), run.max_bad_fraction)
        self.damaged_clips = ClipLedger(DAMAGED_FILE_NAME)
        self.data_digest: str | None = getattr(dataset, "digest", None)

    def _check_shared_memory(self, dataset: KeyedDataset, collate: Collate | None) -> None:
        # A sample of shards means a whole shard, and a reader that workers must not inherit.
        if getattr(dataset, "shard_sizes", None) is not None:
            return
        key = (0, derive_seed(self.run.seed, "sample", 0, 0))
        check_room(
            lambda: (collate or default_collate)([dataset[key]]),
            batch_size=self.run.batch_size,
            num_workers=self.run.num_workers,
        )

    def start(self) -> int:
        """Prepares the folder, loads the checkpoint to go on from, returns the steps done."""
        found = from_main(self._find_start() if self.is_main else None)
        if isinstance(found, NdavidError):
            raise found
        step = 0 if found is None else self._together(lambda: self._restore(found))
        if self.is_main:
            run_directory.write_config(self.output, self.config_yaml)
            description = environment.describe(
                seed=self.run.seed,
                device=self.device,
                world_size=world_size(),
                precision=self.run.precision,
            )
            # Of the run's beginning: it goes on with the defaults of then.
            begun = environment.DEFAULTS
            if found is not None:
                begun = environment.defaults_of(found.parent.parent)
            description["defaults"] = begun
            if self.position.moves:
                description["moves"] = list(self.position.moves)
            environment.write(self.output, description)
        return step

    def _find_start(self) -> Path | NdavidError | None:
        """On rank 0: where to go on from; an error is returned, for all ranks to raise."""
        try:
            run_directory.check_folder(self.output, self.config_yaml)
            self.output.mkdir(parents=True, exist_ok=True)
            # One process holds the folder for all ranks.
            self.lock.enter_context(hold(self.output, way_out="choose another run.output"))
            return run_directory.find_start(self.output, self.run.resume, say)
        except NdavidError as error:
            return error
        except OSError as error:
            return ConfigError(f"run.output {self.output}: {error.strerror}")

    def _restore(self, path: Path) -> int:
        loaded = checkpoint.load(path)
        state = loaded.state
        same_data = run_directory.check_same_data(path, state, self.data_digest)
        changed = run_directory.check_same_config(
            path,
            self.config_yaml,
            defaults_yaml=self.defaults_yaml,
            same_data=same_data,
            elsewhere=self.run.resume_elsewhere,
            saved=state,
        )
        again = self._take_position(path, loaded.step, state, changed)
        if self.optim.schedule == "cosine" and not again:
            run_directory.check_same_length(path, state, self.total_steps)
        try:
            self.method.load_state_dict(loaded.model)
            for name, optimizer in self.optimizers.items():
                optimizer.load_state_dict(_state_of_player(state["optimizer"], name))
            if self.ema is not None:
                average = self.averaged.state_dict() if loaded.ema is None else loaded.ema
                self.ema.module.load_state_dict(average)
                self.ema_start = state.get("ema_start", self.run.ema_start_step + _LATE)
            if self.accelerator.scaler is not None and state["scaler"]:
                self.accelerator.scaler.load_state_dict(state["scaler"])
            self.bad_clips.restore(state["bad_clips"])
            self.damaged_clips.restore(state.get("damaged_clips", []))
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{path}: does not fit this method: {reason}") from error
        if path.resolve().is_relative_to(self.output.resolve()):
            self.saved = path
        if self.is_main:
            say(f"resumed from {path}")
            if len(self.position.moves) > len(state.get("moves", ())):
                say(f"this run {describe_move(self.position.moves[-1])}")
        return loaded.step

    def _take_position(
        self, path: Path, step: int, state: dict[str, Any], changed: dict[str, tuple[Any, Any]]
    ) -> bool:
        """Goes on at the checkpoint's place in the data; True where its epoch begins again."""
        now = self._data_order()
        length = state.get("steps_per_epoch", self.position.steps_per_epoch)
        same = all(state.get(name) == value for name, value in now.items())
        again = self.run.resume_elsewhere and (
            not same
            or length != self.position.steps_per_epoch
            or run_directory.cuts_other_batches(changed)
        )
        if again or changed:
            run_directory.check_same_samples(path, state, now)
            self.position = self.position.moved(
                path, step, state, now, changed=changed, again=again
            )
        else:
            run_directory.check_same_position(path, state, now)
            self.position = self.position.resumed(state)
        self.total_steps = self.position.total(self.run.epochs, self.run.max_steps)
        return again

    def _data_order(self) -> dict[str, int]:
        """What the order of the data depends on beside the config."""
        order = {"world_size": world_size(), "num_samples": self.sampler.num_samples}
        if isinstance(self.sampler, ShardSampler):
            # No worker and one are one reader.
            order["num_workers"] = self.sampler.readers
        return order

    # The loop

    def train(
        self,
        on_epoch_end: Hook | None,
        on_steps: EverySteps | None,
        on_start: Hook | None,
        on_save: Hook | None,
    ) -> RunResult:
        """Goes from the first step, or that of a checkpoint, to the last."""
        step = self.begun_at = self.start()
        self.tracker = Tracker(
            self.output,
            start=step,
            total=self.total_steps,
            is_main=self.is_main,
            accelerator=self.accelerator,
            config=run_directory.flatten(yaml.safe_load(self.config_yaml or "{}")),
        )
        self.closing.callback(self.tracker.close)
        self.closing.callback(self._flush_alone)
        self.watch.restart()
        self._look(step, on_start)
        while step < self.total_steps:
            self.model.train()
            for group in self._groups(step):
                self._step(step, group)
                step += 1
                if on_steps is not None and step % on_steps.every == 0:
                    self._pause(step, on_steps.call, f"step {step}")
                epoch, begun = self.position.of(step)
                if not begun and on_epoch_end is not None:
                    self._pause(step, on_epoch_end, f"epoch {epoch}")
                if self._save_or_leave(step) and step < self.total_steps:
                    self._look(step, on_save)
                if step == self.total_steps:
                    break
            else:
                self._leave_if_stopped(step)
        return self._finish(step)

    def _groups(self, step: int) -> Iterator[list[dict[str, Any]]]:
        """From ``step`` to the end of its epoch: the batches of one optimizer step at a time.

        Ends early where a signal came while a rank waited for data.
        """
        epoch, first = self.position.of(step)
        self.sampler.set_position(epoch, first * self.batches_per_step)
        stream = batches(
            self.loader,
            limit=self.run.data_timeout,
            key="run.data_timeout",
            stopped=lambda: bool(self.stop.number),
        )
        for later in range(self.position.steps_per_epoch - first):
            group = self._fetch(stream, step + later + 1)
            if group is None:
                return
            yield group

    def _fetch(self, stream: Iterator[dict[str, Any]], step: int) -> list[dict[str, Any]] | None:
        """The batches of one step; all ranks stop if one cannot read on, or over bad clips.

        None on every rank where a signal came while one waited.
        """
        group: list[dict[str, Any]] = []
        problem: Exception | None = None
        with self.watch.waiting_for_data():
            try:
                group += itertools.islice(stream, self.batches_per_step)
            except Exception as error:
                problem = error
        bad = [clip for batch in group for clip in batch.pop("bad", ())]
        damaged = [clip for batch in group for clip in batch.pop("damaged", ())]
        waited = len(group) < self.batches_per_step and problem is None
        failed, to_note, stopped = agree(problem is not None, len(bad) + len(damaged), waited)
        with self._flushed_before_leaving():
            if failed:
                raise_first(problem)
            if to_note:
                self._together(lambda: self._count_bad_clips(step, bad, damaged))
                self.bad_clips.check()
        return None if stopped else group

    def _step(self, step: int, group: list[dict[str, Any]]) -> None:
        """One optimizer step; ``step`` counts those done before it."""
        lr = self.optim.lr * lr_factor(
            self.position.in_epochs(step),
            self.optim,
            steps_per_epoch=self.position.steps_per_epoch,
            total_steps=self.position.in_epochs(self.total_steps),
        )
        for optimizer in self.optimizers.values():
            set_lr(optimizer, lr)
        turns = self._take_turns(step, group)
        done = step + 1
        if self.ema is not None:
            # timm's own update_after_step is two steps late.
            update = self.ema.set if done < self.ema_start else self.ema.update
            update(self.averaged)
        norm = total_norm(turns)
        # With a gradient scaler an infinite norm is an overflow, which skips the step.
        checked = None if self.accelerator.scaler is not None else norm
        losses = [output["loss"] for turn in turns for output in turn.outputs]
        self.finite.note(done, losses, checked, lr)
        self.watch.step_done()
        outputs = outputs_of_step(turns)
        self.records.note(done, outputs, norm, {"lr": lr, "bad_clips": float(len(self.bad_clips))})
        due = done == 1 or done % self.run.log_every == 0 or done == self.total_steps
        if due or self.device.type == "cpu":
            self._check_finite()
        if due:
            self._flush()
        else:
            self.tracker.advance(done)

    def _take_turns(self, step: int, group: list[Batch]) -> list[TurnTaken]:
        """The turns of one step, each with the step of its player's optimizer."""
        batches = [to_device(batch, self.device) for batch in group]
        if not isinstance(self.method, Players):
            return [self._take_turn(step, ONLY, batches, 0)]
        dealt = generator(self.run.seed, "deal", rank(), step)
        with torch.no_grad(), self.accelerator.autocast():
            plan = self.method.deal(batches, generator=dealt, step=step)
        taken: list[TurnTaken] = []
        for player, own in plan:
            give_turn(player, self.parameters)
            before = sum(len(turn.outputs) for turn in taken)
            taken.append(self._take_turn(step, player, own, before))
        return taken

    def _take_turn(self, step: int, player: str, batches: list[Batch], before: int) -> TurnTaken:
        """Forward and backward through one player's batches, and its optimizer's step.

        ``before`` counts the step's batches in earlier turns.
        """
        optimizer, parameters = self.optimizers[player], self.parameters[player]
        outputs = []
        for micro, batch in enumerate(batches):
            last = micro == len(batches) - 1
            # Ranks add their gradients at the last batch only.
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                output = self._forward(step, before + micro, batch)
                self.accelerator.backward(output["loss"] / len(batches))
            outputs.append(
                {name: torch.as_tensor(value).detach() for name, value in output.items()}
            )
        norm = self._gradient_norm(optimizer, parameters)
        optimizer.step()
        optimizer.zero_grad()
        return TurnTaken(player, outputs, norm)

    def _forward(self, step: int, micro: int, batch: Batch) -> dict[str, Tensor]:
        """The method on the ``micro``-th batch of a step."""
        # Library modules such as nn.Dropout draw from the default generator.
        torch.manual_seed(derive_seed(self.run.seed, "step", rank(), step, micro))
        draws = generator(self.run.seed, "nda", rank(), step, micro)
        return cast(dict[str, Tensor], self.model(batch, generator=draws, step=step))

    def _gradient_norm(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
    ) -> Tensor:
        """The global norm before clipping; clips if asked to."""
        limit = self.optim.clip_grad_norm
        if limit is not None:
            return self.accelerator.clip_grad_norm_(parameters, limit)
        self.accelerator.unscale_gradients(optimizer)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])

    def _check_finite(self) -> None:
        with self._flushed_before_leaving():
            self.finite.check(self.last_good)

    def _count_bad_clips(
        self, step: int, bad: list[tuple[str, str]], damaged: list[tuple[str, str]]
    ) -> None:
        """Puts the bad and the damaged clips of all ranks into their ledgers."""
        shares = gather_objects((bad, damaged))
        for path, reason in self.bad_clips.add([c for share in shares for c in share[0]], step):
            self.tracker.say(printable(f"skipped a bad clip: {path}: {reason}"))
        for path, reason in self.damaged_clips.add([c for share in shares for c in share[1]], step):
            self.tracker.say(printable(f"read a damaged clip: {path}: {reason}"))
        if self.is_main:
            self.bad_clips.write(self.output)
            self.damaged_clips.write(self.output)

    # Records

    def _flush(self) -> None:
        """Writes the records of the steps since the last time; every rank calls it at one step."""
        self._together(self._write_records)

    def _write_records(self) -> None:
        records = self.records.take()
        if not records:
            return
        # Read after the transfer, which waited for the steps, so that timings are true.
        timings = self.watch.read(self.run.batch_size * world_size() * self.batches_per_step)
        for record in records:
            epoch, _ = self.position.of(record.step - 1)
            self.tracker.log(record.step, epoch, record.values | timings, at=record.time)
        self.tracker.advance(records[-1].step, records[-1].values | timings)

    @contextlib.contextmanager
    def _flushed_before_leaving(self) -> Iterator[None]:
        """Around what raises on every rank or on none: what was measured is written first."""
        try:
            yield
        except Exception:
            self._flush()
            raise

    def _flush_alone(self) -> None:
        """After an error: with several ranks the others may be elsewhere, and lines are lost."""
        if world_size() == 1:
            # A device or a disk that failed has been reported; a second report would hide it.
            with contextlib.suppress(OSError, RuntimeError):
                self._write_records()

    @staticmethod
    def _together(action: Callable[[], T]) -> T:
        """Does ``action`` on every rank; if it fails on one, all of them raise."""
        result, problem = None, None
        try:
            result = action()
        except Exception as error:
            problem = error
        raise_together(problem)
        return cast(T, result)

    def _pause(self, step: int, hook: Hook, when: str) -> None:
        """Calls a hook, and logs and prints what it measured."""
        self._flush()
        self._share_buffers()
        self.method.eval()
        metrics = self._together(lambda: hook(self._pause_at(step)))
        values = {f"val/{name}": float(value) for name, value in metrics.items()}
        if values:
            self.tracker.log(step, self.position.of(step - 1)[0], values)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            self.tracker.say(f"{when}  {shown}")
        self.model.train()
        self.watch.restart()

    def _look(self, step: int, hook: Hook | None) -> None:
        """Calls a hook that measures nothing."""
        if hook is not None:
            self.method.eval()
            self._together(lambda: hook(self._pause_at(step)))
            self.model.train()
            self.watch.restart()

    def _pause_at(self, step: int) -> Pause:
        ema = None if self.ema is None else self.ema.module
        show = functools.partial(self.tracker.show, step)
        epoch, _ = self.position.of(step)
        return Pause(
            epoch, step, self.method, ema, self.device, self.output, show, self.total_steps
        )

    def _share_buffers(self) -> None:
        """Running statistics are rank 0's on every rank, as in the checkpoint."""
        share_buffers(self.method)
        if self.ema is not None:
            share_buffers(self.ema.module)

    # Saving and leaving

    def _save_or_leave(self, step: int) -> bool:
        """Saves where it is time to, and tells whether it was."""
        (number,) = agree(self.stop.number)
        due = step == self.total_steps or step % self.run.save_every_steps == 0
        if number or due:
            self._save(step)
        if number:
            self._leave(number)
        return due

    def _leave_if_stopped(self, step: int) -> None:
        """After a signal that came while data was waited for: saves what is not saved, leaves."""
        (number,) = agree(self.stop.number)
        if not number:
            return
        if step > self.begun_at and step != self.saved_step:
            self._save(step)
        self._leave(number)

    def _leave(self, number: int) -> NoReturn:
        """Says what there is, and ends."""
        saved = "saved " if self.saved else ""
        name = signal.Signals(number).name
        self.tracker.say(f"stopped by {name}; {saved}{self.how_to_go_on()}")
        leave(number, "a checkpoint was saved" if self.saved else "no checkpoint was saved")

    def _save(self, step: int) -> None:
        """Writes a checkpoint on rank 0, of finite weights only; all ranks learn how it went."""
        self._check_finite()
        self._flush()
        check_parameters(self.method, step, self.last_good)
        outcome = from_main(self._write(step) if self.is_main else None)
        if isinstance(outcome, NdavidError):
            raise outcome
        self.saved, self.saved_step = outcome, step
        self.watch.restart()

    def _write(self, step: int) -> Path | NdavidError:
        scaler = self.accelerator.scaler
        state = {
            "optimizer": _state_of_players(self.optimizers),
            "scaler": None if scaler is None else scaler.state_dict(),
            "bad_clips": self.bad_clips.state(),
            "damaged_clips": self.damaged_clips.state(),
            "total_steps": self.total_steps,
            "ema_start": self.ema_start,
            "data_digest": self.data_digest,
            "shared_out": run_directory.shared_out(self.config_yaml),
            **self.position.state(),
            **self._data_order(),
        }
        try:
            return checkpoint.save(
                self.output,
                step,
                model=self.method.state_dict(),
                ema=None if self.ema is None else self.ema.module.state_dict(),
                state=state,
                keep=self.run.keep_checkpoints,
            )
        except CheckpointError as error:
            return error

    def _finish(self, step: int) -> RunResult:
        if self.saved is None:
            self._save(step)
        assert self.saved is not None
        self._share_buffers()
        if self.bad_clips.found:
            self.tracker.say(
                f"{len(self.bad_clips)} of {self.sampler.num_samples} clips could not be used; "
                f"see {self.output / BAD_CLIPS_FILE}"
            )
        if self.damaged_clips.found:
            self.tracker.say(
                f"{len(self.damaged_clips)} of {self.sampler.num_samples} clips showed damaged "
                f"frames and were used (data.damaged: report); see "
                f"{self.output / DAMAGED_FILE_NAME}"
            )
        return RunResult(
            steps=step,
            last_metrics=from_main(self.tracker.last),
            output=self.output,
            checkpoint=self.saved,
            bad_clips=len(self.bad_clips),
            damaged_clips=len(self.damaged_clips),
        )

    def how_to_go_on(self) -> str:
        """For messages: the newest checkpoint of this run, and the command that goes on from it."""
        # Not verified here: that reads it all, and whoever is leaving wants to be gone.
        # Without one of its own, a run that began from another's begins there again.
        own = self.run.resume == "auto" or self.saved is None
        more = () if own else ("--run.resume", "auto")
        return f"{self.saved or 'no checkpoint'}; to go on: {command_again(*more)}"

    def last_good(self) -> str:
        """For messages: the newest whole checkpoint."""
        return checkpoint.describe_last(self.output)

    def close(self) -> None:
        """Undoes what `place` wrapped, ends the loader's processes and closes the files."""
        self.closing.close()


class _Stopwatch:
    """Wall time since the last reading, split into waiting for data and the rest."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Forgets what was measured, after something that is not training."""
        self._since = time.perf_counter()
        self._data = 0.0
        self._steps = 0

    @contextlib.contextmanager
    def waiting_for_data(self) -> Iterator[None]:
        before = time.perf_counter()
        yield
        self._data += time.perf_counter() - before

    def step_done(self) -> None:
        self._steps += 1

    def read(self, samples_per_step: int) -> dict[str, float]:
        """Means a step since the last reading, in seconds, and samples a second; restarts."""
        elapsed = max(time.perf_counter() - self._since, 1e-9)
        steps, data = max(self._steps, 1), self._data
        self.restart()
        return {
            "samples_per_s": samples_per_step * steps / elapsed,
            "seconds_data": data / steps,
            "seconds_compute": (elapsed - data) / steps,
        }


def _compile_targets(method: nn.Module) -> Iterable[nn.Module]:
    """The method's own choice of what to compile, or the whole method."""
    chosen = getattr(method, "compile_targets", None)
    return [method] if chosen is None else chosen()


def _averaged(method: nn.Module) -> nn.Module:
    """What an average is kept of: the method's own choice, or all of it."""
    chosen = getattr(method, "averaged", None)
    return method if chosen is None else cast(nn.Module, chosen())


def _state_of_players(optimizers: dict[str, torch.optim.Optimizer]) -> dict[str, Any]:
    """The optimizer's state; of several, theirs by name."""
    states = {name: optimizer.state_dict() for name, optimizer in optimizers.items()}
    return states.get(ONLY, states)


def _state_of_player(state: dict[str, Any], player: str) -> dict[str, Any]:
    return state if player == ONLY else cast(dict[str, Any], state[player])


@contextlib.contextmanager
def _surroundings(deterministic: bool, device: torch.device) -> Iterator[None]:
    """Backend settings of a run; they and the default generators are as before afterwards."""
    benchmark = torch.backends.cudnn.benchmark
    strict = torch.are_deterministic_algorithms_enabled()
    strict_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    # Clips have one size in a run, so that trying cuDNN's algorithms once pays.
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(strict, warn_only=strict_warns)
