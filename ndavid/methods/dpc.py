"""Dense predictive coding with negatives made by breaking the clips themselves.

Papers: Han, Xie and Zisserman 2019, "Video Representation Learning by Dense Predictive Coding"
(model and dense loss); Sinha et al. 2021, "Negative Data Augmentation" (broken data as negatives).

Every prediction p[b, i, c] (sample, step, cell) is one row of a softmax. Its positive is the target
f[b, i, c]; its negatives are all other targets of the batch, on all ranks; its NDA negatives, the
features of clips broken on purpose. Three decisions keep those from being positives in disguise:

* A cell that the operation left alone is masked, and so are a block flagged as static and what came
  out as it went in: a still background in another order of frames, a looped clip. Across blocks
  (``nda.span=clip``), a cell that came from the same cell of another block counts as left alone.
* A row meets the *same cell* of the broken maps (``nda.align``). A jigsaw moves the row's positive,
  all but intact, to another cell; and broken copies of other cells are broken copies of what are
  easy negatives anyway.
* With ``nda.share=batch``, a row does not meet the clips that borrowed content from its own sample:
  where stitch pasted it, the cell holds the row's positive.

With ``nda.entry=pooled`` broken features do not enter that softmax, where cells meet cells, but one
of their own: a row a (sample, step), its positive the pooled target, its negatives pooled likewise.
Were they put beside the positive of a cell, a prediction could tell them by being of a cell at all.

Differences from the papers: negatives are gathered across ranks with gradient (DPC's came from one
GPU); a temperature and unit-length features are options (DPC has neither).
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ndavid.collectives import gather_with_grad, rank
from ndavid.errors import ConfigError
from ndavid.losses.chunked import info_nce_in_chunks
from ndavid.losses.contrastive import (
    InfoNce,
    contrastive_metrics,
    info_nce_from_similarities,
    paired_similarity,
    similarity,
)
from ndavid.methods.broken_blocks import (
    BrokenBlocks,
    break_blocks,
    changed_cells,
    refuse_whole_block_moves,
    without_repeats,
)
from ndavid.methods.broken_samples import BrokenSamples, as_pixels
from ndavid.methods.nda_columns import (
    NATURAL_ORDER,
    DealtNegatives,
    columns_of,
    deal_negatives,
    dense_rows,
)
from ndavid.methods.nda_config import NdaConfig
from ndavid.models.batchnorm import without_stat_updates
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.normalize import Normalize
from ndavid.nda.content import Content


class DpcMethod(nn.Module):
    """DPC's objective on a batch of clips, with NDA negatives if ``nda.spec`` names an operation.

    Call it with ``batch["video"]``, uint8 (B, C, num_blocks * block_len, H, W), and, where every
    frame has colours of its own, with the ``content`` and ``uncoloured`` that ``ClipDataset`` adds:
    else the colours of a still's frames would pass for a change of their order. Rows are not
    normalised and the temperature is 1 by default, as in DPC; ``normalize=True`` compares unit
    vectors (then give a temperature, such as 0.1). ``chunk_rows`` above 0 scores so many rows at a
    time (`info_nce_in_chunks`): memory then grows with the batch and not with its square, at about
    the same speed; loss, gradients and metrics differ in rounding alone.

    Raises:
        ConfigError: on a temperature <= 0 or chunk_rows < 0, or an NDA operation that cannot be
            read, that moves whole blocks (`refuse_whole_block_moves`), or that needs a partner in a
            batch of one.
        ValueError: on clips of another length than the model's.
    """

    def __init__(
        self,
        dpc: DpcConfig,
        nda: NdaConfig | None = None,
        *,
        temperature: float = 1.0,
        normalize: bool = False,
        chunk_rows: int = 0,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ConfigError(f"temperature must be above 0, got {temperature}")
        if chunk_rows < 0:
            raise ConfigError(f"chunk_rows must be 0 (all rows at once) or more, got {chunk_rows}")
        self.nda = nda or NdaConfig()
        self.operation = self.nda.operation()
        self.temperature = temperature
        self.unit_length = normalize
        self.chunk_rows = chunk_rows
        self.pixels = Normalize()
        self.dpc = DPC(dpc)
        # Targets are blocks encoded one by one; a past is read in order, and may be reordered.
        self.may_repeat_targets = self.nda.span == "clip" and self.nda.where != "context"
        if self.operation is not None and self.may_repeat_targets:
            refuse_whole_block_moves(
                self.operation,
                self.nda.spec,
                num_blocks=dpc.pred_steps if self.nda.where == "future" else dpc.num_blocks,
                block_len=dpc.block_len,
            )

    def compile_targets(self) -> tuple[nn.Module, ...]:
        """The submodules worth ``torch.compile``: the encoder, which is nearly all of the time.

        The rest draws parameters on the CPU and talks to other ranks, which a graph cannot hold.
        Raises ConfigError with ``checkpoint_activations``, which a graph cannot hold either.
        """
        return (self.dpc.encoder.compilable(),)

    def broken_samples(
        self, batch: dict[str, Tensor], *, generator: torch.Generator | None
    ) -> BrokenSamples | None:
        """The blocks that are broken, one after the other, and what becomes of them."""
        if self.operation is None:
            return None
        originals = self._blocks_to_break(self._blocks(batch["video"]))
        broken = self._break(originals, self._content_to_break(batch), 1, generator)
        before, after = (
            as_pixels(rearrange(blocks, "b n c t h w -> b c (n t) h w"), self.pixels)
            for blocks in (originals, broken.blocks)
        )
        count, length = originals.shape[1], originals.shape[3]
        which = {"future": "predicted", "all": "", "context": "past"}[self.nda.where]
        noun = "block" if count == 1 else "blocks"
        note = f"{count} {which} {noun} of {length} frames, augmented; one draw for each "
        used = (broken.changed.flatten(1) > 0).any(dim=1)
        return BrokenSamples(before, after, used, " ".join((note + self.nda.span).split()))

    def forward(
        self, batch: dict[str, Tensor], *, generator: torch.Generator | None, step: int
    ) -> dict[str, Tensor]:
        """One step's ``loss`` (with gradient) and detached metrics (`contrastive_metrics`).

        With NDA also ``nda_unchanged``: the share of broken blocks that came out as they went in.
        They are masked. ``generator`` (CPU) draws the NDA parameters; ``step`` is where the
        weight's warm-up stands.
        """
        blocks = self._blocks(batch["video"])
        predictions, targets = self.dpc(blocks)
        nda = None
        if self.operation is not None:
            content = self._content_to_break(batch)
            nda = self._negatives(blocks, content, predictions, targets, generator)
        weight, pooled = self.nda.weight_at(step), self.nda.entry == "pooled"
        contrast = self._contrast_in_chunks if self.chunk_rows else self._contrast
        among_cells = None if nda is None or pooled else nda.dealt
        loss, metrics = contrast(predictions, targets, among_cells, weight)
        if nda is not None:
            if pooled:
                of_maps = self._contrast_pooled(predictions, targets, nda.dealt, weight)
                if weight > 0:  # not even a gradient of 0, which would change the order of sums
                    loss = loss + of_maps.loss
                metrics |= contrastive_metrics(of_maps)
            metrics["nda_unchanged"] = nda.unchanged
        return {"loss": loss} | metrics

    def _contrast(
        self, predictions: Tensor, targets: Tensor, nda: DealtNegatives | None, weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and metrics of all rows at once."""
        queries, keys = self._rows(predictions), self._rows(targets)
        columns = self._columns(keys, nda)
        own_column = rank() * len(keys) + torch.arange(len(keys), device=keys.device)
        others = torch.arange(len(columns), device=keys.device) != own_column.unsqueeze(1)
        broken = columns_of(nda, predictions) if nda else None
        result = info_nce_from_similarities(
            paired_similarity(queries, keys),
            similarity(queries, columns),
            broken.similarity if broken else None,
            temperature=self.temperature,
            nda_weight=weight,
            nda_scale=self.nda.scale,
            negative_mask=others,
            nda_mask=broken.mask if broken else None,
        )
        return result.loss, contrastive_metrics(result)

    def _contrast_in_chunks(
        self, predictions: Tensor, targets: Tensor, nda: DealtNegatives | None, weight: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, ``chunk_rows`` rows at a time, in the order in which they share negatives."""
        keys = self._rows(targets)
        order = nda.order if nda else NATURAL_ORDER
        own_column = rank() * len(keys) + torch.arange(len(keys), device=keys.device)
        batch, steps, _, height, width = targets.shape
        places = own_column.reshape(batch, steps, 1, height, width)
        return info_nce_in_chunks(
            self._rows(predictions, order),
            self._rows(targets, order),
            self._columns(keys, nda),
            dense_rows(places, order).squeeze(1),
            nda.negatives if nda else None,
            chunk_rows=self.chunk_rows,
            temperature=self.temperature,
            nda_weight=weight,
            nda_scale=self.nda.scale,
        )

    def _contrast_pooled(
        self, predictions: Tensor, targets: Tensor, nda: DealtNegatives, weight: float
    ) -> InfoNce:
        """Each pooled prediction's own target against what is broken, both pooled."""
        predictions, targets = _pooled(predictions), _pooled(targets)
        broken = columns_of(nda, targets)
        return info_nce_from_similarities(
            paired_similarity(self._rows(predictions), self._rows(targets)),
            nda=broken.similarity,
            temperature=self.temperature,
            nda_weight=weight,
            nda_scale=self.nda.scale,
            nda_mask=broken.mask,
        )

    def _columns(self, keys: Tensor, nda: DealtNegatives | None) -> Tensor:
        """The targets of all ranks, (K, D), which all rows meet."""
        columns = gather_with_grad(keys)
        if nda is None and len(columns) == 1:
            raise ValueError("one prediction has no negatives: use a larger batch or more cells")
        return columns

    def _blocks(self, video: Tensor) -> Tensor:
        """uint8 (B, C, N * T, H, W) -> normalised blocks (B, N, C, T, H, W)."""
        config = self.dpc.config
        if video.dim() != 5 or video.shape[2] != config.num_blocks * config.block_len:
            raise ValueError(
                f"expected clips (B, C, {config.num_blocks} * {config.block_len}, H, W), "
                f"got {tuple(video.shape)}"
            )
        # Cut while it is bytes, so that the encoder gets its (B * N) clips without another copy.
        clips = rearrange(video, "b c (n t) h w -> (b n) c t h w", n=config.num_blocks)
        return rearrange(self.pixels(clips), "(b n) c t h w -> b n c t h w", n=config.num_blocks)

    def _negatives(
        self,
        blocks: Tensor,
        content: Content | None,
        predictions: Tensor,
        targets: Tensor,
        generator: torch.Generator | None,
    ) -> _Negatives:
        originals = self._blocks_to_break(blocks)
        broken = self._break(originals, content, self.nda.per_sample, generator)
        features = self._encode_broken(broken.blocks)
        used = self._used_cells(broken, features)
        # A broken past gives a false prediction, whose counterpart is the true target.
        true = targets if self.nda.where == "context" else predictions
        if self.nda.entry == "pooled":
            true, features = _pooled(true), _pooled(features)
        dealt = deal_negatives(
            self.nda, self._comparable(true), self._comparable(features), used, broken.partner
        )
        same = ~broken.differs.flatten(start_dim=2).any(dim=2)
        return _Negatives(dealt, same.float().mean())

    def _break(
        self,
        originals: Tensor,
        content: Content | None,
        draws: int,
        generator: torch.Generator | None,
    ) -> BrokenBlocks:
        assert self.operation is not None
        broken = break_blocks(
            self.operation,
            originals,
            span=self.nda.span,
            draws=draws,
            generator=generator,
            content=content,
        )
        return without_repeats(broken, originals, content) if self.may_repeat_targets else broken

    def _content_to_break(self, batch: dict[str, Tensor]) -> Content | None:
        """What the blocks that are broken show, if the data tell it."""
        if "content" not in batch:
            return None
        cells = rearrange(
            batch["content"], "b (n t) h w -> b n () t h w", n=self.dpc.config.num_blocks
        )
        uncoloured = self._blocks(batch["uncoloured"])
        return Content(self._blocks_to_break(cells), self._blocks_to_break(uncoloured))

    def _blocks_to_break(self, blocks: Tensor) -> Tensor:
        context, future = self.dpc.split(blocks)
        return {"future": future, "all": blocks, "context": context}[self.nda.where]

    def _encode_broken(self, blocks: Tensor) -> Tensor:
        """Broken blocks -> false targets (KB, Q, D, h, w), or false predictions (KB, P, D, h, w).

        A forward of its own: broken clips neither share batch statistics with the true ones nor
        move the running statistics.
        """
        gradient = torch.no_grad() if self.nda.stop_grad else nullcontext()
        with gradient, without_stat_updates(self.dpc):
            features = self.dpc.encode(blocks)
            return self.dpc.predict_from(features) if self.nda.where == "context" else features

    def _used_cells(self, broken: BrokenBlocks, features: Tensor) -> Tensor:
        """Bool (KB, Q, h, w): which of the features (KB, Q, D, h, w) are negatives.

        Pooled: (KB, Q, 1, 1).
        """
        changed, differs = broken.changed, broken.differs
        steps, _, height, width = features.shape[1:]
        if self.nda.where == "context":
            # Every step is predicted from all of the past.
            changed = changed.mean(dim=1, keepdim=True).expand(-1, steps, -1, -1)
            differs = differs.any(dim=1, keepdim=True).expand(-1, steps, -1, -1)
        # A pooled map is one cell.
        grid = (1, 1) if self.nda.entry == "pooled" else (height, width)
        return changed_cells(changed, differs, grid, self.nda.least_changed)

    def _rows(self, maps: Tensor, order: str = NATURAL_ORDER) -> Tensor:
        return dense_rows(self._comparable(maps), order)

    def _comparable(self, maps: Tensor) -> Tensor:
        """Maps (B, P, D, h, w) as the loss compares them: float32, of unit length if asked."""
        maps = maps.float()
        return F.normalize(maps, dim=2) if self.unit_length else maps


def _pooled(maps: Tensor) -> Tensor:
    """The mean over space, float32: maps of a single cell, (B, P, D, 1, 1)."""
    return maps.float().mean(dim=(-2, -1), keepdim=True)


class _Negatives(NamedTuple):
    """The broken features of a step, dealt to rows, and how many are none."""

    dealt: DealtNegatives
    unchanged: Tensor
    """Scalar: the share of broken blocks that came out as they went in."""
