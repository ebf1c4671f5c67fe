"""Reads the checkpoints that the original DPC code wrote: pretrained models and classifiers.

Han, Xie and Zisserman, "Video Representation Learning by Dense Predictive Coding", ICCVW 2019
(arXiv 1909.04656); the weights are those of github.com/TengdaHan/DPC.

Their pretraining kept no running statistics, so a model read from such a file normalises by batch
statistics in eval too, as the original does. ``batchnorm.track_running_stats`` gives it fresh ones
before fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from ndavid.errors import CheckpointError
from ndavid.models.classifier import DpcClassifier
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.encoders.resnet2d3d import DEPTHS
from ndavid.models.weights.checkpoint import Named, Source, weights_in

Model = TypeVar("Model", bound=nn.Module)

# Where the original's modules live here.
_RENAMED = {
    "backbone.": "encoder.",
    "agg.ConvGRUCell_00.": "agg.cell.",
    "network_pred.": "predictor.",
    "final_bn.": "head.norm.",
    "final_fc.1.": "head.fc.",
}
_SAME_CELL_AGAIN = "agg.cell_list.0."


def load_dpc_release(
    source: Source, *, num_blocks: int = 8, block_len: int = 5, pred_steps: int = 3
) -> DPC:
    """The :class:`DPC` of an original pretraining checkpoint, in eval mode.

    Args:
        source: the file, or its state dict (also as the value of ``state_dict``), whose keys may
            all begin with ``module.``.
        num_blocks, block_len, pred_steps: how the model is used; the file does not tell.

    Raises:
        CheckpointError: the file is not such a checkpoint, or wants to run code.
    """
    weights, where = _translated(source)
    config = _config(weights, where, num_blocks, block_len, pred_steps)
    return _filled(DPC(config), weights, where)


def load_dpc_classifier_release(
    source: Source,
    *,
    num_blocks: int = 8,
    block_len: int = 5,
    pred_steps: int = 3,
    dropout: float = 0.5,
) -> DpcClassifier:
    """The :class:`DpcClassifier` of an original fine-tuning checkpoint, in eval mode.

    Arguments and errors are those of :func:`load_dpc_release`; ``dropout`` is that of the head. The
    number of classes is read off the weights.
    """
    weights, where = _translated(source)
    if "head.fc.weight" not in weights:
        raise CheckpointError(f"{where}: no classifier: it has no final_fc.1.weight")
    config = _config(weights, where, num_blocks, block_len, pred_steps)
    num_classes = len(weights["head.fc.weight"])
    return _filled(DpcClassifier(config, num_classes, dropout=dropout), weights, where)


def is_dpc_release(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is one of the original DPC code, going by how its keys begin."""
    return any(_our_name(key.removeprefix("module.")) is not None for key in state)


def _translated(source: Source) -> Named:
    """The state dict of ``source`` under our names."""
    original, where = weights_in(source)
    if all(key.startswith("module.") for key in original):
        original = {key.removeprefix("module."): value for key, value in original.items()}
    ours: dict[str, Tensor] = {}
    for key, value in original.items():
        name = _our_name(key)
        if name is None:
            raise CheckpointError(f"{where}: not a DPC checkpoint: unknown key {key!r}")
        if name in ours and not torch.equal(ours[name], value):
            raise CheckpointError(f"{where}: the two copies of {name!r} differ")
        ours[name] = value
    return Named(ours, where)


def _our_name(key: str) -> str | None:
    # The original registers its one GRU cell twice.
    if key.startswith(_SAME_CELL_AGAIN):
        return "agg.cell." + key.removeprefix(_SAME_CELL_AGAIN)
    for theirs, ours in _RENAMED.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return None


def _config(
    weights: Mapping[str, Tensor], where: str, num_blocks: int, block_len: int, pred_steps: int
) -> DpcConfig:
    return DpcConfig(
        encoder=f"resnet2d3d{_depth(weights, where)}",
        num_blocks=num_blocks,
        block_len=block_len,
        pred_steps=pred_steps,
        running_stats="encoder.bn1.running_mean" in weights,
    )


def _depth(weights: Mapping[str, Tensor], where: str) -> int:
    """Which of the 2D3D-ResNets has these blocks."""
    blocks = tuple(
        len({key.split(".")[2] for key in weights if key.startswith(f"encoder.layer{layer}.")})
        for layer in (1, 2, 3, 4)
    )
    bottleneck = "encoder.layer1.0.conv3.weight" in weights
    for depth, layout in DEPTHS.items():
        if (layout.blocks, layout.bottleneck) == (blocks, bottleneck):
            return depth
    raise CheckpointError(
        f"{where}: not a DPC checkpoint: no 2D3D-ResNet of depth {sorted(DEPTHS)} has "
        f"{blocks} {'bottleneck' if bottleneck else 'basic'} blocks a layer"
    )


def _filled(model: Model, weights: Mapping[str, Tensor], where: str) -> Model:
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes differ; torch names each on a line of its own
        raise CheckpointError(f"{where}: {' '.join(str(error).split())}") from error
    # Files from before torch 0.4.1 lack batch norm's counters.
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        raise CheckpointError(
            f"{where}: does not fit the {type(model).__name__}: "
            f"missing {missing[:5]}, unexpected {unexpected[:5]}"
        )
    return model.eval()
