"""Reads the weights that the original NDA code and BigGAN-PyTorch wrote: BigGAN at 32 px.

Sinha et al. 2021, "Negative Data Augmentation" (arXiv 2102.05113), and Brock, Donahue and Simonyan
2019 (arXiv 1809.11096); the files are the state dicts of one network each (``G``, ``G_ema``, ``D``)
as ``torch.save`` wrote them, of networks without attention and without a shared embedding.

Two things differ from ours besides the names. Their spectral norm takes one step of power iteration
from a stored vector at every forward, also in eval mode, where it throws the step away. And an
unconditional network is a conditional one of a single class: its labels are zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ndavid.errors import CheckpointError
from ndavid.models.gan.networks import Discriminator, Generator
from ndavid.models.weights.checkpoint import Source, weights_in

Which = Literal["generator", "discriminator"]

IMAGE_SIZE = 32
_BLOCKS = {"generator": 3, "discriminator": 4}

# Theirs to ours, in this order. The first block of the final layers is a bare batch norm.
_RENAMED = (
    (r"^module\.", ""),
    (r"^blocks\.(\d+)\.0\.", r"blocks.\1."),
    (r"^output_layer\.0\.gain$", "bn.weight"),
    (r"^output_layer\.0\.", "bn."),
    (r"^output_layer\.2\.", "conv."),
    (r"\.(bn[12])\.stored_", r".\1.norm.stored_"),
    (r"stored_mean$", "running_mean"),
    (r"stored_var$", "running_var"),
)
_SINGULAR_VECTOR = ".u0"
_LOG_ONLY = ".sv0"


class OriginalSpectralNorm(nn.Module):
    """A weight divided by sigma after one step of power iteration from the stored ``u`` (out,).

    The step is kept in training mode only.
    """

    u: Tensor

    def __init__(self, u: Tensor, eps: float = 1e-12) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("u", u.flatten().clone())

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            matrix = weight.flatten(1)
            with torch.no_grad():
                v = F.normalize(self.u @ matrix, dim=0, eps=self.eps)
                u = F.normalize(matrix @ v, dim=0, eps=self.eps)
                if self.training:
                    self.u.copy_(u)
            return weight / torch.dot(u, matrix @ v)


def load_biggan_release(source: Source, which: Which) -> Generator | Discriminator:
    """One of the two networks of an original checkpoint, in eval mode, with its spectral norm.

    Args:
        source: the file, or its state dict (also as the value of ``state_dict``), whose keys may
            all begin with ``module.``.
        which: ``generator`` (of ``G`` or ``G_ema``) or ``discriminator``.

    Returns:
        The network, for 32 px; labels are zeros where ``num_classes`` is 1.

    Raises:
        CheckpointError: the file is damaged, wants to run code, or does not hold that network.
    """
    if which not in _BLOCKS:
        raise ValueError(f"which is generator or discriminator, not {which!r}")
    state, path = weights_in(source)
    renamed = {_our_name(key): value for key, value in state.items()}
    weights = {k: v for k, v in renamed.items() if not k.endswith((_SINGULAR_VECTOR, _LOG_ONLY))}
    vectors = {k: v for k, v in renamed.items() if k.endswith(_SINGULAR_VECTOR)}
    try:
        network = _generator(weights) if which == "generator" else _discriminator(weights)
    except _NotThatNetwork as error:
        raise CheckpointError(f"{path}: not the {which} of a BigGAN for 32 px: {error}") from error
    layers = _normalised_layers(network)
    wanted = {k: v.shape for k, v in network.state_dict().items() if not k.endswith("_tracked")}
    wanted |= {f"{name}{_SINGULAR_VECTOR}": torch.Size([1, n]) for name, n in layers.items()}
    _check_fits(wanted, weights | vectors, f"{path}: not the {which} of a BigGAN for 32 px")
    network.load_state_dict(weights, strict=False)
    network.eval()
    for name in layers:
        # In eval mode, for registering runs a forward, which must not move the vector.
        norm = OriginalSpectralNorm(vectors[f"{name}{_SINGULAR_VECTOR}"].float()).eval()
        parametrize.register_parametrization(network.get_submodule(name), "weight", norm)
    return network.eval()


class _NotThatNetwork(Exception):
    """A tensor that tells the network's size is missing or has another rank."""


def _our_name(key: str) -> str:
    for theirs, ours in _RENAMED:
        key = re.sub(theirs, ours, key)
    return key


def _generator(weights: Mapping[str, Tensor]) -> Generator:
    num_classes, channels = _matrix(weights, "blocks.0.bn1.gain.weight")
    _, latent_dim = _matrix(weights, "linear.weight")
    return Generator(
        latent_dim=latent_dim,
        image_size=IMAGE_SIZE,
        widths=[channels] * (_BLOCKS["generator"] + 1),
        num_classes=num_classes,
        spectral=False,
    )


def _discriminator(weights: Mapping[str, Tensor]) -> Discriminator:
    num_classes, channels = _matrix(weights, "embed.weight")
    return Discriminator(
        image_size=IMAGE_SIZE,
        widths=[channels] * _BLOCKS["discriminator"],
        down=[True, True, False, False],
        num_classes=num_classes,
        spectral=False,
    )


def _matrix(weights: Mapping[str, Tensor], key: str) -> tuple[int, int]:
    if key not in weights:
        raise _NotThatNetwork(f"it has no {key}")
    if weights[key].ndim != 2 or weights[key].numel() == 0:
        raise _NotThatNetwork(f"its {key} has the shape {tuple(weights[key].shape)}")
    rows, columns = weights[key].shape
    return rows, columns


def _normalised_layers(network: nn.Module) -> dict[str, int]:
    """The layers that have a singular vector, and its length."""
    return {
        name: layer.weight.shape[0]
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) or name == "embed"
    }


def _check_fits(
    wanted: Mapping[str, torch.Size], found: Mapping[str, Tensor], complaint: str
) -> None:
    """Raises CheckpointError, under our names of tensors, unless all are there and no other."""
    shapes = {key: value.shape for key, value in found.items()}
    missing, unexpected = sorted(wanted.keys() - shapes), sorted(shapes.keys() - wanted.keys())
    different = sorted(k for k in wanted.keys() & shapes if wanted[k] != shapes[k])
    for fault, keys in (("lacks", missing), ("also has", unexpected), ("differs in", different)):
        if keys:
            more = f" and {len(keys) - 1} other tensors" if len(keys) > 1 else ""
            raise CheckpointError(f"{complaint}: it {fault} {keys[0]}{more}")
