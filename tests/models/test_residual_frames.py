"""Encoders that see differences of frames."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ndavid.errors import ConfigError
from ndavid.models.encoders.build import build_encoder
from ndavid.models.weights.release import load_encoder, save_pretrained


def test_the_network_sees_the_differences_of_neighbouring_frames() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("residual:resnet2d3d10").eval()
    clips = torch.randn(2, 3, 6, 32, 32)
    differences = torch.stack([clips[:, :, t + 1] - clips[:, :, t] for t in range(5)], dim=2)
    assert torch.equal(encoder(clips), encoder.network(differences))
    assert encoder.feature_dim == encoder.network.feature_dim


def test_a_constant_added_to_all_frames_changes_nothing_and_their_order_does() -> None:
    torch.manual_seed(0)
    encoder = build_encoder("residual:resnet2d3d10").eval()
    clips = torch.randn(2, 3, 6, 32, 32)
    still = torch.randn(2, 3, 1, 32, 32)
    torch.testing.assert_close(encoder(clips + still), encoder(clips), rtol=1e-3, atol=1e-4)
    assert not torch.allclose(encoder(clips.flip(2)), encoder(clips), rtol=1e-2, atol=1e-2)


def test_images_and_single_frames_are_refused() -> None:
    encoder = build_encoder("residual:resnet2d3d10")
    with pytest.raises(ValueError, match="at least 2 frames"):
        encoder(torch.randn(2, 3, 1, 32, 32))
    with pytest.raises(ValueError, match="clips"):
        encoder(torch.randn(2, 3, 32, 32))


def test_its_name_and_weights_survive_saving(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = build_encoder("residual:resnet2d3d10").eval()
    save_pretrained(encoder, tmp_path)
    again = load_encoder(tmp_path)
    clips = torch.randn(1, 3, 4, 32, 32)
    assert again.name == "residual:resnet2d3d10"
    assert torch.equal(again(clips), encoder(clips))


def test_an_unknown_network_behind_it_is_named() -> None:
    with pytest.raises(ConfigError, match="resnet2d3d99"):
        build_encoder("residual:resnet2d3d99")
