"""Loading weights with a report of which keys matched, and an error when too few did.

A checkpoint loaded with ``strict=False`` and no report is how a "pretrained" model turns out to
have been a random one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ndavid.errors import CheckpointError

# Under these names methods keep a slowly moving copy of their encoder, which is never meant: ours,
# the original MoCo's, and those that averaging goes by.
_COPIES = frozenset({"key_encoder", "encoder_k", "momentum_encoder", "ema", "model_ema"})


@dataclass(frozen=True)
class KeyReport:
    """What became of the keys when a state dict was loaded into a model."""

    matched: tuple[str, ...]
    """In both, with the same shape: loaded."""
    missing: tuple[str, ...]
    """In the model only: left as they were."""
    unexpected: tuple[str, ...]
    """In the state dict only: not used."""
    mismatched: tuple[str, ...] = ()
    """In both, with different shapes (or values, where those were compared): not used."""

    @property
    def fraction(self) -> float:
        """Share of the model's keys that were loaded, in [0, 1]."""
        wanted = len(self.matched) + len(self.missing) + len(self.mismatched)
        return len(self.matched) / wanted if wanted else 0.0

    def __str__(self) -> str:
        return (
            f"{self.fraction:.1%} of the model's keys loaded ({len(self.matched)} matched, "
            f"{_some(self.missing)} missing, {_some(self.mismatched)} different, "
            f"{_some(self.unexpected)} unexpected)"
        )


def load_matching(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    min_fraction: float = 0.95,
    prefix: str = "",
) -> KeyReport:
    """Loads what fits of ``state_dict`` into ``model`` and says what did.

    Args:
        model: takes the weights, in place.
        state_dict: tensors by name.
        min_fraction: the share of the model's keys that must match in name and shape. Counters of
            batch norm (``num_batches_tracked``), which old checkpoints lack, are not counted.
        prefix: only keys that begin with it are looked at, and without it.

    Raises:
        CheckpointError: fewer keys match; the model is left as it was.
    """
    report = compare(model, state_dict, prefix=prefix)
    if report.fraction < min_fraction:
        where = f" under the prefix {prefix!r}" if prefix else ""
        raise CheckpointError(
            f"the checkpoint does not fit the {type(model).__name__}{where}: {report}; "
            f"at least {min_fraction:.0%} must match"
        )
    model.load_state_dict(_fitting(model.state_dict(), _offered(state_dict, prefix)), strict=False)
    return report


def compare(
    model: nn.Module,
    state_dict: Mapping[str, Tensor],
    *,
    prefix: str = "",
    values: bool = False,
) -> KeyReport:
    """Says which of the model's tensors are in ``state_dict``, without loading any.

    Args:
        model: whose keys are looked for.
        state_dict: tensors by name.
        prefix: only keys that begin with it are looked at, and without it.
        values: whether a tensor must also hold the same values to match, which after loading
            proves that the model is the file's.
    """
    wanted, offered = model.state_dict(), _offered(state_dict, prefix)
    fitting: Iterable[str] = _fitting(wanted, offered)
    if values:
        fitting = [key for key in fitting if torch.equal(offered[key], wanted[key].cpu())]
    return KeyReport(
        matched=_counted(fitting),
        missing=_counted(wanted.keys() - offered.keys()),
        unexpected=_counted(offered.keys() - wanted.keys()),
        mismatched=_counted((wanted.keys() & offered.keys()) - set(fitting)),
    )


def find_prefix(model: nn.Module, state_dict: Mapping[str, Tensor]) -> str:
    """The one prefix under which most of the model's keys are found ("dpc.encoder.", "", ...).

    A momentum copy ("moco.key_encoder.", "module.encoder_k.") is never the one.
    """
    wanted = list(model.state_dict())
    candidates = {
        prefix: None
        for name in (wanted[0], wanted[-1])
        for key in state_dict
        if key.endswith(name) and _may_be_meant(prefix := key.removesuffix(name))
    }
    found = {prefix: sum(prefix + name in state_dict for name in wanted) for prefix in candidates}
    return max(found, key=found.__getitem__, default="")


def _may_be_meant(prefix: str) -> bool:
    return not prefix or (prefix[-1] == "." and _COPIES.isdisjoint(prefix.split(".")))


def _offered(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        key.removeprefix(prefix): value
        for key, value in state_dict.items()
        if key.startswith(prefix)
    }


def _fitting(wanted: Mapping[str, Tensor], offered: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in offered.items() if k in wanted and v.shape == wanted[k].shape}


def _counted(keys: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(key for key in keys if not key.endswith("num_batches_tracked")))


def _some(keys: tuple[str, ...]) -> str:
    """How many keys there are, with the first few by name."""
    if not keys:
        return "0"
    names = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
    return f"{len(keys)} [{names}]"
