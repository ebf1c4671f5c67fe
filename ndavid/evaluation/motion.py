"""Motion probe: do frozen features tell a clip from the same clip in a wrong order of frames?

Every clip has two broken copies: *reversed*, its frames backwards, and *shuffled*, in a random
order that is never the true one. A logistic regression on frozen features learns to tell true from
reversed clips of the training videos, another true from shuffled ones; both are tested on clips of
the test videos. Both kinds of clip show the same pictures, so that what is told above half of the
clips is told by their order. A reversed clip moves as smoothly as a true one, and takes knowing
which way the world runs; a shuffled one jerks.

Order as a task goes back to Shuffle and Learn (Misra et al., ECCV 2016) and the arrow of time (Wei
et al., CVPR 2018). There a network learns it; here nothing but the regression does.

Both operations act on all frames of a clip. Where the encoder reads blocks (``views.sampling:
blocks``, as DPC's), frames change place within blocks and across them: the last block of a reversed
clip is its first one backwards.

Labels are not used. A clip whose copy came out as it went in, to the bit, is no test of order: both
are left out, in training too, and counted. A clip that barely moves counts, as one told and one
not: such clips bound what can be reached, the lower the more of them there are.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange, repeat
from torch import Tensor

from ndavid.engine.rng import derive_seed
from ndavid.errors import DataError
from ndavid.evaluation.broken_clips import BrokenCopies
from ndavid.evaluation.features import Features
from ndavid.evaluation.frozen_videos import (
    FrozenFold,
    FrozenVideosConfig,
    measure_folds,
)
from ndavid.evaluation.intervals import mean_of_items
from ndavid.evaluation.outcomes import outcomes_of
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result
from ndavid.evaluation.regression import (
    ONE_WEIGHT_DECAY,
    Fitted,
    RegressionConfig,
    fit_chosen,
    predict,
    selection_of,
)
from ndavid.evaluation.views import ViewsConfig

BROKEN = {"reversed": "reverse", "shuffled": "frame_shuffle"}
"""The metrics, and the operation of ``ndavid.nda`` that breaks the clips of each."""


@dataclass(kw_only=True)
class MotionConfig(FrozenVideosConfig, RegressionConfig):
    """Motion probe on cached features."""

    output: str = ""
    """folder for result.json and report.html; empty:
    runs/, the checkpoint\'s name and -motion (evaluation/output_folder.py)"""
    views: ViewsConfig = field(default_factory=lambda: ViewsConfig(crops=1, short="drop"))
    """what is read from each video, training and test alike. Short videos are best dropped: where
    one starts over or stands still, it says which way it is played"""
    seed: int = 0
    """draws random weights, where asked for, the orders of shuffled clips, the held-out groups"""

    def __post_init__(self) -> None:
        FrozenVideosConfig.__post_init__(self)
        RegressionConfig.__post_init__(self)


@dataclass(frozen=True)
class Probed:
    """What one regression told.

    Attributes:
        told: (M, 2, V) bool: of M test videos, their V true clips and the broken copies.
        changed: (M, V) bool: whose copy differs from its clip. The others are not tested.
        fitted: The regression.
    """

    told: Tensor
    changed: Tensor
    fitted: Fitted

    def pairs(self) -> Tensor:
        """Returns whether each true clip and its copy were told, of those tested: (P, 2) bool."""
        return self.told.movedim(1, 2)[self.changed]

    def shares(self) -> dict[int, float]:
        """Returns the share told of each video that has a clip to test, by its place."""
        told = self.told.double().mean(dim=1)
        return {
            video: float(told[video, chosen].mean())
            for video, chosen in enumerate(self.changed)
            if chosen.any()
        }

    def details(self) -> dict[str, Any]:
        """Returns what a Result keeps: the sweep, and the shares told of either kind of clip."""
        true, broken = self.pairs().double().mean(dim=0).tolist()
        return {
            "told": {"true": true, "broken": broken},
            "sweep": self.fitted.losses(),
            "unchanged": int((~self.changed).sum()),
        }


@alone_in_output
def run(config: MotionConfig) -> Result:
    """Probes every fold, writes ``result.json`` and returns it."""
    broken = BrokenCopies(tuple(BROKEN.values()), config.seed)
    return measure_folds(config, _probe_fold, asked="motion", broken=broken)


def _probe_fold(config: MotionConfig, fold: FrozenFold) -> Result:
    held_out = _held_out(config, fold)
    probes = {
        name: probe_order(fold.train, fold.test, held_out, copy, config)
        for copy, name in enumerate(BROKEN, start=1)
    }
    shares = {name: probed.shares() for name, probed in probes.items()}
    decays = " and ".join(
        f"{probed.fitted.weight_decay:g} ({name})" for name, probed in probes.items()
    )
    protocol = fold.protocol(
        averaging="each clip by itself; the share told, averaged over a video, then over videos",
        selection=selection_of(
            decays, config, f"clips of {len(held_out)} videos of held-out train groups"
        ),
        notes=[*_on_short_videos(fold), *_on_fits(probes)],
    )
    protocol.warn(*_constant(probes), *_unchanged(probes))
    return fold.result(
        "motion_probe",
        {name: mean_of_items([*values.values()]) for name, values in shares.items()},
        protocol,
        # As many clips of either kind, whatever the videos.
        chances=dict.fromkeys(BROKEN, 0.5),
        details={name: probed.details() for name, probed in probes.items()},
        outcomes=[
            outcome
            for name, values in shares.items()
            for outcome in outcomes_of(
                name, [fold.test.names[video] for video in values], [*values.values()]
            )
        ],
    )


def probe_order(
    train: Features, test: Features, held_out: set[str], copy: int, config: MotionConfig
) -> Probed:
    """Fits true clips of ``train`` against one kind of copy; tests on both kinds of ``test``.

    Args:
        train: Values (M, looks * V, D): the true clips first, then each kind of copy.
        test: The same of other videos.
        held_out: Names of the training videos that the weight decay is chosen on; a clip and its
            copy are always on the same side.
        copy: Which kind, from 1.
        config: How the regression is fitted.

    Raises:
        DataError: If no clip of the training videos, or none of the test videos, has a copy that
            differs from it.
    """
    fitted_on, tested = beside_copies(train, copy), beside_copies(test, copy)
    changed = changed_copies(test, copy)
    kept = repeat(changed_copies(train, copy), "m v -> (m k v)", k=2)
    fitted_on = fitted_on.subset(kept)
    for which, names in (("training", fitted_on.names), ("test", changed.nonzero().tolist())):
        if not len(names):
            raise DataError(
                config.data.root,
                f"no {which} clip differs from itself in another order of frames: they all stand "
                "still or repeat themselves, and there is no motion to probe",
            )
    left = set(fitted_on.names)
    if len(config.decays) > 1 and (left <= held_out or not left & held_out):
        raise DataError(
            config.data.root,
            "of the training videos with motion all or none are held out to choose the weight "
            f"decay: more of them must move, {ONE_WEIGHT_DECAY}",
        )
    fitted = fit_chosen(fitted_on, held_out, 2, config)
    chances = predict(fitted.probe, tested, 2).values
    called_broken = chances[:, 1] > chances[:, 0]
    told = called_broken == tested.labels.bool()
    return Probed(told.view(len(test.names), 2, -1), changed, fitted)


def changed_copies(features: Features, copy: int) -> Tensor:
    """Returns which true clips differ from their copy of one kind, from 1: bool (M, V)."""
    looks = rearrange(features.values, "m (k v) d -> m k v d", k=1 + len(BROKEN))
    if features.unchanged is None:
        return torch.ones(looks.shape[0], looks.shape[2], dtype=torch.bool)
    return ~rearrange(features.unchanged, "m (k v) -> m k v", k=1 + len(BROKEN))[:, copy]


def beside_copies(features: Features, copy: int) -> Features:
    """Returns a sample for each true clip, labelled 0, and each of one kind of copy, labelled 1.

    Args:
        features: Values (M, looks * V, D).
        copy: Which kind, from 1.

    Returns:
        Values (M * 2 * V, 1, D), each sample named by its video.
    """
    looks = rearrange(features.values, "m (k v) d -> m k v d", k=1 + len(BROKEN))
    both = looks[:, [0, copy]]
    videos, _, views, _ = both.shape
    return Features(
        values=rearrange(both, "m k v d -> (m k v) 1 d"),
        labels=repeat(torch.arange(2), "k -> (m k v)", m=videos, v=views),
        names=tuple(name for name in features.names for _ in range(2 * views)),
        bad=features.bad,
    )


def _unchanged(probes: dict[str, Probed]) -> list[str]:
    """How many clips are no test of order, and were left out."""
    return [
        f"{name}: {left} of {probed.changed.numel()} test clips are the same in that order of "
        "frames (they stand still or repeat themselves) and are left out."
        for name, probed in probes.items()
        if (left := int((~probed.changed).sum()))
    ]


def _held_out(config: MotionConfig, fold: FrozenFold) -> set[str]:
    """Paths of the training videos that the weight decays are chosen on; classes don't matter."""
    if len(config.decays) == 1:
        return set()
    kept = set(fold.train.names)
    records = tuple(
        dataclasses.replace(record, label=-1)
        for record in fold.manifest.select(config.data.split, fold.fold)
        if record.path in kept
    )
    if len({record.group or record.path for record in records}) < 2:
        raise DataError(
            fold.manifest.root,
            f"the train split of fold {fold.fold} has videos of a single source (group): none can "
            f"be held out to choose the weight decay; add videos of another, {ONE_WEIGHT_DECAY}",
        )
    seed = derive_seed(config.seed, "holdout", fold.fold)
    unlabelled = dataclasses.replace(fold.manifest, records=records)
    _, held_out = unlabelled.holdout(config.holdout, seed, fold.fold)
    return {record.path for record in held_out}


def _on_short_videos(fold: FrozenFold) -> list[str]:
    short, policy = fold.looked_at.num_short, fold.looked_at.short
    if policy == "drop" or not short:
        return []
    where = {"loop": "start over", "pad": "stand still"}[policy]
    return [
        f"{short} test videos are shorter than a clip: where they {where} tells true from broken, "
        "without any motion. views.short: drop leaves them out."
    ]


def _constant(probes: dict[str, Probed]) -> list[str]:
    """Which regressions call every clip the same as its copy, and so tell exactly half of them."""
    return [
        f"{name}: the regression calls every clip the same as its broken copy, so that half of "
        "them are told, whatever the clips show."
        for name, probed in probes.items()
        if (probed.pairs()[:, 0] ^ probed.pairs()[:, 1]).all()
    ]


def _on_fits(probes: dict[str, Probed]) -> list[str]:
    return [
        f"{name}: {note}." for name, probed in probes.items() for note in probed.fitted.caveats()
    ]
