"""Exponents, and the arithmetic of many GPUs against what the methods really exchange."""

from __future__ import annotations

from typing import Any

import growth
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import ndavid.methods.dpc
import ndavid.models.moco


@given(st.floats(-2, 3), st.floats(1e-3, 1e3))
def test_a_power_law_has_its_exponent(power: float, factor: float) -> None:
    sizes = [1.0, 2.0, 5.0, 11.0]
    assert growth.exponent(sizes, [factor * s**power for s in sizes]) == pytest.approx(power)


def job(**changes: Any) -> growth.Job:
    plain = growth.Job("job", 4, 1e9, 1000, 80, lambda gpus: 10 * gpus, 10, False, 0)
    return plain._replace(**changes)


LINKS = {"within": 100.0, "between": 10.0, "tflops": 2.0}


def test_a_ring_of_eight() -> None:
    found = growth.exchange_of(job(), 8, **LINKS)
    assert found.features == 7 * 80  # the others' rows
    assert found.gradients == pytest.approx(2 * 7 / 8 * 4000)
    assert found.scores == 4 * 10 * 80
    assert found.seconds == pytest.approx((560 + 7000) / 100e9)
    assert found.compute_seconds == pytest.approx(4 * 1e9 / 2e12)


def test_gradient_of_gathered_rows_and_pixels_come_on_top() -> None:
    found = growth.exchange_of(job(gathers_with_gradient=True, shuffled_bytes=50), 8, **LINKS)
    assert found.features == 3 * 7 * 80
    assert found.pixels == 7 * 50


def test_nodes_are_linked_more_slowly() -> None:
    near, far = (growth.exchange_of(job(), gpus, **LINKS) for gpus in (8, 64))
    sent = [f.features + f.pixels + f.gradients for f in (near, far)]
    assert far.seconds / sent[1] == pytest.approx(10 * near.seconds / sent[0])


def test_one_gpu_sends_nothing() -> None:
    assert growth.exchange_of(job(), 1, **LINKS).seconds == 0


@pytest.mark.slow
def test_bytes_are_those_that_the_methods_gather(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[str, list[Tensor]] = {"dpc": [], "moco": []}

    def recorder(name: str) -> Any:
        return lambda x: sent[name].append(x) or x.detach()

    monkeypatch.setattr(ndavid.methods.dpc, "gather_with_grad", recorder("dpc"))
    monkeypatch.setattr(ndavid.models.moco, "gather_without_grad", recorder("moco"))
    monkeypatch.setattr(ndavid.models.moco.MoCo, "_shuffles", True)
    dpc, moco = growth.jobs(2, "resnet2d3d10")
    assert [x.nbytes for x in sent["dpc"]] == [dpc.row_bytes]
    assert len(sent["dpc"][0]) == dpc.rows == dpc.columns(1)
    # Pixels, keys to undo the shuffle, keys for the queue.
    pixels, *keys = (x.nbytes for x in sent["moco"])
    assert pixels == moco.shuffled_bytes
    assert sum(keys) == moco.row_bytes
    assert dpc.flops > moco.flops / 100 > 0


def test_steps_of_every_axis_run() -> None:
    torch.manual_seed(0)
    growth.loss_of_ranks(2, rows=6, dim=4)()
    growth.moco(64, batch=2)()
    growth.dpc("resnet2d3d10", batch=2, block_len=2, size=32)()
    row = growth.measure(growth.Axis("x", {1: lambda: None, 2: lambda: None}), 2)
    assert row["sizes"] == [1, 2] and len(row["seconds"]) == 2
