"""Reads the checkpoints that the original MoCo code wrote, v1 and v2.

He et al., "Momentum Contrast for Unsupervised Visual Representation Learning", CVPR 2020 (arXiv
1911.05722), and Chen et al., "Improved Baselines with Momentum Contrastive Learning", 2020 (arXiv
2003.04297); the weights are those of github.com/facebookresearch/moco.

Such a file holds a torchvision ResNet under ``module.encoder_q.``, whose ``fc`` is the projection
head (one linear layer in v1, ``fc.0`` and ``fc.2`` in v2), often its momentum copy under
``module.encoder_k.``, and the queue. The query encoder without the head is what is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor
from torchvision import models

from ndavid.errors import CheckpointError
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.build import build_encoder
from ndavid.models.weights.checkpoint import Source, weights_in
from ndavid.models.weights.matching import load_matching

_QUERY = "encoder_q."
_HEAD = "fc."
_RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "wide_resnet50_2"),
    *("wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
)


def load_moco_release(source: Source) -> Encoder:
    """The query encoder of an original MoCo checkpoint, in eval mode.

    Args:
        source: the file, or its state dict (also as the value of ``state_dict``), whose keys may
            all begin with ``module.``.

    Returns:
        ``torchvision:resnet50``, or whichever of torchvision's ResNets the weights fit.

    Raises:
        CheckpointError: the file is not such a checkpoint, or wants to run code.
    """
    state, path = weights_in(source)
    weights = _query_encoder(state)
    if not weights:
        raise CheckpointError(f"{path}: not a MoCo checkpoint: it has no key {_QUERY}...")
    encoder = build_encoder(f"torchvision:{_architecture(weights, path)}")
    load_matching(encoder, weights, min_fraction=1.0)
    return encoder.eval()


def is_moco_release(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of the original MoCo code."""
    return bool(_query_encoder(state))


def _query_encoder(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the query encoder without its head, under torchvision's names."""
    plain = {key.removeprefix("module."): value for key, value in state.items()}
    query = {k.removeprefix(_QUERY): v for k, v in plain.items() if k.startswith(_QUERY)}
    return {key: value for key, value in query.items() if not key.startswith(_HEAD)}


def _architecture(weights: Mapping[str, Tensor], path: str) -> str:
    """Which of torchvision's ResNets has tensors of these names and shapes."""
    shapes = _shapes(weights)
    for name in _RESNETS:
        if shapes == _shapes_of(name):
            return name
    nearest = min(_RESNETS, key=lambda name: len(shapes.items() ^ _shapes_of(name).items()))
    differing = sorted({key for key, _ in shapes.items() ^ _shapes_of(nearest).items()})
    raise CheckpointError(
        f"{path}: a MoCo checkpoint, but of none of torchvision's ResNets; {nearest} comes nearest "
        f"and differs in {differing[0]} and {len(differing) - 1} other tensors"
    )


@cache
def _shapes_of(name: str) -> dict[str, torch.Size]:
    with torch.device("meta"):
        state = models.get_model(name, weights=None).state_dict()
    return _shapes({key: value for key, value in state.items() if not key.startswith(_HEAD)})


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    # Files from before torch 0.4.1 lack batch norm's counters.
    return {k: v.shape for k, v in state.items() if not k.endswith("num_batches_tracked")}
