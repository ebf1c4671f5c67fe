"""Exports: each kind read back, for other batches than the traced one, and never a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from ndavid.models.batchnorm import drop_running_stats
from ndavid.models.encoders.base import Encoder, ImageEncoder
from ndavid.models.encoders.build import ClipSizeError, build_encoder
from ndavid.models.normalize import Normalize
from ndavid.models.weights import export
from ndavid.models.weights.export import ExportedEncoder, Kind, export_encoder
from ndavid.models.weights.release import load_encoder


def trained(name: str, shape: tuple[int, ...]) -> Encoder:
    """An encoder whose running statistics are not the initial ones."""
    torch.manual_seed(0)
    encoder = build_encoder(name)
    encoder(torch.randn(4, *shape))
    return encoder.eval()


NETS = [
    ("cifar:resnet20", (3, 32, 32)),
    ("resnet2d3d10", (3, 5, 32, 32)),
    ("timm:test_resnet", (3, 3, 32, 32)),
]
HEAVY_NETS = [
    ("torchvision:resnet50", (3, 64, 64)),
    ("torchvision:r3d_18", (3, 8, 32, 32)),
    ("residual:torchvision:r3d_18", (3, 8, 32, 32)),
    ("pytorchvideo:x3d_xs", (3, 4, 32, 32)),
    ("pytorchvideo:slow_r50", (3, 4, 32, 32)),
    ("torchvision:s3d", (3, 16, 64, 64)),
    ("timm:test_vit", (3, 160, 160)),
]


@pytest.mark.parametrize(
    ("name", "shape"),
    [*NETS, *(pytest.param(*net, marks=pytest.mark.slow) for net in HEAVY_NETS)],
)
def test_a_program_from_disk_gives_the_eager_features(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    encoder = trained(name, shape)
    (result,) = export_encoder(encoder, shape, tmp_path, ["program"])
    assert result.error is not None and result.error <= export.TOLERANCE, result.reason
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    pixels = torch.randn(5, *shape)  # a batch size that was neither traced nor checked
    with torch.no_grad():
        torch.testing.assert_close(program(pixels), encoder(pixels), rtol=1e-4, atol=1e-5)
    assert f"{result.error:.1e}" in str(result) and "tolerance 1e-04" in str(result)


@pytest.mark.parametrize(
    ("name", "shape"),
    [*NETS[:2], *(pytest.param(*net, marks=pytest.mark.slow) for net in (NETS[2], *HEAVY_NETS))],
)
def test_onnx_gives_the_eager_features(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder = trained(name, shape)
    (result,) = export_encoder(encoder, shape, tmp_path, ["onnx"], pool=True)
    assert result.error is not None and result.error <= export.TOLERANCE, result.reason
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.onnx"]
    session = onnxruntime.InferenceSession(result.path)
    pixels = torch.randn(5, *shape)
    (features,) = session.run(["features"], {"pixels": pixels.numpy()})
    with torch.no_grad():
        expected = encoder.pooled(pixels)
    torch.testing.assert_close(torch.from_numpy(features), expected, rtol=1e-4, atol=1e-4)


def test_pixels_in_bytes_are_normalised_inside(tmp_path: Path) -> None:
    encoder = trained("cifar:resnet20", (3, 32, 32))
    results = export_encoder(
        encoder, (3, 32, 32), tmp_path, ["program", "folder"], pool=True, uint8=True
    )
    assert [r.path.name for r in results if r.error == 0] == ["encoder.pt2", "encoder"]
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        expected = encoder.pooled(Normalize()(images))
        found = torch.export.load(tmp_path / "encoder.pt2").module()(images)
        torch.testing.assert_close(found, expected)
        assert torch.equal(load_encoder(tmp_path / "encoder").pooled(Normalize()(images)), expected)


def test_a_network_without_running_statistics_is_exported(tmp_path: Path) -> None:
    encoder = drop_running_stats(build_encoder("cifar:resnet20"))
    assert isinstance(encoder, Encoder)
    results = export_encoder(encoder, (3, 32, 32), tmp_path, ["folder", "program"])
    assert [r.error is not None for r in results] == [True, True], results


class Branching(ImageEncoder):
    """Looks at values to choose its way, which no traced program can."""

    feature_dim = 3

    def __init__(self) -> None:
        super().__init__("cifar:resnet20")
        self.scale = nn.Parameter(torch.ones(1))

    def encode_images(self, images: Tensor) -> Tensor:
        return images * self.scale if images.mean() > 0 else images - self.scale


def test_what_cannot_be_exported_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "encoder.pt2").write_bytes(b"of an older encoder")
    (tmp_path / "notes.txt").write_text("mine")
    results = export_encoder(Branching(), (3, 8, 8), tmp_path)
    assert [r.error for r in results] == [None, None, None]
    reasons = {r.kind: r.reason for r in results}
    # The folder's weights are not those of the network that it names.
    assert "at least 95% must match" in reasons["folder"]
    assert "data-dependent" in reasons["program"].lower()
    assert all(str(r) == f"{r.kind}: not exported: {r.reason}" for r in results)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("scale", [1.001, float("nan")])
@pytest.mark.parametrize("kind", ["folder", "program"])
def test_a_wrong_artefact_is_never_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float, kind: Kind
) -> None:
    class Wrong(ExportedEncoder):
        """Gives a tenth of a percent too much: what a wrong epsilon in a norm would."""

        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) * scale

    encoder = trained("cifar:resnet20", (3, 32, 32))

    def read(*arguments: object) -> nn.Module:
        return Wrong(encoder).eval()

    monkeypatch.setattr(export, f"_{kind}", read)
    (result,) = export_encoder(encoder, (3, 32, 32), tmp_path, [kind])
    assert result.error is None and "off, more than 1e-04" in result.reason
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    encoder = trained("cifar:resnet20", (3, 32, 32))
    (result,) = export_encoder(encoder, (3, 32, 32), tmp_path, ["onnx"])
    assert result.error is None
    assert "onnxruntime" in result.reason and "'.[export]'" in result.reason


def test_a_shape_that_the_network_refuses_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ClipSizeError, match="video network"):
        export_encoder(build_encoder("resnet2d3d10").eval(), (3, 32, 32), tmp_path)
