"""Optimizers and learning rates against values written out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ndavid.engine.optim import OptimConfig, build_optimizer, lr_factor, set_lr
from ndavid.errors import ConfigError


def factors(config: OptimConfig, total: int, per_epoch: int) -> list[float]:
    return [
        lr_factor(step, config, steps_per_epoch=per_epoch, total_steps=total)
        for step in range(total)
    ]


def test_milestones_are_epochs_and_act_on_their_first_step() -> None:
    config = OptimConfig(milestones=[1, 3], gamma=0.1)
    assert factors(config, 8, 2) == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_warm_up_never_wastes_a_step_at_zero_and_moves_no_milestone() -> None:
    config = OptimConfig(warmup_steps=3, milestones=[2], gamma=0.5)
    assert factors(config, 6, 2) == pytest.approx([0.25, 0.5, 0.75, 1, 0.5, 0.5])


def test_cosine_starts_at_one_after_the_warm_up_and_would_reach_zero_at_the_end() -> None:
    config = OptimConfig(schedule="cosine", warmup_steps=2)
    expected = [1 / 3, 2 / 3] + [0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)]
    assert factors(config, 10, 5) == pytest.approx(expected)
    assert lr_factor(10, config, steps_per_epoch=5, total_steps=10) == pytest.approx(0)


def test_groups_keep_their_scale() -> None:
    encoder, head = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [
        {"params": encoder.parameters(), "lr_scale": 0.1},
        {"params": list(head.parameters())},
    ]
    optimizer = build_optimizer(nn.Sequential(encoder, head), OptimConfig(lr=1.0), groups)
    set_lr(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.5]


def test_a_scale_of_zero_freezes_for_good() -> None:
    layer = nn.Linear(2, 2)
    groups = [{"params": list(layer.parameters()), "lr_scale": 0.0}]
    optimizer = build_optimizer(layer, OptimConfig(), groups)
    before = layer.weight.detach().clone()
    set_lr(optimizer, 1.0)
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars", "AdamW"])
def test_named_optimizers_take_a_step(name: str) -> None:
    layer = nn.Linear(3, 1)
    optimizer = build_optimizer(layer, OptimConfig(name=name, lr=0.1))
    before = layer.weight.detach().clone()
    layer(torch.ones(1, 3)).sum().backward()
    set_lr(optimizer, 0.1)
    optimizer.step()
    assert not torch.equal(layer.weight, before)


def test_sgd_is_the_textbooks() -> None:
    # timm's "sgd" turns Nesterov on; papers that say SGD with momentum mean without.
    ours, theirs = nn.Linear(3, 1), nn.Linear(3, 1)
    theirs.load_state_dict(ours.state_dict())
    config = OptimConfig(name="sgd", lr=0.1, momentum=0.9, weight_decay=1e-4)
    reference = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    optimizer = build_optimizer(ours, config)
    for _ in range(3):
        for layer, stepped in ((ours, optimizer), (theirs, reference)):
            stepped.zero_grad()
            layer(torch.ones(1, 3)).square().sum().backward()
            stepped.step()
    assert torch.equal(ours.weight, theirs.weight)


def test_adam_is_torchs() -> None:
    optimizer = build_optimizer(nn.Linear(1, 1), OptimConfig(betas=[0.5, 0.9], weight_decay=0.1))
    group = optimizer.param_groups[0]
    assert isinstance(optimizer, torch.optim.Adam)
    assert group["betas"] == (0.5, 0.9) and group["weight_decay"] == 0.1
    assert len(group["params"]) == 2


def test_bias_and_norm_can_be_left_out_of_decay() -> None:
    net = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    config = OptimConfig(weight_decay=0.1, decay_bias_and_norm=False)
    decays = {
        id(p): group["weight_decay"]
        for group in build_optimizer(net, config).param_groups
        for p in group["params"]
    }
    assert {name: decays[id(p)] for name, p in net.named_parameters()} == {
        "0.weight": 0.1,
        "0.bias": 0.0,
        "1.weight": 0.0,
        "1.bias": 0.0,
    }


def test_frozen_parameters_are_left_out_and_none_left_is_an_error() -> None:
    layer = nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    assert build_optimizer(layer, OptimConfig()).param_groups[0]["params"] == [layer.weight]
    layer.weight.requires_grad_(False)
    with pytest.raises(ConfigError, match="nothing to train"):
        build_optimizer(layer, OptimConfig())


def test_one_parameter_in_two_groups_is_an_error() -> None:
    layer = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="in two optimizer groups"):
        build_optimizer(layer, OptimConfig(), [{"params": [layer.weight]}] * 2)


def test_an_unknown_optimizer_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown optimizer 'adamm'.*'adam"):
        build_optimizer(nn.Linear(1, 1), OptimConfig(name="adamm"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"betas": [0.9]},
        {"accumulate_steps": 0},
        {"clip_grad_norm": 0.0},
        {"milestones": [3, 1]},
        {"milestones": [3], "schedule": "cosine"},
        {"warmup_steps": -1},
    ],
)
def test_values_that_cannot_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        OptimConfig(**wrong)  # type: ignore[arg-type]
