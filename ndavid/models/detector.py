"""Faster R-CNN on a pretrained encoder, in the three layouts that transfer papers use.

Ren et al. (2015), "Faster R-CNN"; Lin et al. (2017), "Feature Pyramid Networks for Object
Detection"; He et al. (2020), "Momentum Contrast for Unsupervised Visual Representation Learning",
whose detection part measures C4 and FPN. The detector is torchvision's; the encoder's parameters
keep their names under ``backbone.encoder``.

- ``c4``: proposals and regions from the encoder without its last stage; the last stage runs on
  every region, as detectron2's Res5ROIHeads do.
- ``fpn``: a feature pyramid over the encoder's last stages.
- ``single``: the encoder's last map as it is, for encoders that are not a sequence of stages.

Differences from MoCo's detectron2 configs: C4's regions are pooled by torchvision's RoIAlign with
the half-pixel shift off; the box loss is torchvision's smooth L1 with beta 1/9 instead of L1; batch
norm's statistics are running averages, not recomputed before the test (PRECISE_BN).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import (
    FastRCNNConvFCHead,
    FastRCNNPredictor,
    TwoMLPHead,
)
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import initLevelMapper

from ndavid.errors import ConfigError
from ndavid.models.batchnorm import batch_norms, freeze, has_running_stats
from ndavid.models.encoders.base import Encoder
from ndavid.models.encoders.stages import Stage, find_stages, output_stride, run_stages

_REGION_SIDE = {"c4": 14, "fpn": 7, "single": 7}


@dataclass(kw_only=True)
class DetectorConfig:
    """Layout of the detector around the encoder, and what becomes of batch norm."""

    layout: Literal["c4", "fpn", "single"] = "c4"
    """c4: last stage on regions; fpn: feature pyramid; single: the encoder's last map"""
    norm: Literal["frozen", "trained", "sync"] = "trained"
    """the encoder's batch norm: frozen (statistics, scale and shift stay the checkpoint's),
    trained, or trained on the batch of all ranks (sync, as MoCo does; several ranks need GPUs)"""
    head_norm: bool = True
    """batch norm in what is new: after c4's last stage, in the pyramid and in the box head"""
    levels: int = 4
    """fpn: how many of the encoder's last stages are used; a coarser one is added on top"""
    anchor_sizes: list[int] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    """sides of square anchors, pixels of the resized image; fpn: one a level and one for the top"""
    width: int = 256
    """channels of the pyramid, and of the convolutions in the box head of fpn and single"""
    head_width: int = 1024
    """units of the box head of fpn and single"""
    proposals: int = 2000
    """regions kept in training; half as many at test"""
    regions: int = 512
    """regions an image that the box head is trained on"""
    score_threshold: float = 0.05
    """detections below it are dropped at test"""

    def __post_init__(self) -> None:
        for name in ("levels", "width", "head_width", "regions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"detector.{name} must be at least 1, not {getattr(self, name)}")
        if self.proposals < 2:
            raise ConfigError(f"detector.proposals must be at least 2, not {self.proposals}")
        if not self.anchor_sizes or min(self.anchor_sizes) < 1:
            raise ConfigError(f"detector.anchor_sizes must be pixels, not {self.anchor_sizes}")
        if self.layout == "fpn" and len(self.anchor_sizes) != self.levels + 1:
            raise ConfigError(
                f"detector.anchor_sizes names {len(self.anchor_sizes)} sizes; {self.levels} "
                f"levels and the one on top need {self.levels + 1}"
            )


def build_detector(encoder: Encoder, config: DetectorConfig, num_classes: int) -> FasterRCNN:
    """A Faster R-CNN that takes normalised images (a list of (3, h, w) floats, any sizes).

    Args:
        encoder: becomes ``backbone.encoder``; not copied.
        config: layout and batch norm.
        num_classes: classes without the background, which becomes label 0: labels are 1-based here.

    Raises:
        ConfigError: an encoder that the layout, or frozen batch norm, cannot work with.
    """
    _set_norm(encoder, config)
    backbone, box_pool, box_head, box_width = _LAYOUTS[config.layout](encoder, config)
    sizes = config.anchor_sizes
    a_level = [(size,) for size in sizes] if config.layout == "fpn" else [tuple(sizes)]
    detector = FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(tuple(a_level), ((0.5, 1.0, 2.0),) * len(a_level)),
        rpn_pre_nms_top_n_train=config.proposals * (1 if config.layout == "fpn" else 6),
        rpn_pre_nms_top_n_test=config.proposals * (1 if config.layout == "fpn" else 6) // 2,
        rpn_post_nms_top_n_train=config.proposals,
        rpn_post_nms_top_n_test=config.proposals // 2,
        box_roi_pool=box_pool,
        box_head=box_head,
        box_predictor=FastRCNNPredictor(box_width, num_classes + 1),
        box_batch_size_per_image=config.regions,
        box_score_thresh=config.score_threshold,
    )
    detector.transform = BatchOnly()
    # After the encoder's own conversion: what is new follows it.
    return nn.SyncBatchNorm.convert_sync_batchnorm(detector) if config.norm == "sync" else detector


class BatchOnly(GeneralizedRCNNTransform):
    """torchvision's transform without resizing and normalising, which are done before.

    What is left puts images of different sizes into one batch, zeros at the right and the bottom.
    """

    def __init__(self) -> None:
        super().__init__(min_size=1, max_size=1, image_mean=[0.0], image_std=[1.0])

    def normalize(self, image: Tensor) -> Tensor:
        return image

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        return result


class StagesBackbone(nn.Module):
    """The maps of some of an encoder's stages by level ("0" is the finest).

    Args:
        encoder: whose stages they are.
        stages: all up to the last one that is needed.
        levels: how many of the last of them are given out.
    """

    def __init__(self, encoder: Encoder, stages: tuple[Stage, ...], levels: int = 1) -> None:
        super().__init__()
        self.encoder = encoder
        self.stages = stages
        self.levels = levels
        self.out_channels = stages[-1].channels

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        maps = run_stages(self.encoder, self.stages, images)[-self.levels :]
        return OrderedDict((str(level), made) for level, made in enumerate(maps))


class PyramidBackbone(StagesBackbone):
    """A feature pyramid over the last stages, and a max-pooled level on top of it."""

    def __init__(
        self,
        encoder: Encoder,
        stages: tuple[Stage, ...],
        levels: int,
        width: int,
        norm: Callable[..., nn.Module] | None,
    ) -> None:
        super().__init__(encoder, stages, levels)
        self.out_channels = width
        self.fpn = FeaturePyramidNetwork(
            [stage.channels for stage in stages[-levels:]],
            width,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=norm,
        )

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(super().forward(images))


class WholeBackbone(nn.Module):
    """The encoder's last map."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.out_channels = encoder.feature_dim

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        return OrderedDict([("0", self.encoder(images))])


class LastStageHead(nn.Module):
    """The encoder's last stage on pooled regions: (R, C, 14, 14) -> (R, D), the mean over space.

    Args:
        encoder: held by the backbone; here by reference only, so that its weights are saved once.
        stage: the stage that is run.
        norm: whether a batch norm follows it (MoCo's extra norm).
    """

    def __init__(self, encoder: Encoder, stage: Stage, norm: bool) -> None:
        super().__init__()
        # In a tuple it is no submodule of this one; a copy of the detector copies it along.
        self._encoder = (encoder,)
        self.stage = stage
        self.norm = nn.BatchNorm2d(stage.channels) if norm else nn.Identity()

    def forward(self, regions: Tensor) -> Tensor:
        (made,) = run_stages(self._encoder[0], (self.stage,), regions)
        return self.norm(made).mean((2, 3))


_Parts = tuple[nn.Module, MultiScaleRoIAlign, nn.Module, int]


def _c4(encoder: Encoder, config: DetectorConfig) -> _Parts:
    stages = find_stages(encoder)
    if len(stages) < 2:
        raise ConfigError(f"{encoder.name} has one stage only; take detector.layout: single")
    last = stages[-1]
    head = LastStageHead(encoder, last, config.head_norm)
    pool = _pool("c4", [stages[-2].stride])
    return StagesBackbone(encoder, stages[:-1]), pool, head, last.channels


def _fpn(encoder: Encoder, config: DetectorConfig) -> _Parts:
    stages = find_stages(encoder)
    if len(stages) < config.levels:
        raise ConfigError(
            f"{encoder.name} has {len(stages)} stages; detector.levels {config.levels} is more"
        )
    norm = nn.BatchNorm2d if config.head_norm else None
    backbone = PyramidBackbone(encoder, stages, config.levels, config.width, norm)
    head = _box_head(config.width, config)
    strides = [stage.stride for stage in stages[-config.levels :]]
    return backbone, _pool("fpn", strides), head, config.head_width


def _single(encoder: Encoder, config: DetectorConfig) -> _Parts:
    strides = [output_stride(encoder)]
    head = _box_head(encoder.feature_dim, config)
    return WholeBackbone(encoder), _pool("single", strides), head, config.head_width


_LAYOUTS: dict[str, Callable[[Encoder, DetectorConfig], _Parts]] = {
    "c4": _c4,
    "fpn": _fpn,
    "single": _single,
}


def _pool(layout: str, strides: Sequence[int]) -> MultiScaleRoIAlign:
    """Pools regions from maps of these strides, finest first.

    Left to itself torchvision infers the strides from the first batch it ever sees, whose maps are
    those of padded images: a small image first, and every region is taken from a wrong place for
    good. A detector that was saved and loaded would then not be the one that was trained.
    """
    names = [str(level) for level in range(len(strides))]
    pool = MultiScaleRoIAlign(names, output_size=_REGION_SIDE[layout], sampling_ratio=2)
    pool.scales = [1 / stride for stride in strides]
    finest, coarsest = (int(math.log2(stride)) for stride in (strides[0], strides[-1]))
    pool.map_levels = initLevelMapper(
        finest,
        coarsest,
        canonical_scale=pool.canonical_scale,
        canonical_level=pool.canonical_level,
    )
    return pool


def _box_head(channels: int, config: DetectorConfig) -> nn.Module:
    """Four convolutions with batch norm and one layer; without norm, two layers."""
    side = _REGION_SIDE["fpn"]
    if not config.head_norm:
        return TwoMLPHead(channels * side**2, config.head_width)
    return FastRCNNConvFCHead(
        (channels, side, side), [config.width] * 4, [config.head_width], nn.BatchNorm2d
    )


def _set_norm(encoder: Encoder, config: DetectorConfig) -> None:
    if config.norm != "frozen":
        return
    if not has_running_stats(encoder):
        raise ConfigError(
            f"{encoder.name} has no running statistics to freeze; take detector.norm: trained"
        )
    for layer in batch_norms(encoder):
        freeze(layer)
