"""Video encoders by name: ours, torchvision's, pytorchvideo's, and timm's frame by frame.

``build_encoder("torchvision:r3d_18")`` gives the library's network without its pooling and
classifier, so that it ends in a map (B, D, t, h, w). Parameters keep the library's own names:
``load_matching`` reads the library's checkpoints into it.
"""

from __future__ import annotations

import abc
import copy
import difflib
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ndavid.errors import ConfigError
from ndavid.models.encoder_base import Encoder
from ndavid.models.precision import guard_cpu_bfloat16
from ndavid.models.resnet2d3d import DEPTHS, ResNet2d3d

Triple = tuple[int, int, int]


class ClipSizeError(ConfigError, ValueError):
    """Clips of a length or size that the encoder does not take."""


# The networks of pytorchvideo.models.hub that read one clip and hold a map before their head.
_PYTORCHVIDEO_NETS = (
    *("c2d_r50", "csn_r101", "i3d_r50", "r2plus1d_r50", "slow_r50"),
    *("x3d_xs", "x3d_s", "x3d_m", "x3d_l", "mvit_base_16x4", "mvit_base_32x3"),
)
# torchvision's convolutional nets: the children that come before pooling and classifier.
_TORCHVISION_BODIES = {
    "r3d_18": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "mc3_18": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "r2plus1d_18": ("stem", "layer1", "layer2", "layer3", "layer4"),
    "s3d": ("features",),
}


def build_encoder(name: str, *, pretrained: bool = False) -> Encoder:
    """The encoder called ``name``: clips (B, C, T, H, W) -> maps (B, feature_dim, t, h, w).

    Names: ``resnet2d3d10`` (or 18, 34, 50), ``torchvision:r3d_18``, ``pytorchvideo:slow_r50``,
    ``timm:resnet18`` and their kin (:func:`encoder_names` lists all). ``pretrained`` asks for the
    library's own weights, which it downloads. Its convolutions are safe in bfloat16 on the CPU.

    Raises ConfigError for an unknown name, naming the nearest, or where there are no weights.
    """
    library, _, model = name.rpartition(":")
    # A timm name may end in the tag of its weights: "resnet18.a1_in1k".
    stem = model.partition(".")[0] if library == "timm" else model
    if library not in _BUILDERS or stem not in _models_of(library):
        raise ConfigError(_unknown(name))
    encoder = _BUILDERS[library](model, pretrained)
    encoder.name = name
    guard_cpu_bfloat16(encoder)
    return encoder


def encoder_names() -> tuple[str, ...]:
    """Every name that :func:`build_encoder` knows."""
    return tuple(
        f"{library}:{model}" if library else model
        for library in _BUILDERS
        for model in _models_of(library)
    )


@cache
def _models_of(library: str) -> tuple[str, ...]:
    # A library is imported only when one of its networks is asked for: timm alone takes seconds.
    if library == "torchvision":
        from torchvision import models

        return tuple(models.list_models(module=models.video))
    if library == "timm":
        import timm

        return tuple(timm.list_models())
    return _PYTORCHVIDEO_NETS if library else tuple(f"resnet2d3d{depth}" for depth in DEPTHS)


def _unknown(name: str) -> str:
    known = encoder_names()
    close = difflib.get_close_matches(name, known, n=3)
    # "r3d_18" alone is far from "torchvision:r3d_18" in letters, and yet what is meant.
    tail = name.rpartition(":")[2]
    close = [n for n in known if n.rpartition(":")[2] == tail][:3] or close
    hint = f"did you mean {' or '.join(close)}?" if close else "see encoder_names() for all names"
    return f"there is no encoder called {name!r}; {hint}"


# ---------------------------------------------------------------------------------------- ours


def _ours(name: str, pretrained: bool) -> Encoder:
    if pretrained:
        raise ConfigError(
            f"{name} has no weights of its own to start from; give a checkpoint instead"
        )
    return ResNet2d3d(int(name.removeprefix("resnet2d3d")))


# --------------------------------------------------------------------------------- torchvision


def _torchvision(name: str, pretrained: bool) -> Encoder:
    from torchvision import models

    net = models.get_model(name, weights="DEFAULT" if pretrained else None)
    if name.startswith("mvit"):
        return TorchvisionMvit(net)
    if name.startswith("swin3d"):
        parts = {
            part: getattr(net, part) for part in ("patch_embed", "pos_drop", "features", "norm")
        }
        return ChainEncoder({**parts, "to_map": ChannelsFirst()})
    return ChainEncoder({part: getattr(net, part) for part in _TORCHVISION_BODIES[name]})


class ChainEncoder(Encoder):
    """Parts of a library's network in a row, under the names they have there."""

    def __init__(self, parts: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.feature_dim = _channels_out(self)

    def forward(self, clips: Tensor) -> Tensor:
        x = clips
        for part in self.children():
            x = part(x)
        return x


class ChannelsFirst(nn.Module):
    """(B, t, h, w, D) -> (B, D, t, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        return rearrange(x, "b t h w d -> b d t h w")


def _channels_out(body: nn.Module) -> int:
    """Channels of the map that ``body`` makes of a clip, found without computing anything."""
    shadow = copy.deepcopy(body).to("meta").eval()
    return int(shadow(torch.empty(1, 3, 16, 64, 64, device="meta")).shape[1])


class MvitEncoder(Encoder, abc.ABC):
    """A multiscale vision transformer, whose tokens after the last block are laid out as a map.

    Its position tables fix the clip size (T, H, W): any other raises ClipSizeError.
    """

    def __init__(self, blocks: nn.ModuleList, clip_size: Triple, grid: Triple, width: int) -> None:
        super().__init__()
        self.blocks = blocks
        self.clip_size = clip_size
        self.grid = grid
        self.feature_dim = width

    def forward(self, clips: Tensor) -> Tensor:
        if tuple(clips.shape[2:]) != self.clip_size:
            raise ClipSizeError(
                f"{self.name} takes clips of (T, H, W) = {self.clip_size} only, got "
                f"{tuple(clips.shape[2:])}: change the clips, or take a convolutional encoder"
            )
        tokens, grid = self.embed(clips), self.grid
        for block in self.blocks:
            tokens, grid = block(tokens, grid)
        t, h, w = grid
        # The first token is the classifier's, not a place in the clip.
        return rearrange(self.normalise(tokens)[:, 1:], "b (t h w) d -> b d t h w", t=t, h=h, w=w)

    @abc.abstractmethod
    def embed(self, clips: Tensor) -> Tensor:
        """Clips -> tokens (B, 1 + t*h*w, D) with their positions."""

    @abc.abstractmethod
    def normalise(self, tokens: Tensor) -> Tensor:
        """The norm after the last block."""


class TorchvisionMvit(MvitEncoder):
    """torchvision's mvit_v1_b and mvit_v2_s."""

    def __init__(self, net: Any) -> None:
        positions = net.pos_encoding
        patch = net.conv_proj
        grid = (positions.temporal_size, *positions.spatial_size)
        width = net.norm.normalized_shape[0]
        super().__init__(net.blocks, _clip_size(grid, patch.stride), grid, width)
        self.conv_proj, self.pos_encoding, self.norm = patch, positions, net.norm

    def embed(self, clips: Tensor) -> Tensor:
        return self.pos_encoding(rearrange(self.conv_proj(clips), "b d t h w -> b (t h w) d"))

    def normalise(self, tokens: Tensor) -> Tensor:
        return self.norm(tokens)


class PytorchvideoMvit(MvitEncoder):
    """pytorchvideo's mvit_base_16x4 and mvit_base_32x3."""

    def __init__(self, net: Any) -> None:
        positions = net.cls_positional_encoding
        patch = net.patch_embed
        grid = tuple(positions.patch_embed_shape)
        width = net.norm_embed.normalized_shape[0]
        super().__init__(net.blocks, _clip_size(grid, patch.patch_model.stride), grid, width)
        self.patch_embed, self.cls_positional_encoding = patch, positions
        self.norm_embed = net.norm_embed

    def embed(self, clips: Tensor) -> Tensor:
        return self.cls_positional_encoding(self.patch_embed(clips))

    def normalise(self, tokens: Tensor) -> Tensor:
        return self.norm_embed(tokens)


def _clip_size(grid: Triple, stride: Triple) -> Triple:
    return (grid[0] * stride[0], grid[1] * stride[1], grid[2] * stride[2])


# -------------------------------------------------------------------------------- pytorchvideo


def _pytorchvideo(name: str, pretrained: bool) -> Encoder:
    from pytorchvideo.models import hub

    net = getattr(hub, name)(pretrained=pretrained)
    if name.startswith("mvit"):
        return PytorchvideoMvit(net)
    return ChainEncoder({"blocks": nn.Sequential(*net.blocks[:-1])})  # the last one is the head


# ---------------------------------------------------------------------------------------- timm


def _timm(name: str, pretrained: bool) -> Encoder:
    import timm

    try:
        net = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-1,))
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"timm:{name} cannot serve as an encoder: {error}") from error
    return FrameEncoder(net)


class FrameEncoder(Encoder):
    """An image network of timm, run on every frame by itself: t = T."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.frames = net
        self.feature_dim = int(net.feature_info.channels()[-1])
        self._channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, clips: Tensor) -> Tensor:
        frames = rearrange(clips, "b c t h w -> (b t) c h w")
        try:
            maps = self.frames(frames)[-1]
        except AssertionError as error:  # timm's way of saying that the size does not fit
            raise ClipSizeError(f"{self.name} does not take these frames: {error}") from error
        pattern = "(b t) h w d -> b d t h w" if self._channels_last else "(b t) d h w -> b d t h w"
        return rearrange(maps, pattern, b=len(clips))


_BUILDERS: dict[str, Callable[[str, bool], Encoder]] = {
    "": _ours,
    "torchvision": _torchvision,
    "pytorchvideo": _pytorchvideo,
    "timm": _timm,
}
