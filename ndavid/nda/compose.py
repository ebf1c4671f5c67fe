"""Several ops as one: a choice per sample, a sequence, and the text form that configs use."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ndavid.errors import ConfigError
from ndavid.nda.base import NegativeAugmentation, Params, ShapeError
from ndavid.nda.cells import crop_to
from ndavid.nda.mixing import CutMix, Mixup, Stitch, TemporalStitch
from ndavid.nda.spatial import Cutout, Jigsaw, PatchResample
from ndavid.nda.temporal import CuboidJigsaw, FrameRepeat, FrameShuffle, Reverse, TemporalJigsaw

OPS: dict[str, type[NegativeAugmentation]] = {
    op.name: op
    for op in (
        Jigsaw,
        Stitch,
        Mixup,
        Cutout,
        CutMix,
        PatchResample,
        FrameShuffle,
        TemporalJigsaw,
        FrameRepeat,
        Reverse,
        CuboidJigsaw,
        TemporalStitch,
    )
}
"""Every single op by the name it has in a spec."""


class _Combination(NegativeAugmentation):
    """Several ops whose parameters travel together, those of the i-th under ``"i."``."""

    def __init__(self, ops: Iterable[NegativeAugmentation]) -> None:
        self.ops = tuple(ops)
        if not self.ops:
            raise ValueError(f"{self.name}: needs at least one op")
        # Properties of the parts, where a single op has properties of its class.
        for trait in ("needs_partner", "clips_only"):
            object.__setattr__(self, trait, any(getattr(op, trait) for op in self.ops))
        axes = frozenset[str]().union(*(op.acts_on for op in self.ops))
        object.__setattr__(self, "acts_on", axes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({list(self.ops)!r})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self.ops == typing.cast(_Combination, other).ops

    def __hash__(self) -> int:
        return hash((type(self), self.ops))

    def flag(self, x: Tensor, params: Params) -> Params:
        """Flag each part by the input of the whole: ops in space and value hardly alter motion."""
        flagged = super().flag(x, params)
        for i, op in enumerate(self.ops):
            flagged = {**flagged, **_pack(i, op.flag(x, _unpack(i, flagged)))}
        return flagged


class OneOf(_Combination):
    """Break each sample with one of several ops, drawn uniformly per sample.

    Every op runs on the whole batch and one gather picks each sample's result: no loop over the
    batch and no shape that depends on the draw, at the price of the ops' summed cost.

    Params:
        ``choice`` int64 ``(B,)``, and the parameters of each op.
    """

    name: ClassVar[str] = "one_of"

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        for op in self.ops:
            op.check(shape)
        self.output_shape(shape)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        shapes = {op.output_shape(shape) for op in self.ops}
        if len(shapes) > 1:
            raise ShapeError(f"one_of: its ops crop {tuple(shape)} differently, to {shapes}")
        return shapes.pop()

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        params = {"choice": torch.randint(len(self.ops), (shape[0],), generator=generator)}
        for i, op in enumerate(self.ops):
            params |= _pack(i, op.sample(shape, generator))
        return params

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        results = [op.apply(x, _unpack(i, params)) for i, op in enumerate(self.ops)]
        return self._chosen(results, params["choice"])

    def apply_to_content(
        self, cells: Tensor, params: Params, shape: Sequence[int], side: int
    ) -> Tensor:
        results = [
            op.apply_to_content(cells, _unpack(i, params), shape, side)
            for i, op in enumerate(self.ops)
        ]
        return self._chosen(results, params["choice"])

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        masks = [op.changed_mask(_unpack(i, params), shape) for i, op in enumerate(self.ops)]
        return self._chosen(masks, params["choice"])

    def _chosen(self, results: list[Tensor], choice: Tensor) -> Tensor:
        # On one device: an op's mask may have followed a flag that lives with the data.
        device = next((r.device for r in results if r.device.type != "cpu"), choice.device)
        choice = choice.to(device)
        own = torch.arange(len(choice), device=device)
        every = torch.cat([result.to(device) for result in results])
        return every.index_select(0, choice * len(choice) + own)


class Compose(_Combination):
    """Break each sample with one op after another.

    The ops must act on different things (``acts_on``: space, time, sample, value). Two ops on the
    same one can undo each other - two jigsaws do so once in 23 - and a sample would come out clean;
    ops on different ones cannot.

    Raises:
        ValueError: two of the ops act on the same thing.
    """

    name: ClassVar[str] = "compose"

    def __init__(self, ops: Iterable[NegativeAugmentation]) -> None:
        super().__init__(ops)
        taken: dict[str, NegativeAugmentation] = {}
        for op in self.ops:
            for axis in sorted(op.acts_on):
                if axis in taken:
                    raise ValueError(
                        f"compose: {taken[axis].name} and {op.name} both act on {axis} and could "
                        "undo each other; keep one of them, or choose between them with '|'"
                    )
                taken[axis] = op

    def check(self, shape: tuple[int, ...]) -> None:
        super().check(shape)
        for op in self.ops:
            op.check(shape)
            shape = op.output_shape(shape)

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        for op in self.ops:
            shape = op.output_shape(shape)
        return tuple(shape)

    def _draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Params:
        params: Params = {}
        for i, op in enumerate(self.ops):
            params |= _pack(i, op.sample(shape, generator))
            shape = op.output_shape(shape)
        return params

    def _apply(self, x: Tensor, params: Params) -> Tensor:
        for i, op in enumerate(self.ops):
            x = op.apply(x, _unpack(i, params))
        return x

    def apply_to_content(
        self, cells: Tensor, params: Params, shape: Sequence[int], side: int
    ) -> Tensor:
        for i, op in enumerate(self.ops):
            cells = op.apply_to_content(cells, _unpack(i, params), shape, side)
            shape = op.output_shape(shape)
        return cells

    def changed_mask(self, params: Params, shape: Sequence[int]) -> Tensor:
        final = self.output_shape(shape)
        masks = []
        for i, op in enumerate(self.ops):
            mask = op.changed_mask(_unpack(i, params), shape)
            masks.append(crop_to(mask.unsqueeze(1), (final[0], 1, *final[2:])).squeeze(1))
            shape = op.output_shape(shape)
        device = next((m.device for m in masks if m.device.type != "cpu"), masks[0].device)
        changed = masks[0].to(device)
        for mask in masks[1:]:
            changed = changed | mask.to(device)
        return changed


def from_spec(spec: str) -> NegativeAugmentation:
    """The op that a line of text describes.

    ``"jigsaw:grid=3,derangement=true"`` is one op with arguments; ``>`` puts ops in sequence,
    ``|`` offers alternatives to choose from per sample, and binds looser: ``"jigsaw > reverse |
    stitch"`` does the first two, or the last. A grid that is not square is ``grid=2x3``.

    Raises:
        ConfigError: an unknown op or argument (naming the nearest), or a value that does not fit.
    """
    alternatives = [
        _combine(Compose, [_parse_op(op, spec) for op in part.split(">")], spec)
        for part in spec.split("|")
    ]
    return _combine(OneOf, alternatives, spec)


def to_spec(op: NegativeAugmentation) -> str:
    """The line of text that describes ``op``: ``from_spec(to_spec(op)) == op``.

    Raises:
        ConfigError: alternatives inside a sequence or inside alternatives, which a spec cannot say.
    """
    if isinstance(op, OneOf | Compose):
        separator, simple = (" | ", OneOf) if isinstance(op, OneOf) else (" > ", _Combination)
        if any(isinstance(part, simple) for part in op.ops) or len(op.ops) < 2:
            raise ConfigError(f"a spec cannot nest ops like {op!r}; build it in Python")
        return separator.join(to_spec(part) for part in op.ops)
    arguments = [
        f"{field.name}={_as_text(getattr(op, field.name))}"
        for field in dataclasses.fields(typing.cast(Any, op))
        if getattr(op, field.name) != field.default
    ]
    return op.name + (":" if arguments else "") + ",".join(arguments)


def _combine(
    kind: type[OneOf] | type[Compose], ops: list[NegativeAugmentation], spec: str
) -> NegativeAugmentation:
    if len(ops) == 1:
        return ops[0]
    try:
        return kind(ops)
    except ValueError as error:
        raise ConfigError(f"{error} (in {spec!r})") from error


def _parse_op(text: str, spec: str) -> NegativeAugmentation:
    name, _, arguments = (part.strip() for part in text.partition(":"))
    if not name:
        raise ConfigError(f"an op is missing in {spec!r}; known: {', '.join(OPS)}")
    if name not in OPS:
        raise ConfigError(
            f"unknown augmentation {name!r}; did you mean {_nearest(name, OPS)!r}? "
            f"known: {', '.join(OPS)}"
        )
    kind = OPS[name]
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(typing.cast(Any, kind))]
    values: dict[str, Any] = {}
    for argument in filter(None, (part.strip() for part in arguments.split(","))):
        key, equals, value = (part.strip() for part in argument.partition("="))
        if key not in known:
            raise ConfigError(
                f"{name} has no argument {key!r}; did you mean {_nearest(key, known)!r}? "
                f"known: {', '.join(known)}"
            )
        if not equals or key in values:
            raise ConfigError(f"{name}: write {key}=VALUE once (in {text.strip()!r})")
        values[key] = _parse_value(name, key, value, hints[key])
    try:
        return kind(**values)
    except ValueError as error:
        raise ConfigError(f"{error} (in {text.strip()!r})") from error


def _parse_value(name: str, key: str, text: str, hint: Any) -> Any:
    """``text`` as the first type of ``hint`` that it fits."""
    choices = typing.get_args(hint) if _is_union(hint) else (hint,)
    for choice in choices:
        if typing.get_origin(choice) is typing.Literal and text in typing.get_args(choice):
            return text
        try:
            if choice is bool:
                return {"true": True, "false": False}[text.lower()]
            if choice in (int, float):
                return choice(text)
            if typing.get_origin(choice) is tuple:
                parts = tuple(int(part) for part in text.lower().split("x"))
                if len(parts) == len(typing.get_args(choice)):
                    return parts
        except (KeyError, ValueError):
            continue
    raise ConfigError(f"{name}: {key}={text!r} is not {_type_name(hint)}")


def _type_name(hint: Any) -> str:
    if _is_union(hint):
        return " or ".join(_type_name(choice) for choice in typing.get_args(hint))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(typing.get_args(hint))
    if typing.get_origin(hint) is tuple:
        return "ROWSxCOLS"
    return {bool: "true or false", int: "a whole number", float: "a number"}[hint]


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _nearest(word: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]


def _pack(i: int, params: Params) -> Params:
    return {f"{i}.{key}": value for key, value in params.items()}


def _unpack(i: int, params: Params) -> Params:
    prefix = f"{i}."
    return {key[len(prefix) :]: value for key, value in params.items() if key.startswith(prefix)}
