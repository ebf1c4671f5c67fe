"""Reading tensors from a file without ever running code that may be in it, and writing them."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from ndavid.errors import CheckpointError

# Training scripts often put a numpy number (an accuracy) beside the weights: data, not code. Old
# files know numpy.core, new ones numpy._core.
_HARMLESS: list[Any] = [
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
]


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors by name of a file, as `state_dict_of` finds them; errors are the same."""
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    return state_dict_of(path.read_bytes(), path)


def state_dict_of(content: bytes, path: Path) -> dict[str, Tensor]:
    """The tensors by name in a ``.safetensors`` file or in one that ``torch.save`` wrote.

    Understands a bare state dict and one under the key ``state_dict``. On the CPU.

    Args:
        content: of the file.
        path: tells the kind by its suffix, and is named in errors.

    Raises:
        CheckpointError: damaged, not a checkpoint, or a pickle that asks for code to be run.
    """
    if path.suffix != ".safetensors":
        return state_dict_in(_unpickled(content, path), path)
    try:
        return load(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def write_state_dict(state: Mapping[str, Tensor], path: Path) -> None:
    """Writes tensors by name as safetensors, which has no memory formats and no shared storage."""
    save_file({key: value.contiguous() for key, value in state.items()}, path)


def state_dict_in(content: Any, path: str | Path) -> dict[str, Tensor]:
    """The tensors by name in what a checkpoint file held; ``path`` is named in the error."""
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    ):
        raise CheckpointError(f"{path}: not a checkpoint: it holds no state dict of tensors")
    return dict(content)


def _unpickled(content: bytes, path: Path) -> Any:
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # about the pickle protocol of files that then fail
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no checkpoint make the unpickler raise anything
        raise CheckpointError(f"{path}: {_reason(str(error))}") from error


def _reason(message: str) -> str:
    """One line out of torch.load's page."""
    code = re.search(r"(?:GLOBAL|class|function) ([\w.]+\.\w+)", message)
    if code:
        return f"refused: a pickle that wants to run code ({code.group(1)}); only tensors are read"
    return "not a checkpoint, or a damaged one"
