"""An image encoder cut where its map gets smaller, without touching its parameters.

Detectors read more than the last map: a feature pyramid wants one map a resolution, a C4 detector
runs the last stage on regions instead of the image. The encoder stays one module under its own
parameter names, so that its weights provably are the checkpoint's; the stages are lists of its
submodules' names.

That an encoder really is its submodules in a row is not believed but tried, on a random image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ndavid.errors import ConfigError
from ndavid.models.encoders.base import Encoder

_PROBE_SIDE = 128


@dataclass(frozen=True)
class Stage:
    """Submodules that work at one resolution.

    Attributes:
        links: their names in the encoder, in order.
        stride: pixels of the image a cell of the stage's map, along each side.
        channels: of the stage's map.
    """

    links: tuple[str, ...]
    stride: int
    channels: int


def output_stride(encoder: Encoder) -> int:
    """Pixels of the image a cell of the encoder's last map, along each side.

    Raises ConfigError for an encoder that takes no images.
    """
    trial, probe = _trial(encoder)
    with torch.no_grad():
        return _stride(trial(probe))


def find_stages(encoder: Encoder) -> tuple[Stage, ...]:
    """The stages of ``encoder``, finest first; run in a row they are the encoder.

    Raises:
        ConfigError: the encoder takes no images, or is not made of submodules in a row.
    """
    trial, probe = _trial(encoder)
    links = _links(trial, "")
    try:
        with torch.no_grad():
            maps = _run(trial, links, probe)
            in_sequence = torch.equal(maps[-1], trial(probe))
    except (RuntimeError, TypeError, AttributeError):
        in_sequence = False
    if not in_sequence:
        raise ConfigError(
            f"{encoder.name} is not a sequence of stages; take detector.layout: single, which "
            "needs its last map only, or a ResNet"
        )
    return _grouped(links, maps)


def run_stages(encoder: Encoder, stages: Sequence[Stage], x: Tensor) -> list[Tensor]:
    """The map of each of ``stages``, which follow one another; the first one takes ``x``."""
    maps = []
    for stage in stages:
        x = _run(encoder, stage.links, x)[-1]
        maps.append(x)
    return maps


def _trial(encoder: Encoder) -> tuple[Encoder, Tensor]:
    """A copy of the encoder to try on an image, and the image."""
    if not encoder.takes_images:
        raise ConfigError(f"{encoder.name} is a video network; a detector needs an image encoder")
    probe = torch.randn(1, 3, _PROBE_SIDE, _PROBE_SIDE, generator=torch.Generator().manual_seed(0))
    return copy.deepcopy(encoder).cpu().float().eval(), probe


def _stride(made: Tensor) -> int:
    return round(_PROBE_SIDE / made.shape[-1])


def _links(module: nn.Module, prefix: str) -> list[str]:
    """Names of the submodules in order; containers are opened, so that stages can end in them."""
    names: list[str] = []
    for name, child in module.named_children():
        if isinstance(child, nn.Sequential | nn.ModuleDict):
            names += _links(child, f"{prefix}{name}.")
        else:
            names.append(prefix + name)
    return names


def _run(encoder: nn.Module, links: Sequence[str], x: Tensor) -> list[Tensor]:
    maps = []
    for name in links:
        x = encoder.get_submodule(name)(x)
        maps.append(x)
    return maps


def _grouped(links: Sequence[str], maps: Sequence[Tensor]) -> tuple[Stage, ...]:
    stages: list[Stage] = []
    members: list[str] = []
    for place, (link, made) in enumerate(zip(links, maps, strict=True)):
        members.append(link)
        last = place == len(maps) - 1
        if last or maps[place + 1].shape[-1] != made.shape[-1]:
            stages.append(Stage(tuple(members), _stride(made), made.shape[1]))
            members = []
    return tuple(stages)
