"""One training step's arithmetic: forward, backward, and the steps of the optimizers."""

from __future__ import annotations

import contextlib
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ndavid.collectives import rank
from ndavid.engine.alternating import ONLY, AlternatingMethod, Batch, Update, train_only
from ndavid.engine.loader import to_device
from ndavid.engine.rng import derive_seed, generator
from ndavid.engine.setup import TrainingModel


class Updates:
    """Moves a model by one training step at a time.

    Args:
        accelerator: of the run.
        model: what is trained.
        seed: the run's.
        clip_grad_norm: largest global gradient norm; None clips nothing.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: TrainingModel,
        *,
        seed: int,
        clip_grad_norm: float | None,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.seed = seed
        self.clip_grad_norm = clip_grad_norm

    def __call__(self, step: int, group: list[Batch]) -> list[Update]:
        """The updates of one training step; ``step`` counts those done before it."""
        batches = [to_device(batch, self.accelerator.device) for batch in group]
        method = self.model.method
        if not isinstance(method, AlternatingMethod):
            return [self._update(step, ONLY, batches, 0)]
        # Named as in older runs, which another word would change.
        plan_generator = generator(self.seed, "deal", rank(), step)
        with torch.no_grad(), self.accelerator.autocast():
            plan = method.plan_updates(batches, generator=plan_generator, step=step)
        done: list[Update] = []
        for name, own in plan:
            train_only(name, self.model.parameters)
            before = sum(len(update.outputs) for update in done)
            done.append(self._update(step, name, own, before))
        return done

    def _update(self, step: int, name: str, batches: list[Batch], before: int) -> Update:
        """Forward and backward through one optimizer's batches, and its step.

        ``before`` counts the training step's batches in earlier updates.
        """
        optimizer, parameters = self.model.optimizers[name], self.model.parameters[name]
        outputs = []
        for micro, batch in enumerate(batches):
            last = micro == len(batches) - 1
            # Ranks add their gradients at the last batch only.
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model.wrapped):
                output = self._forward(step, before + micro, batch)
                self.accelerator.backward(output["loss"] / len(batches))
            outputs.append({key: torch.as_tensor(value).detach() for key, value in output.items()})
        norm = self._gradient_norm(optimizer, parameters)
        optimizer.step()
        optimizer.zero_grad()
        return Update(name, outputs, norm)

    def _forward(self, step: int, micro: int, batch: Batch) -> dict[str, Tensor]:
        """The method on the ``micro``-th batch of a step."""
        # Library modules such as nn.Dropout draw from the default generator.
        torch.manual_seed(derive_seed(self.seed, "step", rank(), step, micro))
        # Augmentation and shuffles draw from it as negatives do. It is named as in older runs,
        # which another word would change.
        step_generator = generator(self.seed, "nda", rank(), step, micro)
        output = self.model.wrapped(batch, generator=step_generator, step=step)
        return cast(dict[str, Tensor], output)

    def _gradient_norm(
        self, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]
    ) -> Tensor:
        """The global norm before clipping; clips if asked to."""
        if self.clip_grad_norm is not None:
            return self.accelerator.clip_grad_norm_(parameters, self.clip_grad_norm)
        self.accelerator.unscale_gradients(optimizer)
        return nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
