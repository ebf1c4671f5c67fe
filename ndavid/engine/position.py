"""Where a run is in its data: epoch and place in the epoch follow from the step.

A run that goes on elsewhere (another number of ranks, say) has epochs of another number of steps.
Its steps are counted on, so that no checkpoint or record is written twice; where the data comes in
another order, it begins again at the start of the epoch that the run was in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ndavid.errors import CheckpointError


@dataclass(frozen=True)
class Position:
    """The map from optimizer steps to epochs.

    Attributes:
        steps_per_epoch: optimizer steps in an epoch, as the run is now.
        offset: added to a step before it is cut into epochs; 0 for a run that never moved.
        moves: one entry per move: the step, the epoch, whether that began again, what was and is.
    """

    steps_per_epoch: int
    offset: int = 0
    moves: tuple[dict[str, Any], ...] = ()

    def in_epochs(self, step: int) -> int:
        """The step as the schedule and the data count it, in epochs of the length they have now."""
        return step + self.offset

    def of(self, step: int) -> tuple[int, int]:
        """(whole epochs done, steps done in the epoch that follows)."""
        return divmod(self.in_epochs(step), self.steps_per_epoch)

    def total(self, epochs: int, max_steps: int | None) -> int:
        """The step at which the run ends."""
        whole = epochs * self.steps_per_epoch - self.offset
        return whole if max_steps is None else min(whole, max_steps)

    def resumed(self, saved: Mapping[str, Any]) -> Position:
        """This position, going on where a checkpoint's was."""
        offset, moves = saved.get("offset", 0), saved.get("moves", ())
        return replace(self, offset=offset, moves=tuple(moves))

    def moved(
        self,
        path: object,
        step: int,
        saved: Mapping[str, Any],
        now: Mapping[str, int],
        *,
        changed: Mapping[str, tuple[Any, Any]] | None = None,
        again: bool = True,
    ) -> Position:
        """This position, going on from a checkpoint that was written elsewhere.

        Args:
            path: the checkpoint, for the message.
            step: optimizer steps done there.
            saved: the checkpoint's state.
            now: what the order of the data depends on, as it is here.
            changed: keys of the config with their values then and now.
            again: whether the epoch begins again, since its data comes in another order.

        Raises:
            CheckpointError: it does not say how long its epochs were.
        """
        length = saved.get("steps_per_epoch")
        if not length:
            raise CheckpointError(
                f"{path}: does not say how many steps its epochs had (it is older than "
                "run.resume_elsewhere): resume it once as it was begun, stop it, then move it"
            )
        offset = saved.get("offset", 0)
        epoch = (step + offset) // length
        keys = changed or {}
        before, here = ({key: both[side] for key, both in keys.items()} for side in (0, 1))
        move = {
            "step": step,
            "epoch": epoch,
            "again": again,
            "was": {name: saved.get(name) for name in now} | {"steps_per_epoch": length} | before,
            "is": dict(now) | {"steps_per_epoch": self.steps_per_epoch} | here,
        }
        return replace(
            self,
            offset=epoch * self.steps_per_epoch - step if again else offset,
            moves=(*saved.get("moves", ()), move),
        )

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {
            "steps_per_epoch": self.steps_per_epoch,
            "offset": self.offset,
            "moves": list(self.moves),
        }


def describe_move(move: Mapping[str, Any]) -> str:
    """One move in words, for a log and for the notes of an evaluation."""
    was, now = move["was"], move["is"]
    changed = [f"{k} {was[k]} to {now[k]}" for k in now if was.get(k) != now[k]]
    # Moves of older runs do not say it: there the epoch always began again.
    again = move.get("again", True)
    began = f": epoch {move['epoch']} (counted from 0) began again" if again else ""
    return (
        f"went on elsewhere at step {move['step']} ({', '.join(changed) or 'same order of data'})"
        f"{began}, so the weights are not those of a run without the move"
    )
