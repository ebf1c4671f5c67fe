"""What of a run its checkpoints keep, how it is saved, and how a run goes on from it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ndavid.engine import checkpoint, resume_rules
from ndavid.engine.alternating import ONLY
from ndavid.engine.bad_clips import DAMAGED_FILE_NAME, BadClips, ClipLedger
from ndavid.engine.optim import OptimConfig
from ndavid.engine.position import Position, describe_move
from ndavid.engine.run_config import RunConfig
from ndavid.engine.settings import Settings
from ndavid.engine.setup import TrainingData, TrainingModel
from ndavid.errors import CheckpointError

# Runs whose checkpoints do not say when the average starts began it that many steps too late, and
# go on so.
_LATE = 2


class RunState:
    """Model, optimizers, place in the data and ledgers of a run.

    Args:
        model: weights, average and optimizers.
        data: whose order a checkpoint belongs to.
        scaler: the gradient scaler of fp16, or None.
        run: length and bookkeeping.
        optim: its schedule may bind the length.
        settings: what a run to resume must have in common with this one.
    """

    def __init__(
        self,
        model: TrainingModel,
        data: TrainingData,
        scaler: Any,
        run: RunConfig,
        optim: OptimConfig,
        settings: Settings,
    ) -> None:
        self.model = model
        self.data = data
        self.scaler = scaler
        self.run = run
        self.optim = optim
        self.settings = settings
        self.position = Position(data.steps_per_epoch)
        self.bad_clips = BadClips(data.sampler.num_samples, run.max_bad_fraction)
        self.damaged_clips = ClipLedger(DAMAGED_FILE_NAME)

    @property
    def total_steps(self) -> int:
        """The step at which the run ends."""
        return self.position.total(self.run.epochs, self.run.max_steps)

    def save(self, step: int) -> Path:
        """Writes a checkpoint and returns its folder.

        Raises:
            CheckpointError: it cannot be written.
        """
        model = self.model
        optimizers = {name: optimizer.state_dict() for name, optimizer in model.optimizers.items()}
        state = {
            # Of several optimizers, their states by name.
            "optimizer": optimizers.get(ONLY, optimizers),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
            "bad_clips": self.bad_clips.state(),
            "damaged_clips": self.damaged_clips.state(),
            "total_steps": self.total_steps,
            "ema_start": model.ema_start,
            "data_digest": self.data.digest,
            "shared_out": self.settings.shared_out(),
            **self.position.state(),
            **self.data.order(),
        }
        return checkpoint.save(
            Path(self.run.output),
            step,
            model=model.method.state_dict(),
            ema=None if model.ema is None else model.ema.module.state_dict(),
            state=state,
            keep=self.run.keep_checkpoints,
        )

    def restore(self, path: Path, say: Callable[[str], object]) -> int:
        """Takes everything back from a checkpoint and returns the steps done there.

        Args:
            path: the checkpoint.
            say: is told where the run goes on, and whether elsewhere.

        Raises:
            CheckpointError: it cannot be read, does not fit the method, or the data would come in
                another order.
            ConfigError: it is of other data, another config or another length.
        """
        loaded = checkpoint.load(path)
        state = loaded.state
        same_data = resume_rules.check_same_data(path, state, self.data.digest)
        changed = resume_rules.check_same_config(
            path,
            self.settings,
            same_data=same_data,
            elsewhere=self.run.resume_elsewhere,
            saved=state,
        )
        again = self._take_position(path, loaded.step, state, changed)
        if self.optim.schedule == "cosine" and not again:
            resume_rules.check_same_length(path, state, self.total_steps)
        try:
            self._load(loaded)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"{path}: does not fit this method: {reason}") from error
        say(f"resumed from {path}")
        if len(self.position.moves) > len(state.get("moves", ())):
            say(f"this run {describe_move(self.position.moves[-1])}")
        return loaded.step

    def _load(self, loaded: checkpoint.Checkpoint) -> None:
        model, state = self.model, loaded.state
        model.method.load_state_dict(loaded.model)
        for name, optimizer in model.optimizers.items():
            own = state["optimizer"] if name == ONLY else state["optimizer"][name]
            optimizer.load_state_dict(cast(dict[str, Any], own))
        if model.ema is not None:
            average = model.averaged.state_dict() if loaded.ema is None else loaded.ema
            model.ema.module.load_state_dict(average)
            model.ema_start = state.get("ema_start", self.run.ema_start_step + _LATE)
        if self.scaler is not None and state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.bad_clips.restore(state["bad_clips"])
        self.damaged_clips.restore(state.get("damaged_clips", []))

    def _take_position(
        self, path: Path, step: int, state: dict[str, Any], changed: dict[str, tuple[Any, Any]]
    ) -> bool:
        """Goes on at the checkpoint's place in the data; True where its epoch begins again."""
        now = self.data.order()
        length = state.get("steps_per_epoch", self.position.steps_per_epoch)
        same = all(state.get(name) == value for name, value in now.items())
        again = self.run.resume_elsewhere and (
            not same
            or length != self.position.steps_per_epoch
            or any(map(self.settings.cuts_batches, changed))
        )
        if again or changed:
            resume_rules.check_same_samples(path, state, now)
            self.position = self.position.moved(
                path, step, state, now, changed=changed, again=again
            )
        else:
            resume_rules.check_same_position(path, state, now)
            self.position = self.position.resumed(state)
        return again
