"""The loop on a GPU: precisions, the NaN watch without a wait, resume."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch

from ndavid.engine import checkpoint
from ndavid.errors import TrainingError

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_stopped_run_goes_on_and_agrees_with_the_cpu(
    toy: ModuleType, toy_config: Callable[..., Any], precision: str
) -> None:
    changes = {"device": "auto", "precision": precision, "ema_decay": 0.9, "channels_last": True}
    toy.train(toy_config(run=changes | {"max_steps": 7}, plain=True))
    result, method = toy.train(toy_config(run=changes, plain=True))
    assert method.head.weight.device.type == "cuda" and result.steps == 30
    config = toy_config(plain=True)
    config.run.output += "_cpu"
    _, on_cpu = toy.train(config)
    torch.testing.assert_close(method.head.weight.cpu(), on_cpu.head.weight, rtol=0.1, atol=0.05)


@pytest.mark.parametrize("log_every", [1, 100])
def test_nan_is_found_at_a_record_or_before_a_save(
    toy: ModuleType, toy_config: Callable[..., Any], log_every: int
) -> None:
    config = toy_config(nan_step=7, run={"device": "auto", "log_every": log_every})
    with pytest.raises(TrainingError, match=r"step 8: the loss is nan .*step_6"):
        toy.train(config)
    loaded = checkpoint.load(config.run.output)
    assert loaded.step == 6 and all(torch.isfinite(v).all() for v in loaded.model.values())


def test_with_deterministic_algorithms_runs_agree_to_the_bit(
    toy: ModuleType, toy_config: Callable[..., Any]
) -> None:
    heads = []
    for name in "ab":
        config = toy_config(run={"device": "auto", "deterministic": True})
        config.run.output += name
        heads.append(toy.train(config)[1].head.weight)
    assert torch.equal(*heads)
