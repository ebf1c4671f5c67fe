"""Methods with several optimizers: two that pull one number apart, in the loop."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ndavid.engine import checkpoint
from ndavid.engine.hooks import EverySteps, HookContext
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError, TrainingError


class Numbers:
    """Sixteen samples with one number each, a function of the key."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Tensor]:
        return {"x": torch.tensor(float(key[0]))}


class Duel(nn.Module):
    """``up`` raises the sum of both weights, in two optimizer steps; ``down`` lowers it, in one."""

    batches_per_step = 2

    def __init__(self, nan_step: int = -1) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(1, 1), nn.Linear(1, 1)
        self.nan_step = nan_step
        self.seen: list[tuple[int, str, bool, bool]] = []
        self.drawn: list[Tensor] = []

    def optimizer_groups(self) -> dict[str, list[dict[str, Any]]]:
        return {
            "up": [{"params": list(self.up.parameters())}],
            "down": [{"params": list(self.down.parameters()), "lr_scale": 3.0}],
        }

    def averaged(self) -> nn.Module:
        return self.down

    def plan_updates(
        self, batches: Sequence[dict[str, Any]], *, generator: torch.Generator | None, step: int
    ) -> list[tuple[str, list[dict[str, Any]]]]:
        assert not torch.is_grad_enabled()
        self.drawn.append(torch.rand(2, generator=generator))
        half = len(batches) // 2
        named = [{**batch, "who": "up"} for batch in batches]
        last = [{"who": "down", "x": batches[0]["x"]}]
        return [("up", named[:half]), ("up", named[half:]), ("down", last)]

    def forward(
        self, batch: dict[str, Any], *, generator: torch.Generator, step: int
    ) -> dict[str, Tensor]:
        takes = self.up.weight.requires_grad, self.down.weight.requires_grad
        self.seen.append((step, batch["who"], *takes))
        total = (self.up(batch["x"][:, None]) + self.down(batch["x"][:, None])).mean()
        loss = -total if batch["who"] == "up" else total
        if step == self.nan_step and batch["who"] == "down":
            loss = loss * float("nan")
        return {"loss": loss, f"seen_by_{batch['who']}": batch["x"].mean()}


def make(nan_step: int = -1) -> Duel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Duel(nan_step)


def run(method: Duel, output: Path, hook: EverySteps | None = None, **options: Any) -> Any:
    accumulate = options.pop("accumulate_steps", 1)
    config = {"epochs": 3, "batch_size": 2, "num_workers": 0, "log_every": 1, "device": "cpu"}
    return fit(
        method,
        Numbers(),
        run=RunConfig(output=str(output), **{**config, **options}),
        optim=OptimConfig(name="sgd", lr=0.01, momentum=0.0, weight_decay=0.0,
                          accumulate_steps=accumulate),
        on_steps=hook,
    )  # fmt: skip


def test_a_step_reads_the_batches_of_its_updates(tmp_path: Path) -> None:
    method = make()
    result = run(method, tmp_path)
    # 8 batches an epoch, 2 a step.
    assert result.steps == 12
    assert [who for _, who, _, _ in method.seen[:6]] == ["up", "up", "down"] * 2
    assert [step for step, _, _, _ in method.seen[:6]] == [0, 0, 0, 1, 1, 1]


def test_only_the_network_that_is_updated_takes_gradients(tmp_path: Path) -> None:
    method = make()
    run(method, tmp_path)
    for _, who, up, down in method.seen:
        assert (up, down) == ((True, False) if who == "up" else (False, True))


def test_all_parameters_take_gradients_again_after_the_run(tmp_path: Path) -> None:
    method = make()
    run(method, tmp_path)
    assert all(parameter.requires_grad for parameter in method.parameters())


def test_the_steps_are_those_of_two_optimizers_by_hand(tmp_path: Path) -> None:
    method, by_hand = make(), make()
    run(method, tmp_path, max_steps=1)
    rate, scale = 0.01, 3.0
    with torch.no_grad():
        # Two updates up, one down; the gradient of the weight is the batch's mean.
        seen = records(tmp_path)[0]
        ups = by_hand.up.weight + rate * 2 * seen["seen_by_up"]
        downs = by_hand.down.weight - rate * scale * seen["seen_by_down"]
    torch.testing.assert_close(method.up.weight, ups)
    torch.testing.assert_close(method.down.weight, downs)


def records(output: Path) -> list[dict[str, Any]]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if "loss" in (record := json.loads(line))]


def test_records_name_the_optimizers(tmp_path: Path) -> None:
    run(make(), tmp_path)
    record = records(tmp_path)[0]
    expected = {"loss", "up_loss", "down_loss", "up_grad_norm", "down_grad_norm", "grad_norm"}
    assert expected <= record.keys()
    assert record["loss"] == record["up_loss"]
    assert {"seen_by_up", "seen_by_down"} <= record.keys()
    assert record["samples_per_s"] > 0


def test_accumulation_gives_each_update_more_batches(tmp_path: Path) -> None:
    method = make()
    result = run(method, tmp_path, accumulate_steps=2, epochs=1)
    assert result.steps == 2
    assert [who for _, who, _, _ in method.seen[:5]] == ["up"] * 4 + ["down"]


def test_a_step_that_an_epoch_does_not_hold_is_refused(tmp_path: Path) -> None:
    message = r"reads 10 batches .*accumulate_steps 5\), 20 samples, and there are 16"
    with pytest.raises(ConfigError, match=message):
        run(make(), tmp_path, accumulate_steps=5)


def test_both_optimizers_and_the_average_resume_to_the_same_bits(tmp_path: Path) -> None:
    options = {"save_every_steps": 3, "ema_decay": 0.9, "ema_start_step": 2}
    run(make(), tmp_path / "whole", **options, max_steps=7)
    run(make(), tmp_path / "cut", **options, max_steps=4)
    resumed = make()
    run(resumed, tmp_path / "cut", **options, max_steps=7)
    assert len(resumed.drawn) == 3
    whole, cut = checkpoint.load(tmp_path / "whole"), checkpoint.load(tmp_path / "cut")
    assert set(whole.state["optimizer"]) == {"up", "down"}
    assert whole.digest == cut.digest
    assert whole.ema is not None and cut.ema is not None
    assert whole.ema.keys() == {"weight", "bias"}  # of the part that is averaged
    assert all(torch.equal(whole.ema[name], cut.ema[name]) for name in whole.ema)


def averages(output: Path, **options: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The weights and their average before training and after each step of a run."""
    method = make()
    weights = [method.down.weight.detach().clone()]
    average = [weights[0]]

    def hook(context: HookContext) -> dict[str, float]:
        assert context.ema is not None and isinstance(context.method, Duel)
        weights.append(context.method.down.weight.detach().clone())
        average.append(context.ema.weight.detach().clone())
        return {}

    run(method, output, EverySteps(1, hook), ema_decay=0.75, **options)
    return weights, average


@pytest.mark.parametrize("start", [0, 1, 2, 4])
def test_the_average_decays_from_the_very_step_that_is_named(tmp_path: Path, start: int) -> None:
    weights, average = averages(tmp_path, ema_start_step=start, max_steps=6)
    wanted = weights[0]
    for step in range(1, 7):
        decay = 0.75 if step >= start else 0.0
        wanted = decay * wanted + (1 - decay) * weights[step]
        torch.testing.assert_close(average[step], wanted, msg=f"step {step}")
        assert torch.equal(average[step], weights[step]) == (step < start), f"step {step}"


def test_a_run_of_before_goes_on_with_the_start_it_had(tmp_path: Path) -> None:
    """Checkpoints that do not say when the average starts are of runs that began it two late."""
    averages(tmp_path, ema_start_step=3, max_steps=2)
    saved = checkpoint.load(tmp_path)
    del saved.state["ema_start"]
    checkpoint.save(tmp_path, 2, model=saved.model, ema=saved.ema, state=saved.state)
    weights, average = averages(tmp_path, ema_start_step=3, max_steps=6)
    copied = [torch.equal(a, w) for a, w in zip(average, weights, strict=True)]
    assert copied == [True, True, True, False, False]  # before, and after steps 3, 4, 5 and 6
    assert checkpoint.load(tmp_path).state["ema_start"] == 5


def test_a_hook_is_called_every_so_many_steps_and_logged(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def hook(context: HookContext) -> dict[str, float]:
        assert not context.method.training
        context.show("picture", torch.zeros(3, 4, 4, dtype=torch.uint8))
        return {"weight": float(context.step)}

    run(make(), tmp_path, EverySteps(5, hook))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    logged = [(r["step"], r["val/weight"]) for r in map(json.loads, lines) if "val/weight" in r]
    assert logged == [(5, 5.0), (10, 10.0)]
    assert "step 5  val/weight 5.0000" in capfd.readouterr().err


def test_a_loss_of_any_network_that_is_nan_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"step 5: the loss is nan.*step_4"):
        run(make(nan_step=4), tmp_path, save_every_steps=2)
