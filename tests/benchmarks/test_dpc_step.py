"""The DPC step's benchmark: its errors are errors, and a wrong setting is never the best one."""

from __future__ import annotations

import json
from pathlib import Path

import dpc_step
import forked
import pytest
import torch
from dpc_step import (
    REFERENCE,
    Setting,
    Step,
    Workload,
    fastest_right,
    kernel_errors,
    ratios_of,
    relative_error,
)
from torch import nn

SMALL = Workload("resnet2d3d10", 2, 32)
FAST, FASTER = Setting(channels_last=True), Setting(bfloat16=True)


def test_garbage_has_an_infinite_error() -> None:
    truth = torch.ones(3)
    assert relative_error(torch.tensor([1.0, float("nan"), 1.0]), truth) == float("inf")
    assert relative_error(2 * truth, truth) == pytest.approx(1)


@pytest.mark.parametrize(("setting", "error"), [(REFERENCE, 1e-4), (Setting(True, True), 0.02)])
def test_right_kernels_have_small_errors(setting: Setting, error: float) -> None:
    errors = kernel_errors(Step(SMALL, setting, "", torch.device("cpu")))
    assert len(errors) == 12  # 9 convolutions and 3 shortcuts
    assert 0 < max(errors.values()) < error


def test_a_wrong_kernel_is_found() -> None:
    step = Step(SMALL, REFERENCE, "", torch.device("cpu"))
    conv = step.method.dpc.encoder.layer3[0].conv2
    assert isinstance(conv, nn.Conv3d)
    conv.weight.register_hook(lambda grad: grad * 1.5)
    errors = kernel_errors(step)
    assert errors.pop("layer3.0.conv2") == pytest.approx(0.5, abs=1e-3)
    assert max(errors.values()) < 1e-3


def found(kernel: float | None) -> dict:
    return {"kernel_worst": kernel, "whole_median": 0.3, "whole_worst": 0.4}


@pytest.mark.parametrize(("of_faster", "best"), [(0.003, FASTER), (0.3, FAST), (None, FAST)])
def test_the_best_setting_has_right_gradients(of_faster: float | None, best: Setting) -> None:
    times = {(REFERENCE, ""): [4.0, 4.0], (FAST, ""): [2.0, 3.0], (FASTER, ""): [1.0, 1.0]}
    errors = {REFERENCE: found(0.0), FAST: found(1e-6), FASTER: found(of_faster)}
    assert fastest_right(times, errors) == best
    rows = {row["name"]: row for row in ratios_of(times, errors)}
    row = rows["float32 step / fastest with right gradients"]
    assert row["note"] == str(best)
    assert row["ok"] is (best == FASTER)


def test_none_right_is_said() -> None:
    times = {(REFERENCE, ""): [4.0], (FASTER, ""): [1.0]}
    errors = {REFERENCE: found(0.0), FASTER: found(float("inf"))}
    row = ratios_of(times, errors)[-1]
    assert row["ratio"] is None and row["note"] == "none is right"


@pytest.mark.slow
def test_the_script_leaves_its_report(tmp_path: Path) -> None:
    output = tmp_path / "dpc_step.json"
    words = ["--output", str(output), "--rounds", "1", "--threads", "1"]
    words += ["--encoder", SMALL.encoder, "--size", str(SMALL.size)]
    script = Path(dpc_step.__file__)
    run = forked.call(script, *words, cwd=script.parent.parent, timeout=550)
    assert run.returncode == 0, run.stderr
    report = json.loads(output.read_text())
    names = [row["name"] for row in report["ratios"]]
    assert "NDA step / plain step, float32" in names
    settings = {row["setting"] for row in report["rows"]}
    assert settings == {str(setting) for setting in dpc_step.EAGER}
    assert all(row["ratio"] > 0 for row in report["ratios"])
