"""Encoders by name: ours, torchvision's, pytorchvideo's and timm's, for clips and for images.

``build_encoder("torchvision:r3d_18")`` gives the library's network without its pooling and
classifier, so that it ends in a map (B, D, t, h, w). Image networks (``torchvision:resnet50``,
``timm:*``, ``cifar:*``) turn images into (B, D, h, w) too, and read clips frame by frame.
Parameters keep the library's own names: ``load_matching`` reads the library's checkpoints into it.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from einops import rearrange
from torch import Tensor, nn

from ndavid.errors import ConfigError
from ndavid.models.batchnorm import flatten_batch_norms
from ndavid.models.cpu_convolutions import guard_cpu_bfloat16
from ndavid.models.encoders.base import ClipSizeError, Encoder, ImageEncoder
from ndavid.models.encoders.chain import ChannelsFirst, ImageChain, VideoChain
from ndavid.models.encoders.cifar import DEPTHS as CIFAR_DEPTHS
from ndavid.models.encoders.cifar import cifar_resnet
from ndavid.models.encoders.mvit import PytorchvideoMvit, TorchvisionMvit
from ndavid.models.encoders.recomputation import run_recomputed
from ndavid.models.encoders.residual import PREFIX, ResidualFrames
from ndavid.models.encoders.resnet2d3d import DEPTHS, HALF, ResNet2d3d

Body = tuple[str, ...]

# The networks of pytorchvideo.models.hub that read one clip and hold a map before their head.
_PYTORCHVIDEO_NETS = (
    *("c2d_r50", "csn_r101", "i3d_r50", "r2plus1d_r50", "slow_r50"),
    *("x3d_xs", "x3d_s", "x3d_m", "x3d_l", "mvit_base_16x4", "mvit_base_32x3"),
)
# torchvision's networks: the children that come before pooling and classifier, by family.
_VIDEO_RESNET = ("stem", "layer1", "layer2", "layer3", "layer4")
_VIDEO_BODIES = {
    "r3d": _VIDEO_RESNET,
    "mc3": _VIDEO_RESNET,
    "r2plus1d": _VIDEO_RESNET,
    "s3d": ("features",),
    "swin3d": ("patch_embed", "pos_drop", "features", "norm"),
}
_IMAGE_RESNET = ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4")
_IMAGE_BODIES = {
    **dict.fromkeys(("resnet", "resnext", "wide_resnet"), _IMAGE_RESNET),
    **dict.fromkeys(("alexnet", "convnext", "densenet", "efficientnet"), ("features",)),
    **dict.fromkeys(("mobilenet", "squeezenet", "vgg"), ("features",)),
    "mnasnet": ("layers",),
    "regnet": ("stem", "trunk_output"),
    "shufflenet": ("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    "swin": ("features", "norm", "permute"),
}


def build_encoder(name: str, *, pretrained: bool = False) -> Encoder:
    """The encoder called ``name``: clips (B, C, T, H, W) -> maps (B, feature_dim, t, h, w).

    Names: ``resnet2d3d10`` (or 18, 34, 50), ``resnet2d3d10_half`` (half as wide),
    ``torchvision:r3d_18``, ``pytorchvideo:slow_r50``, and for images (B, C, H, W) ->
    (B, feature_dim, h, w) as well ``torchvision:resnet50``, ``timm:resnet18``, ``cifar:resnet18``
    and their kin (:func:`encoder_names` lists all). ``residual:`` before any of them feeds it the
    differences of neighbouring frames. ``pretrained`` asks for the library's own weights, which it
    downloads. Its convolutions are safe in bfloat16 on the CPU; its batch norms see clips as tall
    images.

    Raises ConfigError for an unknown name, naming the nearest, or where there are no weights.
    """
    if name.startswith(PREFIX):
        return ResidualFrames(build_encoder(name.removeprefix(PREFIX), pretrained=pretrained))
    encoder = _build_network(name, pretrained)
    guard_cpu_bfloat16(encoder)
    flatten_batch_norms(encoder)
    return encoder


def _build_network(name: str, pretrained: bool) -> Encoder:
    library, _, model = name.rpartition(":")
    # A timm name may end in the tag of its weights: "resnet18.a1_in1k".
    stem = model.partition(".")[0] if library == "timm" else model
    if library not in _BUILDERS or stem not in _models_of(library):
        raise ConfigError(_unknown(name))
    return _BUILDERS[library](model, pretrained)


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

        images = models.list_models(module=models)
        known = (name for name in images if _family(name, _IMAGE_BODIES) is not None)
        return (*models.list_models(module=models.video), *known)
    if library == "timm":
        import timm

        return tuple(timm.list_models())
    if library == "cifar":
        return tuple(f"resnet{depth}" for depth in CIFAR_DEPTHS)
    if library == "pytorchvideo":
        return _PYTORCHVIDEO_NETS
    return tuple(f"resnet2d3d{depth}{width}" for width in ("", HALF) for depth in DEPTHS)


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
    _refuse_pretrained(name, pretrained)
    depth = name.removeprefix("resnet2d3d").removesuffix(HALF)
    return ResNet2d3d(int(depth), half=name.endswith(HALF))


def _cifar(name: str, pretrained: bool) -> Encoder:
    _refuse_pretrained(f"cifar:{name}", pretrained)
    return cifar_resnet(int(name.removeprefix("resnet")))


def _refuse_pretrained(name: str, pretrained: bool) -> None:
    if pretrained:
        raise ConfigError(
            f"{name} has no weights of its own to start from; give a checkpoint instead"
        )


# --------------------------------------------------------------------------------- torchvision


def _torchvision(name: str, pretrained: bool) -> Encoder:
    from torchvision import models

    net = models.get_model(name, weights="DEFAULT" if pretrained else None)
    if name.startswith("mvit"):
        return TorchvisionMvit(f"torchvision:{name}", net)
    if body := _family(name, _VIDEO_BODIES):
        parts = {part: getattr(net, part) for part in body}
        if "swin3d" in name:
            parts["to_map"] = ChannelsFirst()
        return VideoChain(f"torchvision:{name}", parts)
    parts = {part: getattr(net, part) for part in _family(name, _IMAGE_BODIES) or ()}
    # DenseNet's last ReLU stands in its forward, not among its children.
    if "densenet" in name:
        parts["relu"] = nn.ReLU()
    return ImageChain(f"torchvision:{name}", parts)


def _family(name: str, bodies: Mapping[str, Body]) -> Body | None:
    """The entry whose key is the beginning of ``name``, up to its number or variant."""
    return next((b for family, b in bodies.items() if re.match(rf"{family}\d*(_|$)", name)), None)


# -------------------------------------------------------------------------------- pytorchvideo


def _pytorchvideo(name: str, pretrained: bool) -> Encoder:
    from pytorchvideo.models import hub

    net = getattr(hub, name)(pretrained=pretrained)
    if name.startswith("mvit"):
        return PytorchvideoMvit(f"pytorchvideo:{name}", net)
    body = nn.Sequential(*net.blocks[:-1])  # the last one is the head
    return VideoChain(f"pytorchvideo:{name}", {"blocks": body})


# ---------------------------------------------------------------------------------------- timm


def _timm(name: str, pretrained: bool) -> Encoder:
    import timm

    try:
        net = timm.create_model(name, pretrained=pretrained, features_only=True, out_indices=(-1,))
    except (RuntimeError, AttributeError, AssertionError) as error:
        raise ConfigError(f"timm:{name} cannot serve as an encoder: {error}") from error
    return TimmEncoder(f"timm:{name}", net)


class TimmEncoder(ImageEncoder):
    """An image network of timm that gives its last map."""

    def __init__(self, name: str, net: Any) -> None:
        super().__init__(name)
        self.frames = net
        self.feature_dim = int(net.feature_info.channels()[-1])
        self._channels_last = str(getattr(net, "output_fmt", "NCHW")).endswith("NHWC")

    def encode_images(self, images: Tensor) -> Tensor:
        try:
            maps = self._last_map(images)
        except AssertionError as error:  # timm's way of saying that the size does not fit
            raise ClipSizeError(f"{self.name} does not take these frames: {error}") from error
        return rearrange(maps, "b h w d -> b d h w") if self._channels_last else maps

    def _last_map(self, images: Tensor) -> Tensor:
        if not self.recomputes:
            return self.frames(images)[-1]
        # timm's own way of checkpointing moves running statistics twice.
        return run_recomputed(self.sequential(), images)

    def sequential(self) -> tuple[nn.Module, ...]:
        from timm.models import FeatureListNet

        is_sequence = isinstance(self.frames, FeatureListNet) and not self.frames.concat
        return tuple(self.frames.children()) if is_sequence else ()


_BUILDERS: dict[str, Callable[[str, bool], Encoder]] = {
    "": _ours,
    "torchvision": _torchvision,
    "pytorchvideo": _pytorchvideo,
    "timm": _timm,
    "cifar": _cifar,
}
