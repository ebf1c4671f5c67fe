"""Every GAN by one real step: shapes, gradients, precisions, layouts, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ndavid.errors import ConfigError
from ndavid.models.gan.attention import SelfAttention
from ndavid.models.gan.conditional_batchnorm import ClassBatchNorm
from ndavid.models.gan.model import Gan, GanConfig
from ndavid.models.gan.spectral_norm import (
    frozen_power_iteration,
    shared_spectral_norm,
    spectral_norms,
)

CONFIGS: list[dict[str, Any]] = [
    {"architecture": "sngan", "image_size": 32},
    {"architecture": "sngan", "image_size": 32, "num_classes": 3},
    {"architecture": "sngan", "image_size": 48, "spectral_norm_generator": True},
    {"image_size": 32, "init": "orthogonal"},
    {"image_size": 32, "num_classes": 3, "spectral_norm_generator": False, "init": "xavier"},
    {"image_size": 32, "num_classes": 3, "attention": 16},
    {"image_size": 48, "num_classes": 3},
    {"image_size": 64, "hierarchical": True, "attention": 32},
    {"image_size": 64, "num_classes": 3, "shared_embedding_dim": 6},
    {
        "image_size": 128,
        "num_classes": 3,
        "shared_embedding_dim": 6,
        "hierarchical": True,
        "attention": 32,
        "generator_channels": 4,
        "discriminator_channels": 4,
    },
    {"image_size": 32, "num_classes": 1, "init": "original"},
]


def describe(settings: dict[str, Any]) -> str:
    return "-".join(str(value) for value in settings.values())


def small(**settings: Any) -> Gan:
    torch.manual_seed(0)
    size = {"generator_channels": 8, "discriminator_channels": 8, "latent_dim": 24}
    return Gan(GanConfig(**size | settings))


def inputs(gan: Gan, batch: int = 4) -> tuple[Tensor, Tensor, Tensor | None]:
    """Latents, images and labels."""
    g = torch.Generator().manual_seed(1)
    size, classes = gan.config.image_size, gan.config.num_classes
    latents = torch.randn(batch, gan.config.latent_dim, generator=g)
    images = torch.rand(batch, 3, size, size, generator=g) * 2 - 1
    return latents, images, torch.arange(batch) % classes if classes else None


@pytest.mark.parametrize("settings", CONFIGS, ids=describe)
def test_one_step_of_each_network_moves_all_of_it(settings: dict[str, Any]) -> None:
    gan = small(**settings)
    latents, real, labels = inputs(gan)
    for layer in gan.modules():
        if isinstance(layer, SelfAttention):
            nn.init.ones_(layer.gain)  # at its start nothing of the layer is seen
    fake = gan.generator(latents, labels)
    assert fake.shape == real.shape and fake.dtype == torch.float32
    assert fake.abs().max() <= 1 and fake.std() > 0.05
    features = gan.discriminator.features(real)
    assert features.shape == (4, gan.discriminator.feature_dim)
    both = None if labels is None else torch.cat([labels, labels])
    logits = gan.discriminator(torch.cat([real, fake.detach()]), both)
    assert logits.shape == (8,) and logits.dtype == torch.float32
    step(gan.discriminator, F.softplus(-logits[:4]).mean() + F.softplus(logits[4:]).mean())
    step(gan.generator, -gan.discriminator(gan.generator(latents, labels), labels).mean())


def step(network: nn.Module, loss: Tensor) -> None:
    before = copy.deepcopy(list(network.parameters()))
    network.zero_grad()
    loss.backward()
    torch.optim.Adam(network.parameters(), lr=1e-3, betas=(0.0, 0.999)).step()
    for (name, now), then in zip(network.named_parameters(), before, strict=True):
        if not name.endswith(("conv1.bias", "conv2.bias", "conv_sc.bias", "linear.bias")):
            # A bias in front of a batch norm has no gradient but that of rounding.
            assert not torch.equal(now, then), name
        assert now.isfinite().all(), name


@pytest.mark.parametrize("settings", CONFIGS[1:7], ids=describe)
@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_gradients_follow_those_of_float32(
    settings: dict[str, Any], channels_last: bool
) -> None:
    gan = small(**settings)
    if channels_last:
        gan = gan.to(memory_format=torch.channels_last)
    latents, real, labels = inputs(gan, 8)

    def gradients(enabled: bool) -> tuple[list[Tensor], dict[str, Tensor]]:
        net = copy.deepcopy(gan)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            fake = net.generator(latents, labels)
            logits = net.discriminator(real, labels)
            judged = net.discriminator(fake, labels)
        assert fake.dtype == logits.dtype == torch.float32
        (logits.tanh().sum() + judged.tanh().sum()).backward()
        grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
        return [fake, logits], grads

    (fake, logits), found = gradients(True)
    (exact_fake, exact_logits), wanted = gradients(False)
    torch.testing.assert_close(fake, exact_fake, atol=0.1, rtol=0)
    torch.testing.assert_close(logits, exact_logits, atol=0.1, rtol=0.1)
    largest = {p: max(float(g.norm()) for n, g in wanted.items() if n.startswith(p)) for p in "gd"}
    for name, exact in wanted.items():
        if exact.norm() > 1e-3 * largest[name[0]]:  # not a bias that batch norm takes away
            likeness = F.cosine_similarity(found[name].flatten(), exact.flatten(), dim=0)
            assert likeness > 0.95, (name, float(likeness))


@pytest.mark.parametrize("settings", [CONFIGS[1], CONFIGS[5]], ids=describe)
def test_channels_last_is_the_same_function(settings: dict[str, Any]) -> None:
    gan = small(**settings).double()
    twin = copy.deepcopy(gan).to(memory_format=torch.channels_last)
    latents, images, labels = inputs(gan)
    fake = gan.generator(latents.double(), labels)
    torch.testing.assert_close(twin.generator(latents.double(), labels), fake)
    logits = gan.discriminator(images.double(), labels)
    torch.testing.assert_close(twin.discriminator(images.double(), labels), logits)


def test_a_penalty_on_the_gradient_can_be_learnt_from() -> None:
    """The second derivative goes through the fused convolutions, attention and spectral norm."""
    critic = small(attention=16).discriminator
    images = inputs(small())[1].requires_grad_()
    slope = torch.autograd.grad(critic(images).sum(), images, create_graph=True)[0]
    (slope.flatten(1).norm(dim=1) - 1).square().mean().backward()
    grad = critic.blocks[0].conv1.parametrizations.weight.original.grad
    assert grad.isfinite().all() and grad.norm() > 0


def test_the_default_is_the_biggan_of_the_papers_runs() -> None:
    """Numbers of weights of the paper's layers, written out."""
    gan = Gan(GanConfig(num_classes=10))
    conv3, conv1 = 256 * 256 * 9 + 256, 256 * 256 + 256
    norm, head = 2 * 10 * 256, 2 * 256
    block = 2 * conv3 + conv1 + 2 * norm
    generator = (128 * 4096 + 4096) + 3 * block + head + (3 * 256 * 9 + 3)
    first = (3 * 256 * 9 + 256) + conv3 + (3 * 256 + 256)
    discriminator = first + (2 * conv3 + conv1) + 2 * 2 * conv3 + 257 + 10 * 256
    assert sum(p.numel() for p in gan.generator.parameters()) == generator
    assert sum(p.numel() for p in gan.discriminator.parameters()) == discriminator


def test_spectral_norm_is_where_the_papers_have_it() -> None:
    assert not spectral_norms(small(architecture="sngan").generator)
    biggan = small(num_classes=3)
    layers = [m for m in biggan.generator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(spectral_norms(biggan.generator)) == len(layers)
    layers = [m for m in biggan.discriminator.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(spectral_norms(biggan.discriminator)) == len(layers) + 1  # the projection
    assert not spectral_norms(small(spectral_norm_generator=False).generator)


def test_labels_change_what_both_networks_say() -> None:
    gan = small(num_classes=3)
    for layer in gan.generator.modules():
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight)
    latents, images, _ = inputs(gan)
    zeros, ones = torch.zeros(4, dtype=torch.long), torch.ones(4, dtype=torch.long)
    gan.eval()
    assert not torch.allclose(gan.generator(latents, zeros), gan.generator(latents, ones))
    difference = gan.discriminator(images, zeros) - gan.discriminator(images, ones)
    embed, features = gan.discriminator.embed.weight, gan.discriminator.features(images)
    torch.testing.assert_close(difference, features @ (embed[0] - embed[1]), atol=1e-5, rtol=1e-4)


def test_the_originals_init_draws_classes_too_and_leaves_torchs_biases() -> None:
    gan = small(num_classes=200, init="original", generator_channels=16)
    norms = [m for m in gan.generator.modules() if isinstance(m, ClassBatchNorm)]
    assert len(norms) == 6
    for norm in norms:  # a gain is stored as what it has above 1
        for drawn in (norm.gain.weight, norm.bias.weight):
            assert drawn.std().item() == pytest.approx(0.02, rel=0.05)
            assert abs(drawn.mean().item()) < 2e-3
    for layer in gan.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            weight = layer.parametrizations.weight.original
            bound = weight[0].numel() ** -0.5
            assert 0 < layer.bias.abs().max() <= bound
            if weight.numel() > 1000:
                assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(gan.generator.bn.weight, torch.ones(64))
    plain = small(num_classes=3)
    assert not any(m.bias.any() for m in plain.modules() if isinstance(m, nn.Conv2d))
    assert not any(m.gain.weight.any() for m in plain.modules() if isinstance(m, ClassBatchNorm))


@torch.no_grad()
def test_one_class_is_a_unit_vector_beside_the_discriminators_last_layer() -> None:
    gan = small(num_classes=1, init="original").eval()
    _, images, labels = inputs(gan)
    assert labels is not None and not labels.any()
    features, row = gan.discriminator.features(images), gan.discriminator.embed.weight
    assert row.shape == (1, gan.discriminator.feature_dim)
    assert row.norm().item() == pytest.approx(1, abs=1e-4)
    wanted = gan.discriminator.linear(features)[:, 0] + features @ row[0]
    torch.testing.assert_close(gan.discriminator(images, labels), wanted)


def test_each_part_of_a_hierarchical_latent_is_heard() -> None:
    gan = small(hierarchical=True).eval()
    latents = torch.randn(1, 24, requires_grad=True)
    weights = torch.randn(1, 3, 32, 32)
    (gan.generator(latents) * weights).sum().backward()
    parts = latents.grad[0].split([6, 6, 6, 6])
    assert gan.generator.linear.in_features == 6
    assert all(part.abs().min() > 0 for part in parts)


@torch.no_grad()
def test_attention_is_the_formula_of_the_paper() -> None:
    torch.manual_seed(0)
    layer, x = SelfAttention(16).double(), torch.randn(2, 16, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(layer(x), x)
    layer.gain.fill_(0.7)
    q, k, v = (conv.weight[:, :, 0, 0] for conv in (layer.query, layer.key, layer.value))
    for image, found in zip(x, layer(x), strict=True):
        keys = F.max_pool2d(torch.einsum("oc,chw->ohw", k, image), 2).flatten(1)
        values = F.max_pool2d(torch.einsum("oc,chw->ohw", v, image), 2).flatten(1)
        for row in range(4):
            for column in range(6):
                scores = keys.T @ (q @ image[:, row, column])
                attended = values @ torch.softmax(scores, dim=0)
                wanted = image[:, row, column] + 0.7 * layer.out.weight[:, :, 0, 0] @ attended
                torch.testing.assert_close(found[:, row, column], wanted)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"architecture": "gan"}, "one of biggan, sngan, not 'gan'"),
        ({"image_size": 33}, "one of 32, 48, 64, 128, not 33"),
        ({"architecture": "sngan", "image_size": 64}, "one of 32, 48, not 64"),
        ({"architecture": "sngan", "attention": 16}, "model.attention is for biggan"),
        ({"latent_dim": 0}, "model.latent_dim must be at least 1"),
        ({"num_classes": -1}, "model.num_classes must not be negative"),
        ({"shared_embedding_dim": 8}, "set model.num_classes"),
        ({"attention": 7}, r"no block makes maps of 7 px: attention can be at \[8, 16, 32\]"),
        ({"attention": 32}, r"no block makes maps of 32 px: attention can be at \[8, 16\]"),
        ({"hierarchical": True, "latent_dim": 3}, "at least 4 numbers: latent_dim"),
        ({"attention": 16, "discriminator_channels": 1}, "at least 8 channels"),
    ],
)
def test_a_config_that_cannot_be_built_is_one_clear_line(
    settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        small(**settings)
    assert "\n" not in str(caught.value) and "model" in str(caught.value)


def test_wrong_images_latents_and_labels_are_one_clear_line() -> None:
    gan, conditional = small(), small(num_classes=3)
    latents, images, labels = inputs(conditional)
    wrong = [
        (lambda: gan.discriminator(images[:, :, :16]), r"\(B, 3, 32, 32\), got \(4, 3, 16, 32\)"),
        (lambda: gan.discriminator(images[:, :1]), r"got \(4, 1, 32, 32\)"),
        (lambda: gan.generator(latents[:, :5]), r"\(B, 24\), got \(4, 5\)"),
        (lambda: gan.generator(latents, labels), "generator is unconditional"),
        (lambda: gan.discriminator(images, labels), "discriminator is unconditional"),
        (lambda: conditional.generator(latents), r"one label a sample, \(4,\), got None"),
        (lambda: conditional.discriminator(images, labels[:3]), r"\(4,\), got \(3,\)"),
        (lambda: conditional.generator(latents, labels + 1), "from 0 to 2, got 3"),
        (lambda: conditional.discriminator(images, labels - 1), "from 0 to 2, got -1"),
    ]
    for call, said in wrong:
        with pytest.raises(ValueError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_networks_agree_with_the_plain_ones(backend: str) -> None:
    """In training mode, where singular vectors move, and under what steps share."""
    wanted = small(architecture="sngan", num_classes=3)
    gan = copy.deepcopy(wanted)
    gan.generator.compile(backend=backend)
    gan.discriminator.compile(backend=backend)
    latents, images, labels = inputs(gan)
    found = [passes(net, latents, images, labels) for net in (gan, wanted)]
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-3)
    pairs = zip(gan.parameters(), wanted.parameters(), strict=True)
    for ours, plain in pairs:
        torch.testing.assert_close(ours.grad, plain.grad, atol=1e-3, rtol=1e-3)


def passes(gan: Gan, latents: Tensor, images: Tensor, labels: Tensor | None) -> list[Tensor]:
    """What both networks say in turn, and gradients left behind.

    As in training, a forward that moves singular vectors goes backward before the next one does.
    """
    with torch.no_grad(), shared_spectral_norm(gan.discriminator):
        judged = [gan.discriminator(images, labels) for _ in range(2)]
    moving = []
    for _ in range(2):
        moving.append(gan.discriminator(images, labels))
        moving[-1].sum().backward()
    fake = gan.generator(latents, labels)
    with frozen_power_iteration(gan.discriminator):
        again = gan.discriminator(fake, labels)
    again.sum().backward()
    return [*judged, *(logits.detach() for logits in moving), fake, again]
