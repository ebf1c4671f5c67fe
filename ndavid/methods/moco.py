"""Momentum contrast on images or clips, with negatives made by breaking the views themselves.

Papers: He et al. 2020 and Chen et al. 2020 (MoCo and MoCo v2: queue, key encoder, loss); Sinha et
al. 2021, "Negative Data Augmentation" (broken data as negatives); Ge et al. 2021, "Robust
Contrastive Learning Using Negative Samples with Diminished Semantics" (such negatives through the
key encoder, never queued).

A step, in MoCo's order: queries; the key encoder moves; keys; loss; the keys enter the queue.

    logits = [ q . k+ | q . queue | q . k_broken ] / temperature

Differences from the papers: with ``optim.accumulate_steps`` every forward moves the key encoder, as
it does without; ``nda.encoder=query`` encodes broken views with gradient, and ``nda.norm`` chooses
the company they keep in batch norm, for the reasons that ``MocoNdaConfig`` gives.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ndavid.collectives import gather_with_grad, gather_without_grad
from ndavid.errors import ConfigError
from ndavid.losses.contrastive import InfoNce, contrastive_metrics, info_nce
from ndavid.methods.branch import branch
from ndavid.methods.broken_samples import BrokenSamples, as_pixels
from ndavid.methods.nda_config import MocoNdaConfig
from ndavid.models.batchnorm import running_statistics, without_stat_updates
from ndavid.models.heads import pool
from ndavid.models.moco import MoCo, MocoConfig
from ndavid.models.normalize import Normalize
from ndavid.nda.content import Content

Augment = Callable[[Tensor, torch.Generator | None], Tensor]
"""Pixels (B, C, [T,] H, W) and a CPU generator -> one augmented view of each."""

Encode = Callable[[Tensor], Tensor]


class MocoMethod(nn.Module):
    """MoCo's objective on a batch of views, with NDA negatives if ``nda.spec`` names an operation.

    Call it with ``batch["views"]``, uint8 or float in [0, 1], (B, V, C, H, W) or
    (B, V, C, T, H, W): the query's view, the key's, and with ``nda.view=fresh`` a third. Given
    ``augment``, it makes the views itself, of ``batch["image"]`` or ``batch["video"]``.

    Where every frame of a clip has colours of its own, ``content`` and ``uncoloured``, which
    ``MultiViewClips`` adds, tell what changed. An ``augment`` cannot tell: let it draw colours once
    a clip.

    Args:
        moco: encoder, head and queue.
        nda: the negatives; none by default.
        temperature: divides the cosines; MoCo v2's by default.
        symmetric: each view is a query and a key once; the loss is the mean of both directions.
        augment: makes views on the device.

    Raises:
        ConfigError: on a temperature <= 0, or an NDA operation that cannot be read.
    """

    # The queue is the same on every rank by construction: all write the same gathered keys. Left to
    # itself, DDP would send its 32 MB (at 65536 keys) to every rank before every forward.
    _ddp_params_and_buffers_to_ignore = ("moco.queue", "moco.queue_pointer")

    def __init__(
        self,
        moco: MocoConfig,
        nda: MocoNdaConfig | None = None,
        *,
        temperature: float = 0.2,
        symmetric: bool = False,
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {temperature}")
        self.nda = nda or MocoNdaConfig()
        self.operation = self.nda.operation()
        self.temperature = temperature
        self.symmetric = symmetric
        self.augment = augment
        self.pixels = Normalize()
        self.moco = MoCo(moco)

    def compile_targets(self) -> tuple[nn.Module, ...]:
        """The submodules worth ``torch.compile``: both encoders.

        Raises ConfigError with ``checkpoint_activations``, which a graph cannot hold.
        """
        return (self.moco.encoder.compilable(), self.moco.key_encoder)

    def features(self, pixels: Tensor) -> Tensor:
        """Images or clips, uint8 (B, C, [T,] H, W) -> what evaluations see, (B, feature_dim)."""
        return pool(self.moco.encoder(self.pixels(pixels)))

    def broken_samples(
        self, batch: dict[str, Tensor], *, generator: torch.Generator | None
    ) -> BrokenSamples | None:
        """The view that is broken and what it becomes, of `forward`'s first direction."""
        nda_generator = branch(generator)
        views = self._views(batch, generator, nda_generator)
        broken = self._break(views, self._contents(batch), 0, 1, nda_generator)
        if broken.active is None:
            return None
        true = views[{"query": 0, "key": 1, "fresh": -1}[self.nda.view]]
        return BrokenSamples(
            as_pixels(true, self.pixels),
            as_pixels(broken.pixels[0], self.pixels),
            broken.active[:, 0],
            f"of each sample the {self.nda.view} view, augmented",
        )

    def forward(
        self, batch: dict[str, Tensor], *, generator: torch.Generator | None, step: int
    ) -> dict[str, Tensor]:
        """One step's ``loss`` (with gradient) and detached metrics (`contrastive_metrics`).

        With NDA also ``nda_unchanged``: the share of broken samples that came out as they went in.
        They are masked. ``generator`` (CPU) draws augmentation, shuffling and the NDA parameters;
        ``step`` is where the NDA weight's warm-up stands. In eval mode, too, the key encoder moves
        and keys are queued: to look and not to touch, use ``features``. Raises ValueError on a
        batch without the views it needs.
        """
        nda_generator = branch(generator)
        views = self._views(batch, generator, nda_generator)
        directions = [(0, 1), (1, 0)] if self.symmetric else [(0, 1)]
        contents = self._contents(batch)
        broken = [self._break(views, contents, q, k, nda_generator) for q, k in directions]
        by_query = self.nda.encoder == "query"

        def keys(pixels: Tensor) -> Tensor:
            return self.moco.keys(pixels, generator)

        queries, from_query = self._encode_each(
            self.moco.queries, [views[q] for q, _ in directions], broken if by_query else None
        )
        self.moco.update_key_encoder()
        positives, from_key = self._encode_each(
            keys, [views[k] for _, k in directions], None if by_query else broken
        )
        negatives = from_query if by_query else from_key
        results = [
            self._contrast(q, k, one, each.active, step)
            for q, k, one, each in zip(queries, positives, negatives, broken, strict=True)
        ]
        for each in positives:
            self.moco.enqueue(each)
        unchanged = [each.unchanged for each in broken if each.unchanged is not None]
        metrics = {"nda_unchanged": torch.stack(unchanged).float().mean()} if unchanged else {}
        return _mean_outputs(results) | metrics

    def _views(
        self,
        batch: dict[str, Tensor],
        generator: torch.Generator | None,
        nda_generator: torch.Generator | None,
    ) -> list[Tensor]:
        """The normalised views, each (B, C, [T,] H, W)."""
        needed = self.nda.num_views
        if "views" in batch:
            views = batch["views"].unbind(dim=1)
        elif self.augment is not None:
            pixels = batch["image"] if "image" in batch else batch["video"]
            draws = (generator, generator, nda_generator)[:needed]
            views = tuple(self.augment(pixels, each) for each in draws)
        else:
            raise ValueError("a batch has no views, and no augmentation was given to make them")
        if len(views) < needed:
            raise ValueError(f"{len(views)} views a sample are given, {needed} are needed")
        return [self.pixels(view) for view in views[:needed]]

    def _contents(self, batch: dict[str, Tensor]) -> list[Content] | None:
        """What each view shows, if the data tell it."""
        if self.operation is None or "views" not in batch or "content" not in batch:
            return None
        needed = self.nda.num_views
        cells = batch["content"].unsqueeze(2).unbind(dim=1)[:needed]
        uncoloured = batch["uncoloured"].unbind(dim=1)[:needed]
        return [Content(c, self.pixels(u)) for c, u in zip(cells, uncoloured, strict=True)]

    def _break(
        self,
        views: Sequence[Tensor],
        contents: Sequence[Content] | None,
        query: int,
        key: int,
        generator: torch.Generator | None,
    ) -> _Broken:
        """Breaks the view that ``nda.view`` names, ``nda.per_sample`` times."""
        if self.operation is None:
            return _Broken((), None, None)
        place = {"query": query, "key": key, "fresh": -1}[self.nda.view]
        content = contents[place] if contents else None
        draws = [
            self.operation.broken(views[place], generator=generator, content=content)
            for _ in range(self.nda.per_sample)
        ]
        return _Broken(
            tuple(draw.pixels for draw in draws),
            torch.stack([draw.changed for draw in draws], dim=1),
            torch.stack([draw.params["unchanged"] for draw in draws], dim=1),
        )

    def _encode_each(
        self, encode: Encode, true: Sequence[Tensor], broken: Sequence[_Broken] | None
    ) -> tuple[list[Tensor], list[tuple[Tensor, ...]]]:
        """Vectors (B, dim) of the true pixels, and of what was broken, direction by direction."""
        made = [()] * len(true) if broken is None else [each.pixels for each in broken]
        if self.nda.norm == "shared":
            both = [
                encode(torch.cat([one, *others])).split(len(one))
                for one, others in zip(true, made, strict=True)
            ]
            return [vectors[0] for vectors in both], [vectors[1:] for vectors in both]
        vectors = [encode(one) for one in true]
        # After the last true ones, which draw their shuffles as without NDA, and move the running
        # statistics that a backward pass through `running_statistics` reads again.
        surroundings = running_statistics if self.nda.norm == "running" else without_stat_updates
        with surroundings(self.moco):
            negatives = [tuple(encode(one) for one in each) for each in made]
        return vectors, negatives

    def _contrast(
        self,
        query: Tensor,
        positive: Tensor,
        broken: tuple[Tensor, ...],
        active: Tensor | None,
        step: int,
    ) -> InfoNce:
        """The loss of one direction, against the queue and what was broken."""
        negatives, mask = None, active
        if broken:
            assert active is not None
            negatives = torch.stack(broken, dim=1)
            if self.nda.share == "batch":
                negatives = gather_with_grad(negatives).flatten(0, 1)
                mask = gather_without_grad(active).flatten()
        return info_nce(
            query,
            positive,
            # A copy: the queue is written before the backward pass reads it.
            self.moco.queue.clone(),
            negatives,
            temperature=self.temperature,
            nda_weight=self.nda.weight_at(step),
            nda_scale=self.nda.scale,
            nda_mask=mask,
        )


class _Broken(NamedTuple):
    """What one direction's view was broken into."""

    pixels: tuple[Tensor, ...]
    """one (B, C, [T,] H, W) a draw"""
    active: Tensor | None
    """(B, draws), False where the sample did not change, or an op flagged it"""
    unchanged: Tensor | None
    """(B, draws), True where the sample came out as it went in"""


def _mean_outputs(results: Sequence[InfoNce]) -> dict[str, Tensor]:
    """Loss and metrics, averaged over directions; a metric that one lacks is the other's."""
    loss = torch.stack([one.loss for one in results]).mean()
    metrics = [contrastive_metrics(one) for one in results]
    names = metrics[0]
    return {"loss": loss} | {
        name: torch.stack([one[name] for one in metrics]).nanmean() for name in names
    }


def warn_of_long_queue(queue_size: int, num_samples: int) -> None:
    """Warns where the queue is so long that it holds keys of the very samples it is met by."""
    if queue_size >= num_samples:
        warnings.warn(
            f"model.queue_size {queue_size} is not below the {num_samples} training samples: "
            "a query meets older keys of its own sample as negatives; MoCo keeps the queue well "
            "below (4096 of CIFAR's 50000)",
            stacklevel=2,
        )
