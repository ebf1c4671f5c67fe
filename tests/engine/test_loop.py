"""The loop, in one process: what it computes, what it writes, when it stops."""

from __future__ import annotations

import csv
import errno
import itertools
import json
import math
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ndavid.config import to_yaml
from ndavid.data.config import TrainingDataConfig
from ndavid.engine import checkpoint, resume_rules
from ndavid.engine.finite import check_parameters
from ndavid.engine.hooks import HookContext
from ndavid.engine.loop import fit
from ndavid.engine.memory_format import to_channels_last
from ndavid.engine.rng import derive_seed, generator, seeded
from ndavid.engine.run_config import RunConfig
from ndavid.engine.sampler import EpochSampler
from ndavid.engine.tracking import Tracker
from ndavid.errors import CheckpointError, ConfigError, DataError, TrainingError

Make = Callable[..., Any]
TIMINGS = {"time", "samples_per_s", "seconds_data", "seconds_compute"}


def records(output: str | Path) -> list[dict[str, Any]]:
    lines = (Path(output) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def timeless(output: str | Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in TIMINGS} for r in records(output)]


def weights(method: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in method.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_directory_holds_what_the_design_says(toy: ModuleType, toy_config: Make) -> None:
    config = toy_config()
    result, method = toy.train(config)
    assert (result.steps, result.bad_clips) == (30, 0)
    assert result.checkpoint.name == "step_30"
    output = result.output
    assert (output / "config.yaml").read_text() == to_yaml(config)
    environment = json.loads((output / "environment.json").read_text())
    assert environment["seed"] == 0 and environment["packages"]["torch"] == torch.__version__
    assert environment["device"].startswith("cpu") and environment["world_size"] == 1
    assert list((output / "tensorboard").iterdir())
    assert not (output / "bad_clips.csv").exists()
    assert sorted(p.name for p in (output / "checkpoints").iterdir()) == ["step_27", "step_30"]
    assert same(checkpoint.load(output).model, weights(method))


def test_records_carry_the_method_and_the_loop(toy: ModuleType, toy_config: Make) -> None:
    config = toy_config(run={"log_every": 4})
    result, _ = toy.train(config)
    train = [r for r in records(result.output) if "loss" in r]
    # Every step, whenever it was written.
    assert [r["step"] for r in train] == list(range(1, 31))
    assert [r["epoch"] for r in train] == [0] * 10 + [1] * 10 + [2] * 10
    for record in train:
        assert {"loss", "top1", "brightness", "grad_norm", "lr", "bad_clips"} <= record.keys()
        assert all(record[name] >= 0 for name in TIMINGS) and record["samples_per_s"] > 0
    assert [r["lr"] for r in train][::10] == pytest.approx([0.01, 0.001, 0.0001])
    validation = [r for r in records(result.output) if "val/weight" in r]
    assert [(r["step"], r["epoch"]) for r in validation] == [(10, 0), (20, 1), (30, 2)]
    steps = [r["step"] for r in records(result.output)]
    assert steps == sorted(steps) and steps.count(10) == 2
    assert result.last_metrics["loss"] == train[-1]["loss"]


def test_how_often_records_are_written_changes_none_of_them(
    toy: ModuleType, toy_config: Make, tmp_path: Path
) -> None:
    outputs = [str(tmp_path / name) for name in "ab"]
    for output, log_every in zip(outputs, (1, 7), strict=True):
        toy.train(toy_config(run={"output": output, "log_every": log_every}))
    assert timeless(outputs[0]) == timeless(outputs[1])


def test_records_are_written_many_at_a_time_and_before_a_checkpoint(
    toy: ModuleType, toy_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = toy_config(run={"log_every": 4, "save_every_steps": 6, "max_steps": 13})
    at_save: list[int] = []
    at_step: list[int] = []
    real = checkpoint.save

    def written() -> int:
        return len([r for r in records(config.run.output) if "loss" in r])

    class Watched(toy.ToyMethod):  # type: ignore[misc,name-defined]
        """Notes how many steps are on disk when each step begins."""

        def forward(self, batch: Any, *, generator: Any, step: int) -> Any:
            at_step.append(written())
            return super().forward(batch, generator=generator, step=step)

    def save(*arguments: Any, **options: Any) -> Path:
        at_save.append(written())
        return real(*arguments, **options)

    monkeypatch.setattr(checkpoint, "save", save)
    toy.train_method(Watched(config), config)
    # Written after steps 1, 4, 6 (saved), 8, 10 (an epoch's end) and 12.
    assert at_step == [0, 1, 1, 1, 4, 4, 6, 6, 8, 8, 10, 10, 12]
    assert at_save == [6, 12, 13]


def test_an_error_in_the_middle_loses_no_record(toy: ModuleType, toy_config: Make) -> None:
    class Fails(toy.ToyMethod):  # type: ignore[misc,name-defined]
        """Fails at its sixth step."""

        def forward(self, batch: Any, *, generator: Any, step: int) -> Any:
            if step == 5:
                raise ZeroDivisionError
            return super().forward(batch, generator=generator, step=step)

    config = toy_config(run={"log_every": 100, "save_every_steps": 100})
    with pytest.raises(ZeroDivisionError):
        toy.train_method(Fails(config), config)
    assert [r["step"] for r in records(config.run.output)] == [1, 2, 3, 4, 5]


def test_tensorboard_has_the_same_curves(toy: ModuleType, toy_config: Make) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, _ = toy.train(toy_config())
    board = EventAccumulator(str(result.output / "tensorboard"))
    board.Reload()
    scalars = {s.step: s.value for s in board.Scalars("train/loss")}
    train = {r["step"]: r["loss"] for r in records(result.output) if "loss" in r}
    assert scalars == pytest.approx(train)
    assert len(board.Scalars("val/weight")) == 3


def test_a_run_learns(toy: ModuleType, toy_config: Make) -> None:
    config = toy_config(run={"epochs": 12}, optim={"lr": 0.05, "milestones": []}, plain=True)
    result, _ = toy.train(config)
    assert records(result.output)[0]["loss"] > 1.2
    assert result.last_metrics["loss"] < 0.6


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As `toy.train` computes: sums of another number of threads differ in their last bits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_loop_is_the_one_that_a_textbook_has(toy: ModuleType, toy_config: Make) -> None:
    config = toy_config(optim={"schedule": "cosine", "milestones": [], "weight_decay": 0.01})
    with seeded(0, "init"):
        method = toy.ToyMethod(config)
    sampler = EpochSampler(43, 4, seed=0)
    optimizer = torch.optim.Adam(method.parameters(), weight_decay=0.01)
    dataset, step = toy.ToyDataset(config), 0
    for epoch in range(3):
        sampler.set_position(epoch)
        for keys in sampler:
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / 30))
            torch.manual_seed(derive_seed(0, "step", 0, step, 0))
            batch = toy.collate([dataset[key] for key in keys])
            draws = generator(0, "nda", 0, step, 0)
            optimizer.zero_grad()
            method(batch, generator=draws, step=step)["loss"].backward()
            optimizer.step()
            step += 1
    _, ours = toy.train(config)
    assert same(weights(ours), weights(method))


def test_equal_seeds_agree_and_others_do_not(
    toy: ModuleType, toy_config: Make, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    _, first = toy.train(toy_config())
    torch.manual_seed(2)
    _, second = toy.train(toy_config(run={"output": str(tmp_path / "b")}))
    _, third = toy.train(toy_config(run={"output": str(tmp_path / "c"), "seed": 1}))
    assert same(weights(first), weights(second))
    assert not same(weights(first), weights(third))


def test_the_callers_random_state_and_forward_are_left_alone(
    toy: ModuleType, toy_config: Make
) -> None:
    before = torch.get_rng_state()
    _, method = toy.train(toy_config(run={"precision": "bf16", "max_steps": 2}))
    assert torch.equal(torch.get_rng_state(), before)
    assert method.forward.__func__ is toy.ToyMethod.forward


@pytest.mark.parametrize("stop_at", [3, 10, 14, 29])
def test_resuming_gives_the_bits_of_a_run_without_a_stop(
    toy: ModuleType, toy_config: Make, tmp_path: Path, stop_at: int
) -> None:
    reference, whole = toy.train(toy_config(run={"output": str(tmp_path / "whole")}))
    toy.train(toy_config(run={"max_steps": stop_at}))
    dataset = toy.ToyDataset(toy_config())
    result, resumed = toy.train(toy_config(), dataset)
    assert same(weights(whole), weights(resumed))
    assert timeless(reference.output) == timeless(result.output)
    state = [checkpoint.load(r.output).state["optimizer"]["state"] for r in (reference, result)]
    for a, b in zip(state[0].values(), state[1].values(), strict=True):
        assert same(a, b)
    # Batches done before the stop were not read again.
    assert len(dataset.read) == 4 * (30 - stop_at)


def test_a_complete_run_returns_at_once(toy: ModuleType, toy_config: Make) -> None:
    first, method = toy.train(toy_config())
    before = (first.output / "metrics.jsonl").read_bytes()
    dataset = toy.ToyDataset(toy_config())
    again, reloaded = toy.train(toy_config(), dataset)
    assert not dataset.read and again == first
    assert same(weights(method), weights(reloaded))
    assert (first.output / "metrics.jsonl").read_bytes() == before


def test_more_epochs_go_on_from_the_end(toy: ModuleType, toy_config: Make) -> None:
    toy.train(toy_config(run={"epochs": 1}))
    result, _ = toy.train(toy_config(run={"epochs": 2, "log_every": 2}))
    assert result.steps == 20


def test_a_changed_config_is_refused_by_name(toy: ModuleType, toy_config: Make) -> None:
    toy.train(toy_config(run={"max_steps": 3}))
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.01, is 0\.5") as error:
        toy.train(toy_config(optim={"lr": 0.5}, run={"log_every": 5}, pause=0.001))
    assert "pause was 0.0, is 0.001" in str(error.value)
    assert "log_every" not in str(error.value)


@pytest.mark.parametrize("name", ["compile", "channels_last"])
def test_what_changes_the_last_bits_is_refused(
    toy: ModuleType, toy_config: Make, name: str
) -> None:
    toy.train(toy_config(run={"max_steps": 3}))
    with pytest.raises(ConfigError, match=rf"run\.{name} was False, is True"):
        toy.train(toy_config(run={name: True}))


@pytest.mark.parametrize("change", [{"epochs": 5}, {"max_steps": 20}])
def test_a_cosine_run_of_another_length_is_refused(
    toy: ModuleType, toy_config: Make, change: dict[str, int]
) -> None:
    cosine = {"schedule": "cosine", "milestones": []}
    first, _ = toy.train(toy_config(optim=cosine))
    # The step is early enough for both lengths.
    before = records(first.output)
    shutil.rmtree(first.checkpoint)
    with pytest.raises(ConfigError, match=r"cosine .* was 30 and is .* run\.epochs") as error:
        toy.train(toy_config(optim=cosine, run=change))
    assert "another output" in str(error.value)
    assert records(first.output) == before
    again, _ = toy.train(toy_config(optim=cosine, run={"max_steps": 30}))
    assert again.steps == 30


def test_a_key_newer_than_the_run_counts_as_its_default(toy: ModuleType, toy_config: Make) -> None:
    config = toy_config(run={"max_steps": 3})
    toy.train(config)
    file = Path(config.run.output) / "config.yaml"
    values = yaml.safe_load(file.read_text())
    assert values.pop("pause") == 0 and values["optim"].pop("accumulate_steps") == 1
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"pause was 0.0 \(the default; .* older .*, is 0.001 "):
        toy.train(toy_config(pause=0.001))
    assert toy.train(toy_config(run={"max_steps": 6}))[0].steps == 6
    # From then on the folder's config has them.
    assert yaml.safe_load(file.read_text())["optim"]["accumulate_steps"] == 1
    # What a run had and no config has now is no new key.
    values["gone"] = True
    file.write_text(yaml.safe_dump(values))
    with pytest.raises(ConfigError, match=r"gone was True, is 'absent'"):
        toy.train(toy_config(run={"max_steps": 9}))


@pytest.mark.parametrize("content", ["", "[1, 2]", "hello", "a: [", "{[1]: 2}", "a: \x00"])
def test_a_damaged_config_is_one_line_that_names_it(
    toy: ModuleType, toy_config: Make, content: str
) -> None:
    config = toy_config(run={"epochs": 1})
    toy.train(config)
    file = Path(config.run.output) / "config.yaml"
    file.write_text(content)
    with pytest.raises(CheckpointError) as error:
        toy.train(config)
    said = str(error.value)
    assert said.startswith(f"{file}: cannot be read: ") and "\n" not in said
    assert "put back the config" in said
    with pytest.raises(CheckpointError, match="cannot be read"):
        resume_rules.superseded(file.parent, config, {}, given=(), since=2)


@dataclass
class WithManifest:
    data: TrainingDataConfig = field(default_factory=TrainingDataConfig)


def test_other_data_is_refused_and_moved_data_is_not(toy: ModuleType, toy_config: Make) -> None:
    def train(digest: str | None, manifest: str, **run: int) -> Any:
        config = toy_config(run=run)
        dataset = toy.ToyDataset(config)
        dataset.digest = digest
        return fit(
            toy.ToyMethod(config),
            dataset,
            run=config.run,
            optim=config.optim,
            config=WithManifest(data=TrainingDataConfig(root=manifest)),
            collate=toy.collate,
        )

    train("a" * 64, "here", max_steps=3)
    with pytest.raises(ConfigError, match=r"with other data: .*digest aaaaaaaaaaaa, now bbbbbbbb"):
        train("b" * 64, "here", max_steps=6)
    with pytest.raises(ConfigError, match=r"data\.root was 'here', is 'there'"):
        train(None, "there", max_steps=6)
    assert train("a" * 64, "there", max_steps=6).steps == 6


def test_another_number_of_clips_is_refused(toy: ModuleType, toy_config: Make) -> None:
    config = toy_config(run={"max_steps": 3})
    toy.train(config)
    dataset = toy.ToyDataset(toy_config(samples=50))
    config.run.max_steps = 6
    with pytest.raises(CheckpointError, match="num_samples 43, this run has 50"):
        toy.train(config, dataset)


def test_never_does_not_write_over_a_run(toy: ModuleType, toy_config: Make) -> None:
    toy.train(toy_config(run={"resume": "never", "max_steps": 3}))
    with pytest.raises(ConfigError, match="already holds checkpoints"):
        toy.train(toy_config(run={"resume": "never"}))


def test_going_back_in_the_same_folder_is_refused(toy: ModuleType, toy_config: Make) -> None:
    # Else its later checkpoints would be taken for those of the new branch.
    result, _ = toy.train(toy_config(run={"max_steps": 6}))
    older = result.output / "checkpoints" / "step_3"
    with pytest.raises(ConfigError, match="choose another output"):
        toy.train(toy_config(run={"resume": str(older), "max_steps": 9}))
    newest, _ = toy.train(toy_config(run={"resume": str(result.checkpoint), "max_steps": 9}))
    assert newest.steps == 9


def test_auto_does_not_start_over_when_all_checkpoints_are_damaged(
    toy: ModuleType, toy_config: Make
) -> None:
    result, _ = toy.train(toy_config(run={"max_steps": 6}))
    before = records(result.output)
    for file in result.output.glob("checkpoints/*/complete.json"):
        file.unlink()
    with pytest.raises(CheckpointError, match="none of its checkpoints is whole"):
        toy.train(toy_config())
    assert records(result.output) == before


def test_resuming_from_a_path_leaves_that_run_as_it_was(
    toy: ModuleType, toy_config: Make, tmp_path: Path
) -> None:
    first, _ = toy.train(toy_config(run={"max_steps": 6}))
    before = sorted(first.output.rglob("*"))
    other = str(tmp_path / "other")
    changes = {"output": other, "resume": str(first.checkpoint), "max_steps": 9}
    result, moved = toy.train(toy_config(run=changes))
    assert result.steps == 9 and result.checkpoint == Path(other) / "checkpoints" / "step_9"
    assert sorted(first.output.rglob("*")) == before
    _, straight = toy.train(toy_config(run={"output": str(tmp_path / "c"), "max_steps": 9}))
    assert same(weights(moved), weights(straight))


def test_resuming_from_what_is_no_checkpoint(toy: ModuleType, toy_config: Make) -> None:
    with pytest.raises(CheckpointError, match=r"toy\.py: not a checkpoint"):
        toy.train(toy_config(run={"resume": toy.__file__}))


def test_a_checkpoint_of_another_method_is_refused(toy: ModuleType, toy_config: Make) -> None:
    config = toy_config(run={"max_steps": 3})
    toy.train(config)
    config.run.max_steps = 5
    with pytest.raises(CheckpointError, match="does not fit this method"):
        fit(nn.Linear(2, 2), toy.ToyDataset(config), run=config.run, optim=config.optim)


def test_auto_passes_over_a_damaged_checkpoint(
    toy: ModuleType, toy_config: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    _, whole = toy.train(toy_config(run={"output": str(tmp_path / "whole")}))
    result, _ = toy.train(toy_config(run={"max_steps": 6}))
    file = result.checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    capfd.readouterr()
    _, resumed = toy.train(toy_config())
    said = capfd.readouterr().err
    assert "passed over a damaged checkpoint" in said and "step_6" in said
    assert "resumed from" in said and "step_3" in said
    assert same(weights(whole), weights(resumed))


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_loss_that_is_nan_stops_and_keeps_the_last_good_checkpoint(
    toy: ModuleType, toy_config: Make, log_every: int
) -> None:
    config = toy_config(nan_step=7, run={"log_every": log_every})
    with pytest.raises(TrainingError) as error:
        toy.train(config)
    message = str(error.value)
    for part in ("step 8", "loss is nan", "learning rate 0.01", "step_6"):
        assert part in message
    loaded = checkpoint.load(config.run.output)
    assert loaded.step == 6
    assert all(torch.isfinite(value).all() for value in loaded.model.values())
    # The step at fault is on record too.
    losses = {r["step"]: r["loss"] for r in records(config.run.output)}
    assert list(losses) == list(range(1, 9))
    assert [step for step, loss in losses.items() if loss is None] == [8]


def test_an_infinite_gradient_stops_too(toy: ModuleType, toy_config: Make) -> None:
    class Root(nn.Module):
        """sqrt(0): a loss of 0 whose gradient is infinite."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))

        def forward(self, batch: Any, *, generator: Any, step: int) -> dict[str, torch.Tensor]:
            return {"loss": self.weight.sqrt().sum()}

    config = toy_config()
    with pytest.raises(TrainingError, match=r"step 1: the gradient is inf .*no earlier checkpoint"):
        fit(Root(), toy.ToyDataset(config), run=config.run, optim=config.optim)


def test_weights_that_are_not_finite_are_never_saved() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.bias[1] = math.nan
    with pytest.raises(TrainingError, match="the weight 'bias' is not finite; no luck"):
        check_parameters(layer, 3, lambda: "no luck")


def test_accumulation_is_the_big_batch(toy: ModuleType, toy_config: Make, tmp_path: Path) -> None:
    # A plain method: batch norm sees smaller batches by nature.
    big = {"batch_size": 8, "output": str(tmp_path / "big"), "seed": 5}
    whole_result, whole = toy.train(toy_config(run=big, plain=True))
    small = {"batch_size": 4, "seed": 5}
    optim = {"accumulate_steps": 2, "clip_grad_norm": 0.5}
    whole_clipped, clipped = toy.train(
        toy_config(run=big | {"output": str(tmp_path / "c")}, optim=optim | {"accumulate_steps": 1},
                   plain=True)
    )  # fmt: skip
    result, parts = toy.train(toy_config(run=small, optim={"accumulate_steps": 2}, plain=True))
    _, parts_clipped = toy.train(
        toy_config(run=small | {"output": str(tmp_path / "d")}, optim=optim, plain=True)
    )
    assert result.steps == whole_result.steps == whole_clipped.steps == 15
    for a, b in ((whole, parts), (clipped, parts_clipped)):
        for name, weight in a.named_parameters():
            torch.testing.assert_close(weight, b.get_parameter(name), rtol=1e-4, atol=1e-6)
    for a, b in zip(timeless(whole_result.output), timeless(result.output), strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-5)


def test_clipping_bounds_the_step_and_records_the_norm_before_it(
    toy: ModuleType, toy_config: Make
) -> None:
    optim = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0, "lr": 1.0, "clip_grad_norm": 1e-3}
    config = toy_config(run={"max_steps": 1}, optim=optim)
    before = weights(toy.train(toy_config(run={"max_steps": 1}, optim=optim | {"lr": 1e-12}))[1])
    config.run.output += "_b"
    result, method = toy.train(config)
    moved = torch.cat([(p - before[n]).flatten() for n, p in method.named_parameters()])
    assert moved.norm().item() == pytest.approx(1e-3, rel=1e-3)
    assert result.last_metrics["grad_norm"] > 0.1


def test_an_epoch_shorter_than_one_accumulation_is_refused(
    toy: ModuleType, toy_config: Make
) -> None:
    with pytest.raises(
        ConfigError, match=r"11\), 44 samples, and there are 43: lower run.batch_size"
    ):
        toy.train(toy_config(optim={"accumulate_steps": 11}))


def test_bad_clips_are_named_once_counted_and_listed(
    toy: ModuleType, toy_config: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    config = toy_config(bad=[3, 5], run={"max_bad_fraction": 0.05})
    result, _ = toy.train(config)
    said = capfd.readouterr().err
    assert said.count("skipped a bad clip: clip_3.mp4: zero bytes") == 1
    assert "2 of 43 clips could not be used" in said
    assert result.bad_clips == 2 and result.last_metrics["bad_clips"] == 2
    with (result.output / "bad_clips.csv").open(newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["path"] for row in rows} == {"clip_3.mp4", "clip_5.mp4"}
    assert {row["reason"] for row in rows} == {"zero bytes"}


def test_bad_clips_survive_a_resume(toy: ModuleType, toy_config: Make, tmp_path: Path) -> None:
    options = {"bad": [3, 5], "run": {"max_bad_fraction": 0.05}}
    whole = toy_config(**options)
    whole.run.output = str(tmp_path / "whole")
    reference, _ = toy.train(whole)
    toy.train(toy_config(bad=[3, 5], run={"max_bad_fraction": 0.05, "max_steps": 14}))
    result, _ = toy.train(toy_config(**options))
    lists = [(r.output / "bad_clips.csv").read_text() for r in (result, reference)]
    assert lists[0] == lists[1]
    assert timeless(result.output) == timeless(reference.output)


def test_damaged_clips_are_used_named_once_and_counted(
    toy: ModuleType, toy_config: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = toy_config(damaged=[3, 5])
    whole.run.output = str(tmp_path / "whole")
    reference, _ = toy.train(whole)
    said = capfd.readouterr().err
    assert said.count("read a damaged clip: clip_3.mp4: 2 of its 9 frames are damaged") == 1
    assert "2 of 43 clips showed damaged frames and were used" in said.splitlines()[-1]
    assert (reference.damaged_clips, reference.bad_clips) == (2, 0)
    # They survive a resume.
    toy.train(toy_config(damaged=[3, 5], run={"max_steps": 14}))
    result, _ = toy.train(toy_config(damaged=[3, 5]))
    lists = [(r.output / "damaged_clips.csv").read_text() for r in (result, reference)]
    assert lists[0] == lists[1] and "clip_5.mp4" in lists[0]


def test_too_many_bad_clips_stop_the_run(toy: ModuleType, toy_config: Make) -> None:
    config = toy_config(bad=[3, 5], run={"max_bad_fraction": 0.03})
    with pytest.raises(TrainingError, match=r"2 of 43 clips cannot be used.*clip_\d\.mp4"):
        toy.train(config)
    assert (Path(config.run.output) / "bad_clips.csv").exists()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_error_of_the_data_keeps_its_kind(
    toy: ModuleType, toy_config: Make, num_workers: int
) -> None:
    config = toy_config(broken=list(range(43)), run={"num_workers": num_workers})
    with pytest.raises(DataError, match=r"^clip_\d+\.mp4: every clip after it is bad too$"):
        toy.train(config)


def test_an_average_of_the_weights_is_kept_and_resumed(
    toy: ModuleType, toy_config: Make, tmp_path: Path
) -> None:
    ema = {"ema_decay": 0.9}
    whole, method = toy.train(toy_config(run=ema | {"output": str(tmp_path / "whole")}))
    toy.train(toy_config(run=ema | {"max_steps": 13}))
    result, _ = toy.train(toy_config(run=ema))
    averages = [checkpoint.load(r.output).ema for r in (whole, result)]
    assert averages[0] is not None and averages[1] is not None
    assert same(averages[0], averages[1])
    assert not torch.equal(averages[0]["head.weight"], method.head.weight)


def test_param_groups_scale_the_rate_of_their_parameters(toy: ModuleType, toy_config: Make) -> None:
    config = toy_config(run={"max_steps": 2})
    method = toy.ToyMethod(config)
    before = weights(method)

    def groups(net: Any) -> list[dict[str, Any]]:
        return [
            {"params": net.encoder.parameters(), "lr_scale": 0.0},
            {"params": net.head.parameters()},
        ]

    fit(
        method,
        toy.ToyDataset(config),
        run=config.run,
        optim=config.optim,
        collate=toy.collate,
        param_groups=groups,
    )
    assert torch.equal(method.encoder[0].weight, before["encoder.0.weight"])
    assert not torch.equal(method.head.weight, before["head.weight"])


def test_the_hook_sees_eval_mode_and_training_goes_on_in_train_mode(
    toy: ModuleType, toy_config: Make
) -> None:
    modes: list[tuple[int, int, bool]] = []

    class Watched(toy.ToyMethod):  # type: ignore[misc,name-defined]
        """Notes the mode of each forward."""

        def forward(self, batch: Any, *, generator: Any, step: int) -> Any:
            assert self.training
            return super().forward(batch, generator=generator, step=step)

    def hook(end: HookContext) -> dict[str, float]:
        modes.append((end.epoch, end.step, end.method.training))
        return {}

    config = toy_config()
    fit(
        Watched(config),
        toy.ToyDataset(config),
        run=config.run,
        optim=config.optim,
        collate=toy.collate,
        on_epoch_end=hook,
    )
    assert modes == [(1, 10, False), (2, 20, False), (3, 30, False)]


def test_channels_last_changes_the_layout_and_not_the_result(
    toy: ModuleType, toy_config: Make
) -> None:
    _, plain = toy.train(toy_config(run={"max_steps": 3}, plain=True))
    changes = {"max_steps": 3, "channels_last": True}
    config = toy_config(run=changes, plain=True)
    config.run.output += "_b"
    _, last = toy.train(config)
    convolution = last.encoder[0].weight
    assert convolution.is_contiguous(memory_format=torch.channels_last_3d)
    assert not convolution.is_contiguous()
    torch.testing.assert_close(last.head.weight, plain.head.weight, rtol=1e-4, atol=1e-6)


def test_channels_last_takes_networks_of_mixed_rank() -> None:
    net = to_channels_last(nn.ModuleList([nn.Conv3d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Linear(2, 2)]))
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last_3d)  # type: ignore[index]
    assert net[1].weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[index]


def test_bfloat16_runs_under_autocast(toy: ModuleType, toy_config: Make) -> None:
    kinds = set()

    class Watched(toy.ToyMethod):  # type: ignore[misc,name-defined]
        """Notes what the head computes in."""

        def forward(self, batch: Any, *, generator: Any, step: int) -> Any:
            kinds.add(self.head(torch.ones(1, 8)).dtype)
            return super().forward(batch, generator=generator, step=step)

    config = toy_config(run={"precision": "bf16", "max_steps": 2})
    method = Watched(config)
    toy.train_method(method, config)
    assert kinds == {torch.bfloat16} and method.head.weight.dtype == torch.float32


def test_runs_of_different_precision_follow_each_other(toy: ModuleType, toy_config: Make) -> None:
    for number, precision in enumerate(["bf16", "no", "bf16"]):
        config = toy_config(run={"precision": precision, "max_steps": 1})
        config.run.output += str(number)
        result, _ = toy.train(config)
        assert result.steps == 1


def test_half_precision_without_a_gpu_is_a_clear_error(toy: ModuleType, toy_config: Make) -> None:
    with pytest.raises(ConfigError, match="'fp16' needs a GPU"):
        toy.train(toy_config(run={"precision": "fp16"}))


@pytest.mark.parametrize(("name", "message"), [("wandbb", "'wandb'"), ("aim", "not installed")])
def test_trackers_that_cannot_be_used(
    toy: ModuleType, toy_config: Make, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        toy.train(toy_config(run={"trackers": ["tensorboard", name]}))


def test_an_output_that_cannot_be_made(toy: ModuleType, toy_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.output .*file/run"):
        toy.train(toy_config(run={"output": str(tmp_path / "file" / "run")}))


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"max_steps": 0}, {"batch_size": 0}, {"ema_decay": 1.5}]
)
def test_values_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RunConfig(**wrong)


def test_compile_targets_are_compiled_and_nothing_else(
    toy: ModuleType, toy_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self: compiled.append(self))

    class Chooses(toy.ToyMethod):  # type: ignore[misc,name-defined]
        """Compiles its encoder."""

        def compile_targets(self) -> list[nn.Module]:
            return [self.encoder]

    for kind, expected in ((Chooses, "encoder"), (toy.ToyMethod, "")):
        config = toy_config(run={"compile": True, "max_steps": 1})
        config.run.output += kind.__name__
        method = kind(config)
        toy.train_method(method, config)
        assert compiled.pop() is method.get_submodule(expected) and not compiled


def test_a_loader_that_is_killed_is_one_clear_error(toy: ModuleType, toy_config: Make) -> None:
    class Deadly(toy.ToyDataset):  # type: ignore[misc,name-defined]
        """Kills the process that reads it, as the kernel does when memory runs out."""

        def __getitem__(self, key: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

    config = toy_config(run={"num_workers": 1})
    with pytest.raises(TrainingError, match="data loading process died"):
        toy.train(config, Deadly(config))


def test_a_record_that_does_not_fit_the_disk(
    toy: ModuleType, toy_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Tracker.log

    def fill(self: Tracker, step: int, epoch: int, values: Any, **options: Any) -> None:
        if step == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, step, epoch, values, **options)

    monkeypatch.setattr(Tracker, "log", fill)
    with pytest.raises(TrainingError, match=r"No space left on device; .*step_3"):
        toy.train(toy_config())


def test_deterministic_algorithms_are_on_during_the_run_only(
    toy: ModuleType, toy_config: Make
) -> None:
    seen = []

    class Watched(toy.ToyMethod):  # type: ignore[misc,name-defined]
        """Notes the setting."""

        def forward(self, batch: Any, *, generator: Any, step: int) -> Any:
            seen.append(torch.are_deterministic_algorithms_enabled())
            return super().forward(batch, generator=generator, step=step)

    config = toy_config(run={"deterministic": True, "max_steps": 1})
    toy.train_method(Watched(config), config)
    assert seen == [True] and not torch.are_deterministic_algorithms_enabled()


def test_metrics_that_are_not_numbers_are_null(toy: ModuleType, toy_config: Make) -> None:
    class Odd(toy.ToyMethod):  # type: ignore[misc,name-defined]
        """Returns a plain number, an integer tensor, and a mean of nothing."""

        def forward(self, batch: Any, *, generator: Any, step: int) -> Any:
            output = super().forward(batch, generator=generator, step=step)
            odd = {"three": 3, "count": torch.tensor(2), "empty": torch.zeros(0).mean()}
            return output | odd

    config = toy_config(run={"max_steps": 2})
    result = toy.train_method(Odd(config), config)
    record = records(result.output)[-1]
    assert (record["three"], record["count"], record["empty"]) == (3.0, 2.0, None)
    assert math.isnan(result.last_metrics["empty"])


def test_a_full_disk_in_the_middle_of_a_run(
    toy: ModuleType, toy_config: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoint.save_file, itertools.count(1)

    def fill(tensors: Any, file: Path) -> None:
        if next(calls) == 2:
            raise OSError(28, "No space left on device")
        real(tensors, file)

    monkeypatch.setattr(checkpoint, "save_file", fill)
    with pytest.raises(CheckpointError, match=r"step_6: could not be saved: No space .*step_3"):
        toy.train(toy_config())
    assert checkpoint.load(toy_config().run.output).step == 3
