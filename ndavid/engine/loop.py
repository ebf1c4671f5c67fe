"""The one training loop: `fit` runs any module with the method protocol over any keyed dataset.

A method is an ``nn.Module`` whose ``forward(batch, *, generator, step)`` returns a dict with a
scalar "loss" and detached scalar metrics. Its ``state_dict()`` is all there is to save. A method
with several optimizers, such as a GAN, says in which order they step (`alternating.py`).

Positions are optimizer steps. Epoch and batch follow from the step, random numbers from
(seed, rank, step), the learning rate from the step: a run resumed at a step goes on as if it had
never stopped, to the bit on a CPU with one or two ranks.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from accelerate import Accelerator
from torch import nn

from ndavid.collectives import world_size
from ndavid.engine import checkpoint, environment, run_directory
from ndavid.engine.alternating import AlternatingMethod, outputs_of_step, total_norm
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
from ndavid.engine.hooks import EverySteps, Hook, HookContext
from ndavid.engine.loader import Collate, KeyedDataset, batches
from ndavid.engine.optim import OptimConfig, lr_factor, set_lr
from ndavid.engine.records import StepRecords
from ndavid.engine.run_config import RunConfig
from ndavid.engine.run_state import RunState
from ndavid.engine.settings import Settings
from ndavid.engine.setup import (
    ParamGroups,
    TrainingData,
    TrainingModel,
    backend_settings,
    setup_data,
    setup_model,
)
from ndavid.engine.shard_sampler import ShardSampler
from ndavid.engine.signals import StopSignal, leave
from ndavid.engine.stopwatch import Stopwatch
from ndavid.engine.tracking import Tracker, other_trackers, say
from ndavid.engine.updates import Updates
from ndavid.errors import CheckpointError, ConfigError, NdavidError, TrainingError, printable
from ndavid.interruption import command_again
from ndavid.locks import hold


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
    config: object | None = None,
    config_values: Mapping[str, Any] | None = None,
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
        config: the whole config, a dataclass with a default for every field: kept in the folder as
            config.yaml and compared on resume, but for fields that are `changeable`.
        config_values: nested, what is kept and compared instead of all that stands in ``config``.
        collate: samples to a dict with tensors; a "bad" entry, a list of (path, reason), names the
            clips that others stand in for.
        param_groups: method -> dicts with ``params`` and ``lr_scale``; all parameters when None.
            Not asked for those of an `AlternatingMethod`.
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
        # While one optimizer steps, the parameters of the others are in no graph.
        find_unused_parameters=run.find_unused_parameters or isinstance(method, AlternatingMethod),
        data_timeout=run.data_timeout,
    )
    with backend_settings(run.deterministic, accelerator.device), StopSignal() as stop:
        loop = _Loop(accelerator, run, optim, Settings.of(config, config_values), stop, lock)
        try:
            loop.setup(method, param_groups, dataset, collate)
            return loop.train(on_epoch_end, on_steps, on_start, on_save)
        except KeyboardInterrupt as error:
            raise error if error.args else KeyboardInterrupt(loop.how_to_go_on()) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            raise TrainingError(f"{run.output}: {error.strerror}; {loop.last_good()}") from error
        finally:
            loop.closing.close()


class _Loop:
    """One run: `setup`, then `train`; ``closing`` undoes what they have put in place."""

    model: TrainingModel
    data: TrainingData
    state: RunState
    update: Updates
    tracker: Tracker

    def __init__(
        self,
        accelerator: Accelerator,
        run: RunConfig,
        optim: OptimConfig,
        settings: Settings,
        stop: StopSignal,
        lock: contextlib.ExitStack | None,
    ) -> None:
        self.accelerator = accelerator
        self.run = run
        self.optim = optim
        self.settings = settings
        self.stop = stop
        self.output = Path(run.output)
        self.device = accelerator.device
        self.is_main = accelerator.is_main_process
        self.saved: Path | None = None
        self.begun_at = self.saved_step = -1
        self.watch = Stopwatch()
        self.finite = FiniteWatch(self.device)
        self.records = StepRecords()
        self.closing = contextlib.ExitStack()
        self.lock = self.closing if lock is None else lock

    def setup(
        self,
        method: nn.Module,
        param_groups: ParamGroups | None,
        dataset: KeyedDataset,
        collate: Collate | None,
    ) -> None:
        """Sets model and data up."""
        accelerator, run, optim = self.accelerator, self.run, self.optim
        self.model = setup_model(method, accelerator, run, optim, param_groups, self.closing)
        self.data = setup_data(dataset, collate, method, accelerator, run, optim, self.closing)
        sampler = self.data.sampler
        if isinstance(sampler, ShardSampler) and self.is_main:
            say(sampler.summary(self.data.steps_per_epoch * self.data.batches_per_step))
        self.update = Updates(
            accelerator, self.model, seed=run.seed, clip_grad_norm=optim.clip_grad_norm
        )
        self.state = RunState(self.model, self.data, accelerator.scaler, run, optim, self.settings)

    # Where to begin

    def _start(self) -> int:
        """Prepares the folder, loads the checkpoint to go on from, returns the steps done."""
        found = from_main(self._find_start() if self.is_main else None)
        if isinstance(found, NdavidError):
            raise found
        step = 0 if found is None else self._together(lambda: self._restore(found))
        if self.is_main:
            run_directory.write_config(self.output, self.settings)
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
            if moves := self.state.position.moves:
                description["moves"] = list(moves)
            environment.write(self.output, description)
        return step

    def _find_start(self) -> Path | NdavidError | None:
        """On rank 0: where to go on from; an error is returned, for all ranks to raise."""
        try:
            run_directory.check_folder(self.output, self.settings)
            self.output.mkdir(parents=True, exist_ok=True)
            # One process holds the folder for all ranks.
            self.lock.enter_context(hold(self.output, way_out="choose another run.output"))
            return run_directory.find_start(self.output, self.run.resume, say)
        except NdavidError as error:
            return error
        except OSError as error:
            return ConfigError(f"run.output {self.output}: {error.strerror}")

    def _restore(self, path: Path) -> int:
        step = self.state.restore(path, say if self.is_main else lambda line: None)
        if path.resolve().is_relative_to(self.output.resolve()):
            self.saved = path
        return step

    # The loop

    def train(
        self,
        on_epoch_end: Hook | None,
        on_steps: EverySteps | None,
        on_start: Hook | None,
        on_save: Hook | None,
    ) -> RunResult:
        """Goes from the first step, or that of a checkpoint, to the last."""
        step = self.begun_at = self._start()
        self.tracker = Tracker(
            self.output,
            start=step,
            total=self.state.total_steps,
            is_main=self.is_main,
            accelerator=self.accelerator,
            config=self.settings.values,
        )
        self.closing.callback(self.tracker.close)
        self.closing.callback(self._flush_alone)
        self.watch.restart()
        self._look(step, on_start)
        while step < self.state.total_steps:
            self.model.wrapped.train()
            for group in self._groups(step):
                self._step(step, group)
                step += 1
                if on_steps is not None and step % on_steps.every == 0:
                    self._call(step, on_steps.call, f"step {step}")
                epoch, begun = self.state.position.of(step)
                if not begun and on_epoch_end is not None:
                    self._call(step, on_epoch_end, f"epoch {epoch}")
                if self._save_or_leave(step) and step < self.state.total_steps:
                    self._look(step, on_save)
                if step == self.state.total_steps:
                    break
            else:
                self._leave_if_stopped(step)
        return self._finish(step)

    def _groups(self, step: int) -> Iterator[list[dict[str, Any]]]:
        """From ``step`` to the end of its epoch: the batches of one optimizer step at a time.

        Ends early where a signal came while a rank waited for data.
        """
        epoch, first = self.state.position.of(step)
        self.data.sampler.set_position(epoch, first * self.data.batches_per_step)
        stream = batches(
            self.data.loader,
            limit=self.run.data_timeout,
            key="run.data_timeout",
            stopped=lambda: bool(self.stop.number),
        )
        for later in range(self.state.position.steps_per_epoch - first):
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
                group += itertools.islice(stream, self.data.batches_per_step)
            except Exception as error:
                problem = error
        bad = [clip for batch in group for clip in batch.pop("bad", ())]
        damaged = [clip for batch in group for clip in batch.pop("damaged", ())]
        waited = len(group) < self.data.batches_per_step and problem is None
        failed, to_note, stopped = agree(problem is not None, len(bad) + len(damaged), waited)
        with self._flushed_before_leaving():
            if failed:
                raise_first(problem)
            if to_note:
                self._together(lambda: self._count_bad_clips(step, bad, damaged))
                self.state.bad_clips.check()
        return None if stopped else group

    def _step(self, step: int, group: list[dict[str, Any]]) -> None:
        """One optimizer step; ``step`` counts those done before it."""
        lr = self.optim.lr * lr_factor(
            self.state.position.in_epochs(step),
            self.optim,
            steps_per_epoch=self.state.position.steps_per_epoch,
            total_steps=self.state.position.in_epochs(self.state.total_steps),
        )
        for optimizer in self.model.optimizers.values():
            set_lr(optimizer, lr)
        updates = self.update(step, group)
        done = step + 1
        if self.model.ema is not None:
            # timm's own update_after_step is two steps late.
            late = done >= self.model.ema_start
            average = self.model.ema.update if late else self.model.ema.set
            average(self.model.averaged)
        norm = total_norm(updates)
        # With a gradient scaler an infinite norm is an overflow, which skips the step.
        checked = None if self.accelerator.scaler is not None else norm
        losses = [output["loss"] for update in updates for output in update.outputs]
        self.finite.note(done, losses, checked, lr)
        self.watch.step_done()
        outputs = outputs_of_step(updates)
        self.records.note(
            done, outputs, norm, {"lr": lr, "bad_clips": float(len(self.state.bad_clips))}
        )
        due = done == 1 or done % self.run.log_every == 0 or done == self.state.total_steps
        if due or self.device.type == "cpu":
            self._check_finite()
        if due:
            self._flush()
        else:
            self.tracker.advance(done)

    def _check_finite(self) -> None:
        with self._flushed_before_leaving():
            self.finite.check(self.last_good)

    def _count_bad_clips(
        self, step: int, bad: list[tuple[str, str]], damaged: list[tuple[str, str]]
    ) -> None:
        """Puts the bad and the damaged clips of all ranks into their ledgers."""
        shares = gather_objects((bad, damaged))
        for ledger, part, what in (
            (self.state.bad_clips, 0, "skipped a bad clip"),
            (self.state.damaged_clips, 1, "read a damaged clip"),
        ):
            for path, reason in ledger.add([c for share in shares for c in share[part]], step):
                self.tracker.say(printable(f"{what}: {path}: {reason}"))
            if self.is_main:
                ledger.write(self.output)

    # Records

    def _flush(self) -> None:
        """Writes the records of the steps since the last time; every rank calls it at one step."""
        self._together(self._write_records)

    def _write_records(self) -> None:
        records = self.records.take()
        if not records:
            return
        # Read after the transfer, which waited for the steps, so that timings are true.
        timings = self.watch.read(self.run.batch_size * world_size() * self.data.batches_per_step)
        for record in records:
            epoch, _ = self.state.position.of(record.step - 1)
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

    def _call(self, step: int, hook: Hook, when: str) -> None:
        """Calls a hook, and logs and prints what it measured."""
        self._flush()
        self._share_buffers()
        self.model.method.eval()
        metrics = self._together(lambda: hook(self._context(step)))
        values = {f"val/{name}": float(value) for name, value in metrics.items()}
        if values:
            self.tracker.log(step, self.state.position.of(step - 1)[0], values)
            shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
            self.tracker.say(f"{when}  {shown}")
        self.model.wrapped.train()
        self.watch.restart()

    def _look(self, step: int, hook: Hook | None) -> None:
        """Calls a hook that measures nothing."""
        if hook is not None:
            self.model.method.eval()
            self._together(lambda: hook(self._context(step)))
            self.model.wrapped.train()
            self.watch.restart()

    def _context(self, step: int) -> HookContext:
        ema = None if self.model.ema is None else self.model.ema.module
        show = functools.partial(self.tracker.show, step)
        epoch, _ = self.state.position.of(step)
        return HookContext(
            epoch,
            step,
            self.model.method,
            ema,
            self.device,
            self.output,
            show,
            self.state.total_steps,
        )

    def _share_buffers(self) -> None:
        """Running statistics are rank 0's on every rank, as in the checkpoint."""
        share_buffers(self.model.method)
        if self.model.ema is not None:
            share_buffers(self.model.ema.module)

    # Saving and leaving

    def _save_or_leave(self, step: int) -> bool:
        """Saves where it is time to, and tells whether it was."""
        (number,) = agree(self.stop.number)
        due = step == self.state.total_steps or step % self.run.save_every_steps == 0
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
        check_parameters(self.model.method, step, self.last_good)
        outcome = from_main(self._try_to_save(step) if self.is_main else None)
        if isinstance(outcome, NdavidError):
            raise outcome
        self.saved, self.saved_step = outcome, step
        self.watch.restart()

    def _try_to_save(self, step: int) -> Path | NdavidError:
        try:
            return self.state.save(step)
        except CheckpointError as error:
            return error

    def _finish(self, step: int) -> RunResult:
        if self.saved is None:
            self._save(step)
        assert self.saved is not None
        self._share_buffers()
        bad, damaged = self.state.bad_clips, self.state.damaged_clips
        total = self.data.sampler.num_samples
        if bad.found:
            self.tracker.say(
                f"{len(bad)} of {total} clips could not be used; see {self.output / bad.file_name}"
            )
        if damaged.found:
            self.tracker.say(
                f"{len(damaged)} of {total} clips showed damaged frames and were used "
                f"(data.damaged: report); see {self.output / damaged.file_name}"
            )
        return RunResult(
            steps=step,
            last_metrics=from_main(self.tracker.last),
            output=self.output,
            checkpoint=self.saved,
            bad_clips=len(bad),
            damaged_clips=len(damaged),
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
