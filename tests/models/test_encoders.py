"""Encoders by name: shapes, learning, library keys, and errors that help."""

from __future__ import annotations

import contextlib

import pytest
import torch
import torch.nn.functional as F

from ndavid.errors import ConfigError
from ndavid.models.encoders.build import build_encoder, encoder_names
from ndavid.models.encoders.cifar import PaddedShortcut, cifar_resnet
from ndavid.models.encoders.resnet2d3d import FrameMaxPool, ResNet2d3d
from ndavid.models.weights.matching import load_matching


def large(*case: object) -> object:
    """A case that is kept for the long tests: a smaller one of its family is always run."""
    return pytest.param(*case, marks=pytest.mark.slow)


# Name, clip (T, H, W), map (D, t, h, w).
SHAPES = [
    ("resnet2d3d10", (5, 64, 96), (256, 2, 2, 3)),
    ("resnet2d3d10_half", (5, 64, 96), (128, 2, 2, 3)),
    ("resnet2d3d50_half", (5, 32, 32), (512, 2, 1, 1)),
    ("resnet2d3d18", (5, 33, 64), (256, 2, 2, 2)),
    large("resnet2d3d34", (16, 32, 32), (256, 4, 1, 1)),
    large("resnet2d3d50", (5, 32, 32), (1024, 2, 1, 1)),
    ("torchvision:r3d_18", (8, 32, 48), (512, 1, 2, 3)),
    large("torchvision:mc3_18", (5, 32, 32), (512, 5, 2, 2)),
    large("torchvision:r2plus1d_18", (5, 32, 32), (512, 1, 2, 2)),
    ("torchvision:s3d", (16, 64, 64), (1024, 2, 2, 2)),
    ("torchvision:swin3d_t", (5, 64, 64), (768, 3, 2, 2)),
    ("pytorchvideo:slow_r50", (5, 32, 64), (2048, 5, 1, 2)),
    ("pytorchvideo:x3d_xs", (5, 64, 64), (192, 5, 2, 2)),
    large("pytorchvideo:r2plus1d_r50", (8, 32, 32), (2048, 2, 1, 1)),
    large("pytorchvideo:csn_r101", (8, 32, 32), (2048, 1, 1, 1)),
    large("pytorchvideo:c2d_r50", (8, 32, 32), (2048, 4, 1, 1)),
    ("timm:resnet18", (5, 64, 64), (512, 5, 2, 2)),
    ("timm:test_vit", (2, 160, 160), (64, 2, 10, 10)),
    ("torchvision:resnet18", (3, 64, 96), (512, 3, 2, 3)),
    ("cifar:resnet20", (3, 32, 64), (64, 3, 8, 16)),
]

# Name, image (H, W), map (D, h, w).
IMAGE_SHAPES = [
    ("cifar:resnet18", (32, 48), (512, 4, 6)),
    large("cifar:resnet34", (16, 16), (512, 2, 2)),
    large("cifar:resnet50", (16, 16), (2048, 2, 2)),
    ("cifar:resnet20", (32, 32), (64, 8, 8)),
    ("cifar:resnet32", (32, 48), (64, 8, 12)),
    large("cifar:resnet56", (32, 32), (64, 8, 8)),
    ("torchvision:resnet18", (32, 64), (512, 1, 2)),
    large("torchvision:resnet50", (64, 64), (2048, 2, 2)),
    ("torchvision:convnext_tiny", (32, 64), (768, 1, 2)),
    ("torchvision:densenet121", (64, 64), (1024, 2, 2)),
    ("torchvision:mobilenet_v3_small", (64, 64), (576, 2, 2)),
    ("torchvision:regnet_y_400mf", (64, 64), (440, 2, 2)),
    ("torchvision:shufflenet_v2_x0_5", (64, 64), (1024, 2, 2)),
    ("torchvision:mnasnet0_5", (64, 64), (1280, 2, 2)),
    ("torchvision:squeezenet1_1", (64, 64), (512, 3, 3)),
    large("torchvision:vgg11", (64, 64), (512, 2, 2)),
    ("torchvision:alexnet", (64, 64), (256, 1, 1)),
    ("torchvision:swin_t", (64, 64), (768, 2, 2)),
    ("timm:resnet18", (64, 96), (512, 2, 3)),
    ("timm:convnext_atto", (64, 96), (320, 2, 3)),
    ("timm:test_vit", (160, 160), (64, 10, 10)),
    pytest.param("timm:vit_tiny_patch16_224", (224, 224), (192, 14, 14), marks=pytest.mark.slow),
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


@pytest.mark.parametrize(("name", "image", "feature_map"), IMAGE_SHAPES)
def test_maps_of_images_have_the_stated_shape_and_every_parameter_learns(
    name: str, image: tuple, feature_map: tuple
) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    assert encoder.takes_images
    assert encoder.feature_dim == feature_map[0]
    images = torch.randn(2, 3, *image)
    # Batch norm over a single pixel an image has nothing to normalise: running statistics do.
    out = encoder.eval()(images)
    assert out.shape == (2, *feature_map)
    assert not torch.equal(out[0], out[1])
    torch.testing.assert_close(encoder.pooled(images), out.mean((2, 3)))
    out.square().sum().backward()
    gradients = [p.grad for p in encoder.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)


# What the issue asks for, at the smallest clip that each takes.
VIDEO_NETS = [
    ("torchvision:r3d_18", (4, 32, 32)),
    large("torchvision:mc3_18", (4, 32, 32)),
    large("torchvision:r2plus1d_18", (4, 32, 32)),
    ("torchvision:s3d", (8, 32, 32)),
    ("pytorchvideo:slow_r50", (2, 32, 32)),
    ("pytorchvideo:x3d_s", (4, 32, 32)),
    large("pytorchvideo:r2plus1d_r50", (4, 32, 32)),
    large("pytorchvideo:csn_r101", (4, 32, 32)),
    large("resnet2d3d34", (4, 32, 32)),
    large("resnet2d3d50", (4, 32, 32)),
    ("timm:resnet18", (2, 32, 32)),
    ("timm:convnext_atto", (2, 32, 32)),
    ("cifar:resnet18", (2, 16, 16)),
    pytest.param("torchvision:mvit_v2_s", (16, 224, 224), marks=pytest.mark.slow),
    pytest.param("pytorchvideo:mvit_base_16x4", (16, 224, 224), marks=pytest.mark.slow),
    pytest.param("timm:vit_tiny_patch16_224", (2, 224, 224), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "clip"), VIDEO_NETS)
def test_every_parameter_learns_from_clips(name: str, clip: tuple) -> None:
    torch.manual_seed(0)
    encoder = build_encoder(name)
    for parameter in encoder.parameters():
        if not parameter.any():  # libraries start residual branches at zero: no gradient passes
            torch.nn.init.normal_(parameter, std=0.1)
    if "mvit" in name:
        encoder.eval()  # stochastic depth would leave whole blocks out
    pooled = encoder.pooled(torch.randn(2, 3, *clip))
    assert pooled.shape == (2, encoder.feature_dim)
    (pooled * torch.randn(2, encoder.feature_dim)).sum().backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    assert [name for name, g in gradients.items() if not g.any()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [("torchvision:mvit_v2_s", 16), ("pytorchvideo:mvit_base_16x4", 16)],
)
def test_transformers_give_maps_of_their_own_clip_size(name: str, size: int) -> None:
    encoder = build_encoder(name).eval()
    with torch.no_grad():
        assert encoder(torch.randn(1, 3, size, 224, 224)).shape == (1, 768, 8, 7, 7)


@pytest.mark.parametrize(
    "name",
    ["resnet2d3d10", "torchvision:r3d_18", "torchvision:mvit_v2_s", "pytorchvideo:x3d_xs"],
)
def test_a_video_network_refuses_images(name: str) -> None:
    encoder = build_encoder(name)
    assert not encoder.takes_images
    with pytest.raises(ConfigError, match=r"video network.*\(2, 3, 32, 32\).*cifar:resnet18"):
        encoder(torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"takes clips \(B, C, T, H, W\), got \(3, 32, 32\)"):
        encoder(torch.randn(3, 32, 32))


def test_an_image_network_refuses_what_is_neither() -> None:
    with pytest.raises(ConfigError, match=r"or images \(B, C, H, W\), got \(3, 32, 32\)"):
        build_encoder("cifar:resnet20")(torch.randn(3, 32, 32))


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


@pytest.mark.parametrize("name", ["timm:test_resnet", "cifar:resnet20", "torchvision:resnet18"])
def test_frames_are_encoded_each_by_itself_and_in_order(name: str) -> None:
    encoder = build_encoder(name).eval()
    clips = torch.randn(2, 3, 4, 64, 64)
    with torch.no_grad():
        maps = encoder(clips)
        for t in range(4):
            alone = encoder(clips[:, :, t])
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


@pytest.mark.parametrize("name", ["resnet50", "densenet121", "swin_t", "mobilenet_v3_small"])
def test_torchvisions_image_weights_fit_and_give_its_own_features(name: str) -> None:
    from torchvision import models

    torch.manual_seed(0)
    library = models.get_model(name).eval()
    encoder = build_encoder(f"torchvision:{name}").eval()
    assert load_matching(encoder, library.state_dict()).fraction == 1.0
    vectors: list[torch.Tensor] = []
    last = [m for m in library.modules() if isinstance(m, torch.nn.Linear)]
    # What the first layer of the classifier sees is the pooled map.
    first = library.classifier[0] if name.startswith("mobilenet") else last[-1]
    first.register_forward_pre_hook(lambda module, args: vectors.append(args[0]))
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        library(images)
        torch.testing.assert_close(encoder.pooled(images), vectors[0], rtol=1e-4, atol=1e-5)


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


@pytest.mark.parametrize(
    ("depth", "millions"), [(20, 0.27), (32, 0.46), (56, 0.85)], ids=["20", "32", "56"]
)
def test_narrow_cifar_nets_are_as_large_as_the_papers(depth: int, millions: float) -> None:
    # He et al., table 6; their count has the classifier in it.
    encoder = build_encoder(f"cifar:resnet{depth}")
    classifier = 64 * 10 + 10
    parameters = sum(p.numel() for p in encoder.parameters()) + classifier
    assert round(parameters / 1e6, 2) == millions
    convolutions = [m for m in encoder.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == depth - 1


def test_a_padded_shortcut_keeps_values_and_adds_zeros() -> None:
    x = torch.randn(2, 4, 6, 6)
    out = PaddedShortcut(3)(x)
    assert out.shape == (2, 7, 3, 3)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2])
    assert not out[:, 4:].any()


def test_wide_cifar_nets_are_torchvisions_but_for_the_stem() -> None:
    from torchvision import models

    encoder = build_encoder("cifar:resnet18")
    stem = encoder.get_submodule("conv1")
    assert isinstance(stem, torch.nn.Conv2d)
    assert (stem.kernel_size, stem.stride, stem.padding) == ((3, 3), (1, 1), (1, 1))
    theirs = {k: v for k, v in models.resnet18().state_dict().items() if not k.startswith("fc.")}
    ours = encoder.state_dict()
    assert ours.keys() == theirs.keys()
    assert [k for k in ours if ours[k].shape != theirs[k].shape] == ["conv1.weight"]


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
        ("cifar:resnet19", "cifar:resnet18"),
        ("torchvision:resnet5", "torchvision:resnet50"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"{name!r}.*{nearest}"):
        build_encoder(name)


def test_a_depth_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="depth must be one of"):
        cifar_resnet(19)


@pytest.mark.parametrize("name", ["resnet2d3d18", "cifar:resnet18"])
def test_weights_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no weights of its own"):
        build_encoder(name, pretrained=True)


def test_every_listed_name_is_unique_and_names_its_library() -> None:
    names = encoder_names()
    assert len(names) == len(set(names))
    assert {"resnet2d3d10", "torchvision:mvit_v2_s", "pytorchvideo:x3d_s"} <= set(names)
    assert {"torchvision:resnet50", "timm:resnet18", "cifar:resnet20"} <= set(names)
    # Networks without a map of their own before the head are not offered.
    assert not {"torchvision:vit_b_16", "torchvision:inception_v3"} & set(names)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last_3d])
def test_pooling_frame_by_frame_is_the_pooling_of_a_flat_window(
    memory_format: torch.memory_format,
) -> None:
    clips = torch.randn(2, 3, 4, 7, 10, generator=torch.Generator().manual_seed(0))
    ours = clips.clone(memory_format=memory_format).requires_grad_()
    theirs = clips.clone().requires_grad_()
    pooled = FrameMaxPool()(ours)
    expected = F.max_pool3d(theirs, (1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
    assert torch.equal(pooled, expected)
    weights = torch.randn_like(expected)
    (pooled * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)  # overlapping windows add up in any order
