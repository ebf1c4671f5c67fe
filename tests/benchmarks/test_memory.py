"""Peak memory as the benchmark sees it, against what must be so."""

from __future__ import annotations

import mmap

import memory
import pytest
from memory import CHUNK_ROWS, Series, bytes_a_sample, exponent, measure, resident

MEGABYTE = 2**20


def rows_of(power: float) -> list[dict]:
    return [{"batch": batch, "bytes": 7 * batch**power} for batch in (2, 4, 16)]


@pytest.mark.parametrize("power", [1, 1.5, 2])
def test_the_exponent_of_a_power_is_the_power(power: float) -> None:
    assert exponent(rows_of(power)) == pytest.approx(power)


def test_bytes_a_sample_leave_out_what_every_batch_needs() -> None:
    rows = [{"batch": batch, "bytes": 100 + 7 * batch} for batch in (2, 4)]
    assert bytes_a_sample(rows) == 7


@pytest.mark.skipif(not memory.Path("/proc/self/clear_refs").exists(), reason="Linux only")
def test_a_block_shows_in_the_resident_memory() -> None:
    before = resident("VmRSS")
    # Of the kernel's own: a tensor's may be memory that malloc kept from earlier tests.
    with mmap.mmap(-1, 64 * MEGABYTE) as block:
        block.write(b"1" * len(block))
        assert resident("VmRSS") - before > 60 * MEGABYTE
    assert resident("VmRSS") - before < 4 * MEGABYTE
    assert resident("VmHWM") - before > 60 * MEGABYTE


@pytest.mark.skipif(not memory.Path("/proc/self/clear_refs").exists(), reason="Linux only")
@pytest.mark.slow
def test_chunks_take_less_than_the_square_of_scores() -> None:
    (whole,), (chunked,) = (
        measure(Series("scores", sparing), [48], "cpu") for sparing in (False, True)
    )
    rows = 48 * 48
    # The softmax keeps several squares; all that a chunk has is CHUNK_ROWS of their lines.
    saved = rows * (rows - CHUNK_ROWS) * 4
    assert whole["bytes"] - chunked["bytes"] > saved


@pytest.mark.slow
def test_a_series_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="no encoder called"):
        measure(Series("activations", False, "resnet2d3d19"), [2], "cpu")
