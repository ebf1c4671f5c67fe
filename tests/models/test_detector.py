"""Detectors around an encoder: weights stay the encoder's own, layouts do what they say."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from ndavid.engine.rng import seeded
from ndavid.errors import ConfigError
from ndavid.models.batchnorm import batch_norms, drop_running_stats
from ndavid.models.detector import BatchOnly, DetectorConfig, build_detector
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.build import build_encoder

LAYOUTS = ("c4", "fpn", "single")


def small(layout: str, **changes: Any) -> DetectorConfig:
    values = {
        "layout": layout,
        "levels": 2,
        "anchor_sizes": [8, 16, 32],
        "width": 16,
        "head_width": 32,
        "proposals": 40,
        "regions": 8,
    }
    return DetectorConfig(**(values | changes))


def make(config: DetectorConfig, name: str = "cifar:resnet20") -> tuple[Encoder, FasterRCNN]:
    with seeded(0, "init"):
        encoder = build_encoder(name)
        return encoder, build_detector(encoder, config, num_classes=3)


def images(seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(3, 48, 64, generator=draw), torch.randn(3, 64, 40, generator=draw)]


def targets() -> list[dict[str, Tensor]]:
    box, label = torch.tensor([[4.0, 6, 30, 34]]), torch.tensor([2])
    return [{"boxes": box, "labels": label}, {"boxes": box[:0], "labels": label[:0]}]


def losses(detector: FasterRCNN) -> Tensor:
    with seeded(1, "losses"):
        return torch.stack(list(detector(images(), targets()).values())).sum()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("head_norm", [False, True])
def test_every_layout_trains_all_of_the_encoder(layout: str, head_norm: bool) -> None:
    encoder, detector = make(small(layout, head_norm=head_norm))
    losses(detector.train()).backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(bool(p.grad.any()) for p in encoder.parameters() if p.grad is not None)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_encoders_weights_are_there_once_under_their_own_names(layout: str) -> None:
    encoder, detector = make(small(layout))
    stored = detector.state_dict()
    prefix = "backbone.encoder."
    inside = {key.removeprefix(prefix): v for key, v in stored.items() if key.startswith(prefix)}
    assert inside.keys() == encoder.state_dict().keys()
    addresses = {value.data_ptr() for value in encoder.state_dict().values()}
    outside = [v for key, v in stored.items() if not key.startswith(prefix)]
    assert not addresses & {value.data_ptr() for value in outside}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_copy_is_independent(layout: str) -> None:
    _, detector = make(small(layout))
    twin = copy.deepcopy(detector).eval()
    before = twin(images())
    with torch.no_grad():
        for parameter in detector.parameters():
            parameter.zero_()
    after = twin(images())
    assert len(before[0]["scores"]) > 0
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one["scores"], other["scores"])


def test_c4s_head_is_the_encoders_last_stage() -> None:
    encoder, detector = make(small("c4", head_norm=False))
    detector.eval()
    picture = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        (middle,) = detector.backbone(picture).values()
        assert middle.shape == (1, 32, 32, 32)
        head = detector.roi_heads.box_head(middle)
        assert torch.allclose(head, encoder(picture).mean((2, 3)), atol=1e-6)


def test_the_pyramid_has_a_map_a_level_and_one_on_top() -> None:
    _, detector = make(small("fpn"))
    maps = detector.eval().backbone(torch.zeros(1, 3, 64, 64))
    assert [tuple(value.shape[1:]) for value in maps.values()] == [
        (16, 32, 32),
        (16, 16, 16),
        (16, 8, 8),
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_frozen_norm_neither_moves_nor_learns(layout: str) -> None:
    encoder, detector = make(small(layout, norm="frozen"))
    norms = batch_norms(encoder)
    before = [(layer.running_mean.clone(), layer.weight.clone()) for layer in norms]
    detector.train()
    losses(detector).backward()
    assert norms and not any(layer.training for layer in norms)
    assert all(layer.weight.grad is None and layer.bias.grad is None for layer in norms)
    for layer, (mean, _) in zip(norms, before, strict=True):
        assert torch.equal(layer.running_mean, mean)
    convolutions = [m for m in encoder.modules() if isinstance(m, nn.Conv2d)]
    assert all(convolution.weight.grad.any() for convolution in convolutions)


@pytest.mark.parametrize("norm", ["trained", "sync"])
def test_trained_norm_moves(norm: str) -> None:
    encoder, detector = make(small("c4", norm=norm))
    layers = batch_norms(encoder)
    assert all(isinstance(layer, nn.SyncBatchNorm) == (norm == "sync") for layer in layers)
    before = layers[0].running_mean.clone()
    losses(detector.train()).backward()
    assert layers[0].weight.grad is not None
    assert not torch.equal(layers[0].running_mean, before)


@pytest.mark.parametrize(("layout", "count"), [("c4", 1), ("fpn", 8), ("single", 4)])
def test_head_norm_adds_batch_norm_outside_the_encoder_only(layout: str, count: int) -> None:
    encoder, detector = make(small(layout, head_norm=True))
    # fpn: two on the sides, two on the outputs, four in the box head.
    assert len(batch_norms(detector)) - len(batch_norms(encoder)) == count
    bare_encoder, bare = make(small(layout, head_norm=False))
    assert len(batch_norms(bare)) == len(batch_norms(bare_encoder))


def test_batches_are_padded_and_nothing_else() -> None:
    batch, kept = BatchOnly()(images(), targets())
    assert batch.tensors.shape == (2, 3, 64, 64)
    for whole, image in zip(batch.tensors, images(), strict=True):
        assert torch.equal(whole[:, : image.shape[1], : image.shape[2]], image)
        assert whole.count_nonzero() == image.count_nonzero()
    assert torch.equal(kept[0]["boxes"], targets()[0]["boxes"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_regions_are_taken_from_the_same_place_whatever_came_first(layout: str) -> None:
    _, fresh = make(small(layout))
    _, used = make(small(layout))
    with torch.no_grad():
        # Padded to twice its size, which torchvision would take for half the stride.
        used.eval()([torch.zeros(3, 33, 33)])
        fresh.eval()
        for one, other in zip(used(images()), fresh(images()), strict=True):
            assert len(one["scores"]) > 0
            assert torch.equal(one["boxes"], other["boxes"])
            assert torch.equal(one["scores"], other["scores"])
    strides = {"c4": [2], "fpn": [2, 4], "single": [4]}
    assert used.roi_heads.box_roi_pool.scales == [1 / stride for stride in strides[layout]]


def test_a_region_holds_what_its_box_holds() -> None:
    """With the identity for an encoder's map, a pooled region is the box's part of the picture."""
    _, detector = make(small("single"))
    line = torch.arange(16).float()
    there = torch.stack(torch.meshgrid(line, line, indexing="ij"))[None]
    box = torch.tensor([[8.0, 16, 36, 44]])
    pooled = detector.roi_heads.box_roi_pool({"0": there}, [box], [(33, 33)])
    # Cells of 4 pixels: rows 4 to 11 and columns 2 to 9 of the map.
    assert pooled[0, 0].mean() == pytest.approx(7.5, abs=0.05)
    assert pooled[0, 1].mean() == pytest.approx(5.5, abs=0.05)


def test_small_anchors_find_their_level() -> None:
    _, detector = make(small("fpn", anchor_sizes=[8, 16, 32]))
    cells = detector.rpn.anchor_generator.cell_anchors
    sides = [float((c[:, 2] - c[:, 0]).mul(c[:, 3] - c[:, 1]).sqrt().mean()) for c in cells]
    assert sides == pytest.approx([8, 16, 32], rel=0.1)


@pytest.mark.parametrize(
    ("config", "name", "reason"),
    [
        (small("single"), "resnet2d3d10", "resnet2d3d10 is a video network"),
        (small("c4"), "resnet2d3d10", "resnet2d3d10 is a video network"),
        (
            small("fpn", levels=4, anchor_sizes=[8] * 5),
            "cifar:resnet20",
            r"has 3 stages; detector\.levels 4 is more",
        ),
    ],
)
def test_an_encoder_that_does_not_fit(config: DetectorConfig, name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(config, name)


def test_frozen_norm_needs_statistics() -> None:
    encoder = drop_running_stats(build_encoder("cifar:resnet20"))
    with pytest.raises(ConfigError, match=r"no running statistics to freeze"):
        build_detector(encoder, small("c4", norm="frozen"), 3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"layout": "fpn", "levels": 4, "anchor_sizes": [32, 64]}, "names 2 sizes; 4 levels"),
        ({"anchor_sizes": []}, "must be pixels"),
        ({"regions": 0}, r"detector\.regions must be at least 1"),
        ({"proposals": 1}, r"detector\.proposals must be at least 2"),
    ],
)
def test_a_config_that_cannot_work(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        DetectorConfig(**changes)
