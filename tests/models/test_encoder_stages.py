"""Encoders cut into stages: run in a row the stages are the encoder, whose names do not change."""

from __future__ import annotations

import pytest
import torch

from ndavid.engine.rng import seeded
from ndavid.errors import ConfigError
from ndavid.models.encoders.build import build_encoder
from ndavid.models.encoders.stages import find_stages, run_stages


@pytest.mark.parametrize(
    ("name", "strides", "channels"),
    [
        ("torchvision:resnet18", (2, 4, 8, 16, 32), (64, 64, 128, 256, 512)),
        ("timm:resnet18", (2, 4, 8, 16, 32), (64, 64, 128, 256, 512)),
        ("cifar:resnet18", (1, 2, 4, 8), (64, 128, 256, 512)),
        ("cifar:resnet20", (1, 2, 4), (16, 32, 64)),
    ],
)
def test_stages_in_sequence_are_the_encoder(
    name: str, strides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    with seeded(0, "init"):
        encoder = build_encoder(name).eval()
    keys = list(encoder.state_dict())
    stages = find_stages(encoder)
    assert tuple(stage.stride for stage in stages) == strides
    assert tuple(stage.channels for stage in stages) == channels
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps = run_stages(encoder, stages, images)
        assert torch.equal(maps[-1], encoder(images))
        for stage, made in zip(stages, maps, strict=True):
            assert made.shape[1:] == (stage.channels, 96 // stage.stride, 64 // stage.stride)
        # From the middle on: what a C4 detector does with regions.
        assert torch.equal(run_stages(encoder, stages[-1:], maps[-2])[0], maps[-1])
    assert list(encoder.state_dict()) == keys
    assert {link for stage in stages for link in stage.links} <= dict(
        encoder.named_modules()
    ).keys()


def test_finding_stages_changes_nothing() -> None:
    with seeded(0, "init"):
        encoder = build_encoder("cifar:resnet20").train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    state = torch.random.get_rng_state()
    find_stages(encoder)
    assert encoder.training
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_video_network_has_no_stages_for_images() -> None:
    with pytest.raises(ConfigError, match="resnet2d3d10 is a video network"):
        find_stages(build_encoder("resnet2d3d10"))


def test_a_network_that_is_no_row_says_what_else_there_is() -> None:
    with pytest.raises(ConfigError, match=r"sequence of stages; take detector\.layout: single"):
        find_stages(build_encoder("timm:mobilenetv3_small_050"))
