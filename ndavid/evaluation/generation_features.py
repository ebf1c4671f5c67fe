"""In which features generated images are compared with real ones: a classifier's or Inception's.

Numbers in different spaces have nothing to do with each other, so each carries the first digits of
its network's SHA-256 in its name. Only those of Inception are called FID and KID.

The Inception network, its resizing and the Inception Score are torch-fidelity's, whose weights are
those of the TensorFlow graph that FID was defined with. Left to itself torch-fidelity downloads
them, and unpickles a local file without asking what is in it. Here the download happens on request,
and a file is read for its tensors only.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ndavid.errors import CheckpointError, ConfigError, DataError
from ndavid.evaluation.pretrained import EncoderConfig, load_pooled
from ndavid.evaluation.protocol import load_result
from ndavid.evaluation.report import RESULT_FILE
from ndavid.files import file_sha256
from ndavid.models.encoders.base import Encoder
from ndavid.models.normalize import Normalize
from ndavid.models.weights.checkpoint import LoadedCheckpoint, open_checkpoint
from ndavid.models.weights.state_files import read_state_dict

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)
INCEPTION_DIGEST = "6726825d"
"""How the SHA-256 of the weights that FID was defined with begins."""

_DIGITS = 8


@dataclass(frozen=True)
class FeatureSpace:
    """A network whose outputs are compared.

    Attributes:
        network: uint8 images (B, 3, S, S) -> (B, dim), followed by logits in the same row if it
            scores images (Inception Score).
        dim: How many of the outputs are features.
        logits: How many outputs follow.
        frechet: What the Frechet distance is called here.
        kernel: What the kernel distance is called here.
        path: File of the weights.
        sha256: Its digest.
        resizer: In words, what the network does to the size of what it is given.
        about: In words, what the network is.
        notes: What a reader of the numbers must know.
        opened: The weights, where they are a checkpoint of ours.
    """

    network: nn.Module
    dim: int
    logits: int
    frechet: str
    kernel: str
    path: str
    sha256: str
    resizer: str
    about: str
    notes: tuple[str, ...] = field(default=())
    opened: LoadedCheckpoint | None = None

    def name(self, metric: str) -> str:
        """Returns a metric's name with the digits that say whose features it is of."""
        return f"{metric} {self.sha256[:_DIGITS]}"

    def card(self) -> dict[str, Any]:
        """Returns what a Result keeps of the space."""
        return {
            "network": self.about,
            "weights": self.path,
            "sha256": self.sha256,
            "features": self.dim,
            "resizer": self.resizer,
        }


class ClassifierFeatures(nn.Module):
    """The pooled map of an encoder, of images at the size at which they come."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.pixels = Normalize()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> (B, D)."""
        return self.encoder.pooled(self.pixels(images))


class InceptionFeatures(nn.Module):
    """torch-fidelity's Inception: pooled features, and logits for the Inception Score."""

    DIM, LOGITS = 2048, 1008

    def __init__(self, inception: nn.Module) -> None:
        super().__init__()
        self.inception = inception

    def forward(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, S, S) -> (B, 2048 + 1008)."""
        return torch.cat(self.inception(images), dim=1)


def classifier_space(checkpoint: str, size: int) -> FeatureSpace:
    """Returns the space of a classifier that ``recipes/train_classifier.py`` trained.

    Args:
        checkpoint: Its run, one of its checkpoints, or any other that holds an encoder of images.
        size: At which images will come.

    Raises:
        CheckpointError: If it is not one.
    """
    opened = open_checkpoint(checkpoint)
    loaded = load_pooled(opened, EncoderConfig(), 1, seed=0)
    augment = opened.config.get("augment")
    trained_at = augment.get("size") if isinstance(augment, dict) else None
    notes = list(loaded.notes)
    if trained_at not in (None, size):
        notes.append(f"The classifier was trained at {trained_at} px and sees images at {size} px.")
    return FeatureSpace(
        network=ClassifierFeatures(loaded.classifier.encoder).eval(),
        dim=loaded.classifier.feature_dim,
        logits=0,
        frechet="fcd",
        kernel="kcd",
        path=str(opened.path),
        sha256=opened.digest,
        resizer="none",
        about=f"{loaded.encoder}, a classifier{_held_out_accuracy(checkpoint)}",
        notes=tuple(notes),
        opened=opened,
    )


def inception_space(weights: str, *, download: bool) -> FeatureSpace:
    """Returns the space of FID, KID and the Inception Score.

    Args:
        weights: torch-fidelity's file of weights; empty with ``download``, which fetches it into
            torch's cache of models.
        download: Whether it may be fetched.

    Raises:
        ConfigError: If there is neither file nor leave to download.
        CheckpointError: If the file is not one of these weights.
        DataError: If it cannot be downloaded.
    """
    if not weights and not download:
        raise ConfigError("Inception needs --inception-weights FILE, or --download true")
    path = Path(weights) if weights else _downloaded()
    inception = _load_inception(path)
    digest = file_sha256(path)
    notes = []
    if not digest.startswith(INCEPTION_DIGEST):
        notes.append(
            f"The Inception weights are not the published ones (sha256 {INCEPTION_DIGEST}…): FID "
            "and KID can be compared only with those of the same weights."
        )
    return FeatureSpace(
        network=InceptionFeatures(inception),
        dim=InceptionFeatures.DIM,
        logits=InceptionFeatures.LOGITS,
        frechet="FID",
        kernel="KID",
        path=str(path),
        sha256=digest,
        resizer="299 px, bilinear as TensorFlow 1 has it, without antialiasing",
        about="Inception v3 of 2015, by torch-fidelity",
        notes=tuple(notes),
    )


def _load_inception(path: Path) -> nn.Module:
    state = read_state_dict(path)
    outputs = ["2048", "logits_unbiased"]
    # Its constructor unpickles whatever is in the file: give it one that holds tensors only.
    with tempfile.NamedTemporaryFile(suffix=".pth") as harmless:
        torch.save(state, harmless.name)
        try:
            return FeatureExtractorInceptionV3("inception-v3-compat", outputs, harmless.name)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            message = f"{path}: not torch-fidelity's Inception weights: {reason}"
            raise CheckpointError(message) from error


def _downloaded() -> Path:
    """The published weights in torch's cache, fetched if they are not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(INCEPTION_URL, str(path), hash_prefix=INCEPTION_DIGEST)
    except (OSError, RuntimeError) as error:  # URLError is an OSError, a wrong hash the other
        reason = f"could not be downloaded: {error}; give a local file by --inception-weights"
        raise DataError(INCEPTION_URL, reason) from error
    return path


def _held_out_accuracy(checkpoint: str) -> str:
    """Its accuracy in words, where its run left it."""
    path = Path(checkpoint) / RESULT_FILE
    if not path.is_file():
        return ""
    result = load_result(path)
    if "top1" not in result.metrics:
        return ""
    return f" of {100 * result.metrics['top1'].value:.1f}% top-1 on held-out training images"
