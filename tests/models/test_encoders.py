"""Encoders by name: shapes, learning, library keys, and errors that help."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from ndavid.errors import ConfigError
from ndavid.models.encoders import build_encoder, encoder_names
from ndavid.models.matching import load_matching
from ndavid.models.resnet2d3d import ResNet2d3d

# Name, clip (T, H, W), map (D, t, h, w).
SHAPES = [
    ("resnet2d3d10", (5, 64, 96), (256, 2, 2, 3)),
    ("resnet2d3d18", (5, 33, 64), (256, 2, 2, 2)),
    ("resnet2d3d34", (16, 32, 32), (256, 4, 1, 1)),
    ("resnet2d3d50", (5, 32, 32), (1024, 2, 1, 1)),
    ("torchvision:r3d_18", (8, 32, 48), (512, 1, 2, 3)),
    ("torchvision:mc3_18", (5, 32, 32), (512, 5, 2, 2)),
    ("torchvision:r2plus1d_18", (5, 32, 32), (512, 1, 2, 2)),
    ("torchvision:s3d", (16, 64, 64), (1024, 2, 2, 2)),
    ("torchvision:swin3d_t", (5, 64, 64), (768, 3, 2, 2)),
    ("pytorchvideo:slow_r50", (5, 32, 64), (2048, 5, 1, 2)),
    ("pytorchvideo:x3d_xs", (5, 64, 64), (192, 5, 2, 2)),
    ("pytorchvideo:r2plus1d_r50", (8, 32, 32), (2048, 2, 1, 1)),
    ("pytorchvideo:csn_r101", (8, 32, 32), (2048, 1, 1, 1)),
    ("pytorchvideo:c2d_r50", (8, 32, 32), (2048, 4, 1, 1)),
    ("timm:resnet18", (5, 64, 64), (512, 5, 2, 2)),
    ("timm:test_vit", (2, 160, 160), (64, 2, 10, 10)),
]


@pytest.mark.parametrize(("name", "clip", "feature_map"), SHAPES)
def test_maps_have_the_stated_shape(name: str, clip: tuple, feature_map: tuple) -> None:
    encoder = build_encoder(name).eval()
    assert encoder.name == name
    with torch.no_grad():
        out = encoder(torch.randn(2, 3, *clip))
    assert encoder.feature_dim == feature_map[0]
    assert out.shape == (2, *feature_map)
    assert out.isfinite().all()
    assert not torch.allclose(out[0], out[1])  # it sees its input


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("torchvision:mvit_v2_s", 16), ("pytorchvideo:mvit_base_16x4", 16)],
)
def test_transformers_give_maps_of_their_own_clip_size(name: str, size: int) -> None:
    encoder = build_encoder(name).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, size, 224, 224)).shape == (1, 768, 8, 7, 7)


@pytest.mark.parametrize("name", ["torchvision:mvit_v2_s", "pytorchvideo:mvit_base_16x4"])
def test_a_fixed_clip_size_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\(16, 224, 224\) only, got \(5, 64, 64\)") as caught:
        build_encoder(name)(torch.randn(1, 3, 5, 64, 64))
    assert isinstance(caught.value, ValueError)


def test_a_fixed_image_size_is_named() -> None:
    encoder = build_encoder("timm:vit_tiny_patch16_224")
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224 .*224") as caught:
        encoder(torch.randn(1, 3, 2, 64, 64))
    assert isinstance(caught.value, ValueError)


def test_timm_frames_are_encoded_each_by_itself_and_in_order() -> None:
    encoder = build_encoder("timm:test_resnet").eval()
    clips = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        maps = encoder(clips)
        for t in range(4):
            alone = encoder(clips[:, :, t : t + 1])[:, :, 0]
            torch.testing.assert_close(maps[:, :, t], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["torchvision:r3d_18", "torchvision:s3d", "torchvision:swin3d_t"])
def test_the_librarys_own_weights_fit_and_give_its_own_features(name: str) -> None:
    from torchvision import models

    library = models.get_model(name.split(":")[1]).eval()
    encoder = build_encoder(name).eval()
    report = load_matching(encoder, library.state_dict())
    assert report.fraction == 1.0
    pooled: list[torch.Tensor] = []
    library.avgpool.register_forward_pre_hook(lambda module, args: pooled.append(args[0]))
    clip = torch.randn(1, 3, 16, 64, 64)
    with torch.no_grad():
        # S3D's own head needs 224 pixels; its features are seen before that.
        with contextlib.suppress(RuntimeError):
            library(clip)
        torch.testing.assert_close(encoder(clip), pooled[0], rtol=1e-4, atol=1e-5)


def test_pytorchvideo_weights_fit_under_the_librarys_names() -> None:
    from pytorchvideo.models import hub

    library = hub.slow_r50(pretrained=False)
    report = load_matching(build_encoder("pytorchvideo:slow_r50"), library.state_dict())
    assert report.fraction == 1.0
    assert {key.split(".")[1] for key in report.unexpected} == {"5"}  # the head


def test_the_last_relu_is_missing_and_only_there() -> None:
    torch.manual_seed(0)
    layers: list[torch.Tensor] = []
    for depth in (10, 50):
        encoder = ResNet2d3d(depth)
        for layer in (encoder.layer1, encoder.layer2, encoder.layer3):
            layer.register_forward_hook(lambda module, args, out: layers.append(out))
        assert (encoder(torch.randn(2, 3, 5, 32, 32)) < 0).any()
    assert len(layers) == 6
    assert all((layer >= 0).all() for layer in layers)


def test_time_is_only_mixed_by_the_last_two_layers() -> None:
    encoder = ResNet2d3d(10).eval()
    clip = torch.randn(1, 3, 4, 32, 32)
    changed = clip.clone()
    changed[:, :, 3] += 1
    early = torch.nn.Sequential(
        encoder.conv1, encoder.bn1, encoder.relu, encoder.maxpool, encoder.layer1, encoder.layer2
    )
    with torch.no_grad():
        a, b = early(clip), early(changed)
        assert torch.equal(a[:, :, :3], b[:, :, :3])
        assert not torch.equal(encoder(clip)[:, :, 0], encoder(changed)[:, :, 0])


@pytest.mark.parametrize("name", ["resnet2d3d18", "pytorchvideo:x3d_xs"])
def test_one_step_of_training_lowers_the_loss(name: str) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    clips = torch.randn(4, 3, 5, 32, 32)
    readout = torch.nn.Linear(encoder.feature_dim, 2)
    labels = torch.tensor([0, 1, 0, 1])
    optimizer = torch.optim.SGD([*encoder.parameters(), *readout.parameters()], lr=0.01)

    def loss() -> torch.Tensor:
        return F.cross_entropy(readout(encoder(clips).mean((2, 3, 4))), labels)

    before = loss()
    before.backward()
    assert all(p.grad is not None for p in encoder.parameters())
    optimizer.step()
    assert loss() < before


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("r3d_18", "torchvision:r3d_18"),
        ("torchvison:r3d_18", "torchvision:r3d_18"),
        ("resnet2d3d19", "resnet2d3d18"),
        ("timm:resnt18", "timm:resnet18"),
        ("pytorchvideo:slow_r5", "pytorchvideo:slow_r50"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"{name!r}.*{nearest}"):
        build_encoder(name)


def test_weights_that_do_not_exist_are_refused() -> None:
    with pytest.raises(ConfigError, match="no weights of its own"):
        build_encoder("resnet2d3d18", pretrained=True)


def test_every_listed_name_is_unique_and_names_its_library() -> None:
    names = encoder_names()
    assert len(names) == len(set(names))
    assert {"resnet2d3d10", "torchvision:mvit_v2_s", "pytorchvideo:x3d_s"} <= set(names)
