"""What negatives a method makes, and how they enter its loss."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass, fields
from typing import Literal, get_args, get_origin, get_type_hints

from ndavid import nda
from ndavid.errors import ConfigError
from ndavid.nda.base import NegativeAugmentation

_LEAST_CHANGED = {"cells": 0.5, "pooled": 0.05}


@dataclass(kw_only=True)
class NegativesConfig:
    """Negative data augmentation inside any method; an empty ``spec`` means none.

    Raises ConfigError, naming the nearest valid value, on a choice that does not exist or a number
    out of range.
    """

    spec: str = ""
    """The operation, as ``nda.from_spec`` reads it: "stitch", "jigsaw:grid=3 | frame_shuffle"."""
    share: Literal["own", "batch"] = "own"
    """Whose negatives a row meets: those of its own sample, or of the whole batch on all ranks."""
    weight: float = 1.0
    """How many times an NDA negative counts in the denominator; 0 takes it out of the loss."""
    scale: float = 1.0
    """Multiplies the similarity of NDA negatives (the alpha of Ge et al. 2021)."""
    per_sample: int = 1
    """Independent draws a sample and step; each costs one more encoding of what is broken."""
    warmup_steps: int = 0
    """Steps over which the weight rises linearly from 0."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in fields(self):
            if get_origin(hints[field.name]) is Literal:
                choices = get_args(hints[field.name])
                _check_choice(field.name, getattr(self, field.name), choices)
        _check(math.isfinite(self.weight) and self.weight >= 0, "weight", ">= 0", self.weight)
        _check(math.isfinite(self.scale) and self.scale > 0, "scale", "> 0", self.scale)
        _check(self.per_sample >= 1, "per_sample", ">= 1", self.per_sample)
        _check(self.warmup_steps >= 0, "warmup_steps", ">= 0", self.warmup_steps)

    def operation(self) -> NegativeAugmentation | None:
        """The operation that ``spec`` names, None when it names none; ConfigError if unreadable."""
        return nda.from_spec(self.spec) if self.spec.strip() else None

    def weight_at(self, step: int) -> float:
        """The weight at an optimizer step, counted from 0."""
        if step >= self.warmup_steps:
            return self.weight
        return self.weight * step / self.warmup_steps


@dataclass(kw_only=True)
class NdaConfig(NegativesConfig):
    """What DPC breaks, and how broken blocks enter its dense softmax."""

    where: Literal["future", "all", "context"] = "future"
    """What is broken: the predicted blocks, every block, or the past that predictions come from.
    A broken block is a false target; a broken past makes a false prediction of a true target."""
    entry: Literal["cells", "pooled"] = "cells"
    """Whether broken features enter cell by cell, beside the other cells and unchanged ones masked,
    or averaged over space, against the average of the row's own target: like meets like. Averages
    have a softmax of their own, whose loss is added to that of the cells."""
    align: Literal["same_cell", "all"] = "same_cell"
    """Which cells of a broken map a row meets. The default, because an operation that moves
    content (a jigsaw) puts the row's own positive, all but intact, into another cell."""
    span: Literal["block", "clip"] = "block"
    """One draw acts inside each block alike, or on the chosen blocks joined in time. Joined, what
    equals the same place of another block counts as unchanged (unless the past is broken)."""
    min_changed: float | None = None
    """Share of the pixels and frames that must have changed for a negative: of its own patch for a
    cell, of the whole block for a pooled map. A swap of 2 frames in a block of 5 changes 0.4.
    Unset, 0.5 for cells and 0.05 for pooled maps, so that there every operation counts as it comes
    (cut_mix replaces 0.1 to 0.5, cutout 0.1 to 0.36, stitch 0.5, a derangement all) and a mere
    trace does not; raise it to leave out averages that are mostly of untouched content. 0 takes
    every cell, untouched ones too: the naive form, in which negatives deny the positive, for
    comparison only."""
    stop_grad: bool = False
    """Encode the negatives without gradient: cheaper, and only the true side learns from them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _check(0 <= self.least_changed <= 1, "min_changed", "in [0, 1]", self.least_changed)

    @property
    def least_changed(self) -> float:
        """``min_changed``, or its default for this ``entry``."""
        if self.min_changed is not None:
            return self.min_changed
        return _LEAST_CHANGED[self.entry]


MOCO_DEFAULTS_BEFORE = {"nda.encoder": "key", "nda.norm": "own", "nda.weight": 1.0}
"""What `MocoNdaConfig` had for its defaults once: a run that began with them goes on with them."""
MOCO_DEFAULTS_SINCE = 1
"""The first `environment.DEFAULTS` with the present ones."""


@dataclass(kw_only=True)
class MocoNdaConfig(NegativesConfig):
    """What MoCo breaks, and who encodes it.

    The defaults are the one setting of a trial on clips in which the positive clearly came to
    outrank its broken copy (docs/results.md): the key's view, broken, through the query encoder,
    beside true samples, 16 times as loud. The published form is ``encoder=key, norm=own,
    weight=1``, which the configs of images say: nothing louder was measured on photographs here.
    """

    view: Literal["query", "key", "fresh"] = "key"
    """Which augmented view is broken: the query's own, the key's (it shares crop and colours with
    the positive), or a third one, which the data must then give."""
    weight: float = 16.0
    """How many times an NDA negative counts in the denominator; 0 takes it out of the loss. A
    single negative against a queue is hardly heard at 1, the published form."""
    encoder: Literal["key", "query"] = "query"
    """Who encodes what is broken: the key encoder without gradient, or the query encoder with it,
    at the price of its backward pass. Either learns: the query is pushed from what the key encoder
    makes of a broken sample, and the key encoder follows the query's. How much is learned hangs on
    the weight more than on who encodes."""
    norm: Literal["own", "running", "shared"] = "shared"
    """Statistics that batch norm uses on broken samples: their own, the running ones of true
    samples, or those of true and broken ones in one forward. A batch that is broken throughout is
    re-centred by its own, which can hide the very difference; shared ones keep it, but let broken
    samples move the statistics of true ones, the running ones included."""

    @property
    def num_views(self) -> int:
        """Views of each sample that a step needs."""
        return 3 if self.view == "fresh" and self.spec.strip() else 2


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value in choices:
        return
    nearest = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise ConfigError(f"nda.{name} must be one of {', '.join(choices)}, got {value!r}{hint}")


def _check(fits: bool, name: str, bounds: str, value: float) -> None:
    if not fits:
        raise ConfigError(f"nda.{name} must be {bounds}, got {value}")
