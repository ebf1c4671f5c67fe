"""Classifiers: what their features are made of, and which parameters belong to which part."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ndavid.models.classifier import DpcClassifier, EncoderClassifier
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.build import build_encoder

CONFIG = DpcConfig(encoder="resnet2d3d10", num_blocks=3, block_len=4, pred_steps=1)


def test_dpc_features_are_those_of_consecutive_blocks() -> None:
    torch.manual_seed(0)
    model = DpcClassifier(CONFIG, 5).eval()
    video = torch.randn(2, 3, 12, 32, 64)
    with torch.no_grad():
        hidden = None
        for block in video.split(4, dim=2):
            hidden = model.agg.step(F.relu(model.encoder(block)).mean(2), hidden)
        assert hidden is not None
        torch.testing.assert_close(model.features(video), hidden.mean((2, 3)), atol=1e-5, rtol=1e-4)
        assert model(video).shape == (2, 5)


def test_encoder_features_are_the_mean_of_the_map() -> None:
    encoder = build_encoder("resnet2d3d10")
    model = EncoderClassifier(encoder, 4).eval()
    video = torch.randn(2, 3, 8, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.features(video), encoder(video).mean((2, 3, 4)))


def test_image_features_are_the_mean_of_the_map() -> None:
    encoder = build_encoder("cifar:resnet20")
    model = EncoderClassifier(encoder, 4).eval()
    images, video = torch.randn(2, 3, 32, 32), torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model.features(images), encoder(images).mean((2, 3)))
        torch.testing.assert_close(model.features(video), encoder(video).mean((2, 3, 4)))
        assert model(images).shape == (2, 4)


def models() -> list[DpcClassifier | EncoderClassifier]:
    torch.manual_seed(0)
    encoder = build_encoder("resnet2d3d10")
    return [DpcClassifier(CONFIG, 3), EncoderClassifier(encoder, 3, head_norm="bn")]


@pytest.mark.parametrize("model", models(), ids=["dpc", "encoder"])
def test_every_parameter_is_in_one_part_and_learns(model) -> None:
    encoder = {id(p) for p in model.encoder_parameters()}
    head = {id(p) for p in model.head_parameters()}
    assert encoder.isdisjoint(head)
    assert encoder | head == {id(p) for p in model.parameters()}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    video, labels = torch.randn(6, 3, 12, 32, 32), torch.tensor([0, 1, 2, 0, 1, 2])
    losses = []
    for _ in range(4):
        torch.manual_seed(1)  # the same dropout at each step
        loss = F.cross_entropy(model(video), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(p.grad is not None for p in model.parameters())


def test_a_classifier_starts_from_a_pretrained_dpc() -> None:
    dpc = DPC(CONFIG)
    model = DpcClassifier.from_dpc(dpc, 7, dropout=0.9)
    assert model.encoder is dpc.encoder and model.agg is dpc.agg
    assert model.head.dropout.p == 0.9
    fresh = DpcClassifier(CONFIG, 7)
    assert list(fresh.state_dict()) == list(model.state_dict())


def test_dpcs_head_starts_orthogonal_as_the_originals_and_others_as_torch_draws_them() -> None:
    for model in (DpcClassifier(CONFIG, 5), DpcClassifier.from_dpc(DPC(CONFIG), 5)):
        weight = model.head.fc.weight
        torch.testing.assert_close(weight @ weight.T, torch.eye(5), atol=1e-5, rtol=0)
        assert not model.head.fc.bias.any()
    encoder = build_encoder("resnet2d3d10")
    plain = EncoderClassifier(encoder, 5).head.fc
    assert plain.bias.all() and (plain.weight @ plain.weight.T).diagonal().max() < 0.9
    chosen = EncoderClassifier(encoder, 5, head_init="orthogonal").head.fc
    torch.testing.assert_close(chosen.weight @ chosen.weight.T, torch.eye(5), atol=1e-5, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    model = DpcClassifier(CONFIG, 3)
    with pytest.raises(ValueError, match=r"num_blocks \* 4"):
        model(torch.randn(1, 3, 10, 32, 32))
    with pytest.raises(ValueError, match="num_classes"):
        DpcClassifier(CONFIG, 0)
    with pytest.raises(ValueError, match="dropout"):
        EncoderClassifier(model.encoder, 3, dropout=1.0)
    with pytest.raises(ValueError, match="orthogonal"):
        EncoderClassifier(model.encoder, 3, head_init="zeros")  # type: ignore[arg-type]
