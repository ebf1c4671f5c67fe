"""The contract of a negative augmentation: draw parameters, then apply them.

Negative Data Augmentation (Sinha, Ayush, Song, Uzkent, Jin, Ermon; ICLR 2021; arXiv 2102.05113)
breaks a sample on purpose and tells the model that the result is *not* data. Here each op draws its
parameters apart from applying them (the split kornia uses), so a draw can be replayed, inspected,
and carried to another device.

Clips are ``(B, C, T, H, W)``, images ``(B, C, H, W)``; no op cares what ``C`` holds.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ndavid.errors import ConfigError
from ndavid.nda.content import Content, cell_side, crop_cells, overwritten

Params = dict[str, Tensor]
"""What one call drew: named tensors on the CPU, each with the batch as its first dimension."""


FLAGS = ("static", "unchanged")
"""Parameters that say of a sample, bool ``(B,)``: whatever was done to it, it is no negative."""


class ShapeError(ConfigError, ValueError):
    """A batch that an op cannot break: too few samples, frames or pixels, or an uneven grid."""


class Broken(NamedTuple):
    """What one draw made of a batch, and which of its samples are negatives."""

    pixels: Tensor
    """The broken batch."""
    params: Params
    """As drawn, flagged and compared: ``unchanged`` ``(B,)`` is among them."""
    changed: Tensor
    """bool ``(B,)``: False where the output shows what the input shows, or the op flagged it."""


class NegativeAugmentation(abc.ABC):
    """Base of all ops: ``op(x)`` is ``op.apply(x, op.flag(x, op.sample(x.shape)))``.

    Class attributes:
        name: the word for this op in a spec.
        needs_partner: the op mixes two samples, so it needs a batch of at least two.
        clips_only: the op needs a time axis.
        acts_on: which coordinates of a pixel's origin the op alters, out of "space", "time" and
            "sample", or "value" where it overwrites. ``Compose`` relies on it.

    Every draw moves or replaces something, and still the content may come out as it went in: frames
    of a still in another order, equal patches that change place, a half of an equal partner. Only
    the data can tell. ``broken`` compares output and input and masks such samples, for every op and
    every combination of ops alike. Pixels cannot tell it of clips whose frames have colours of
    their own, drawn for each anew; there ``Content`` can.
    """

    name: ClassVar[str]
    needs_partner: ClassVar[bool] = False
    clips_only: ClassVar[bool] = False
    acts_on: ClassVar[frozenset[str]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        # Here, once for all ops, so that no mask can forget a flag.
        super().__init_subclass__(**kwargs)
        if "changed_mask" in vars(cls):
            setattr(cls, "changed_mask", _without_flagged(vars(cls)["changed_mask"]))  # noqa: B010

    def sample(self, shape: Sequence[int], generator: torch.Generator | None = None) -> Params:
        """Draw the parameters for a batch: a pure function of ``shape`` and ``generator``.

        Args:
            shape: ``(B, C, T, H, W)`` or ``(B, C, H, W)``.
            generator: a CPU generator; ``None`` makes a fresh one, seeded by the operating system.
                The global generator is never touched.

        Raises:
            ShapeError: a ``ValueError``, where the op cannot change every sample of such a batch.
        """
        shape = tuple(shape)
        self.check(shape)
        return self._draw(shape, _cpu_generator(generator))

    def flag(self, x: Tensor, params: Params) -> Params:
        """Bring the parameters to ``x``'s device and add what only the data can tell.

        Most ops add nothing. Ops with ``min_motion`` add ``static`` ``(B,)``: samples that barely
        move, whose "negative" would be the positive. Nothing here waits for the device. What
        did not change at all is found by `compare`. Of clips with ``content``, ``x`` is the
        smaller, ``uncoloured`` form.
        """
        return to_device(params, x.device)

    def apply(self, x: Tensor, params: Params) -> Tensor:
        """Break ``x`` as ``params`` say: pure, and the same on every device."""
        params = to_device(params, x.device)
        for key, value in params.items():
            if value.shape[0] != x.shape[0]:
                raise ShapeError(
                    f"{self.name}: parameter {key!r} was drawn for a batch of {value.shape[0]}, "
                    f"x has {x.shape[0]}; draw with op.sample(x.shape)"
                )
        return self._apply(x, params)

    def compare(
        self, x: Tensor, broken: Tensor, params: Params, content: Content | None = None
    ) -> Params:
        """Add ``unchanged`` ``(B,)``: samples of ``broken`` that equal those of ``x``, bit for bit.

        Args:
            x: what was broken.
            broken: ``apply(x, params)``.
            params: flagged, so that they lie on the device of ``x``.
            content: what ``x`` shows, where its pixels hide it: samples whose pixels differ in
                frames that show the same are unchanged, too.

        Returns:
            ``params`` and the flag, which ``changed_mask`` heeds. A crop is no change. Nothing here
            waits for the device.
        """
        changed = differs(x, broken)
        if content is not None:
            after = self.apply_to_content(
                content.cells, params, x.shape, cell_side(content, x.shape)
            )
            changed = changed & differs(content.cells, after)
        return {**params, "unchanged": ~changed}

    def apply_to_content(
        self, cells: Tensor, params: Params, shape: Sequence[int], side: int
    ) -> Tensor:
        """What clips show when they were broken: the ids of their cells, moved as the pixels are.

        Exact for ops that move whole cells (``moved_patch``). Any other op is taken to show
        something new in every cell that ``changed_mask`` touches: there the pixels decide alone.

        Args:
            cells: int64 ``(B, C, T, g, g)``, with any C, as `Content` has them.
            params: as drawn for clips of ``shape``, flagged or not.
            shape: of the clips.
            side: pixels of a cell's side.

        Returns:
            int64 of the same shape, or without cells that the op crops away whole.
        """
        after = self.output_shape(shape)
        cells = crop_cells(cells, after, side)
        patch = self.moved_patch(shape)
        if patch is not None and all(
            part == whole or part % side == 0 for part, whole in zip(patch, after[-2:], strict=True)
        ):
            return self.apply(cells, params)
        return overwritten(cells, self.changed_mask(params, shape), side)

    def moved_patch(self, shape: Sequence[int]) -> tuple[int, int] | None:
        """Height and width of the patches that the op moves whole, to other places, frames or
        samples, if that is all it does; None (the default) if it is not.
        """
        return None

    def __call__(self, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw, flag and apply in one go; the shape, dtype and device of ``x`` are kept."""
        return self.apply(x, self.flag(x, self.sample(x.shape, generator)))

    def broken(
        self,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
        content: Content | None = None,
    ) -> Broken:
        """The same as a call, and which samples are negatives: draw, flag, apply and compare.

        A loss must leave out the samples that are not ``changed``: their "negative" is the positive
        itself. Clips whose colours were drawn for every frame anew need their ``content``, or the
        colours alone pass for change and for motion.
        """
        drawn = self.sample(x.shape, generator)
        params = self.flag(x if content is None else content.uncoloured, drawn)
        pixels = self.apply(x, params)
        params = self.compare(x, pixels, params, content)
        # Not the comparison alone: an op's own flags belong to its parts, where it has some.
        changed = self.changed_mask(params, x.shape).flatten(1).any(1)
        return Broken(pixels, params, changed.to(x.device))

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape that comes out; only ops with ``crop=True`` change it."""
        return tuple(shape)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ``ShapeError`` where no valid draw exists for a batch of this shape."""
        if len(shape) not in (4, 5):
            raise ShapeError(
                f"{self.name}: expected clips (B, C, T, H, W) or images (B, C, H, W), got {shape}"
            )
        if self.clips_only and len(shape) != 5:
            raise ShapeError(
                f"{self.name} works on clips (B, C, T, H, W), got {shape}; "
                "for images take a spatial op such as jigsaw"
            )
        if self.needs_partner and shape[0] < 2:
            raise ShapeError(
                f"{self.name} mixes each sample with another one, so it needs a batch of at least "
                f"2, got {shape[0]}; raise the batch size or take an op without a partner"
            )

    @abc.abstractmethod
    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        """Where content was replaced or moved, for input of ``shape``.

        Returns:
            bool ``(B, T, H, W)`` for clips, ``(B, H, W)`` for images. Outside it the output equals
            the input bit for bit. Samples flagged in ``params`` (`FLAGS`) are False throughout, the
            base class sees to it: whatever was done to them, they are no negatives.
        """

    @abc.abstractmethod
    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params: ...

    @abc.abstractmethod
    def _apply(self, x: Tensor, params: Params) -> Tensor: ...


def is_clip(shape: Sequence[int]) -> bool:
    """Whether a batch of this shape has a time axis."""
    return len(shape) == 5


def num_frames(shape: Sequence[int]) -> int:
    """Frames in each sample; an image is one frame."""
    return shape[2] if is_clip(shape) else 1


def mask_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The shape of ``changed_mask``: that of the batch, without its channels."""
    return (shape[0], *shape[2:])


def to_device(params: Params, device: torch.device) -> Params:
    """The same parameters on ``device``, without waiting for the copy."""
    if all(value.device == device for value in params.values()):
        return params
    return {key: value.to(device, non_blocking=True) for key, value in params.items()}


def differs(x: Tensor, broken: Tensor) -> Tensor:
    """Which samples of ``broken`` are not those of ``x``, up to a crop: bool ``(B,)``."""
    unequal = (cropped_like(x, broken) != broken).flatten(1)
    if unequal.shape[1] % 8 == 0:
        # Eight at a time: bytes are reduced slowly on the CPU.
        unequal = unequal.view(torch.int64)
    return unequal.amax(1) != 0


def cropped_like(x: Tensor, other: Tensor) -> Tensor:
    """``x`` without what lies beyond the shape of ``other`` at the end of any dimension."""
    return x[tuple(slice(size) for size in other.shape)]


_Mask = Callable[[Any, Params, Sequence[int]], Tensor]


def _without_flagged(mask_of: _Mask) -> _Mask:
    """``changed_mask`` that is False throughout the flagged samples."""

    @functools.wraps(mask_of)
    def changed_mask(self: Any, params: Params, shape: Sequence[int]) -> Tensor:
        mask = mask_of(self, params, shape)
        for flag in FLAGS:
            if flag in params:
                flagged = params[flag].view(-1, *[1] * (mask.dim() - 1))
                mask = mask.to(flagged.device) & ~flagged
        return mask

    return changed_mask


def _cpu_generator(generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    elif generator.device.type != "cpu":
        raise ValueError(
            f"parameters are drawn on the CPU so that devices agree; got a generator on "
            f"{generator.device}: use torch.Generator()"
        )
    return generator
