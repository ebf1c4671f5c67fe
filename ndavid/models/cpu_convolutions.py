"""Makes training on the CPU give right gradients, in bfloat16 above all: guarded convolutions.

oneDNN's convolutions are wrong for some inputs that are small beside the kernel (seen with torch
2.14.1 and oneDNN 3.12; found by trying kernels, sizes, strides and paddings exhaustively):

- Time, bfloat16. The *weight* gradient of a 3D convolution is garbage (inf, NaN, noise, now and
  then a crash, for the kernel writes outside its buffer) where the first window that lies clear of
  the padding in front reaches into the padding behind: a kernel of 3 steps over exactly 2, one of 5
  over 2 to 4. DPC's layer4 meets it: 5 frames, then 3, then 2.
- Time, float32 too, where a stride of 2 or more is less than the padding: a kernel of 7 with stride
  2 and padding 3, as S3D begins with, over 5 to 7 frames.
- Depthwise, channels_last_3d, bfloat16: the *output* is wrong for a single time step.
- Space, bfloat16. The weight gradient is garbage where the map is no larger than the padding: a
  single pixel under a 3x3 kernel with stride 2, up to three under a 7x7 one.

Zeros appended before such a convolution, and the surplus cropped after it, leave the result as it
was and take it off that kernel.

On processors with AMX, Intel's matrix tiles, 3D convolutions in bfloat16 have more traps: weight
gradients are off by 4 to 50%, or NaN, on maps of 48 pixels a side and more, kernels of a single
pixel included (a 2D3D-R18's first layer at 128 px), and outputs of single frames under kernels of 3
steps are NaN now and then. Without AMX they are right, and on the same processor no faster than
float32. 2D convolutions are right with it, so there a 3D one is computed as 2D ones, one a step of
the kernel.

All else is right, so nothing but the loss curve tells. The measurements are in
``tests/models/test_cpu_convolutions.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _has_amx() -> bool:
    try:
        return "amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


HAS_AMX = _has_amx()
"""Whether this processor has AMX for bfloat16, as far as Linux tells."""

_ConvForward = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class GuardedConv2d(nn.Conv2d):
    """``nn.Conv2d`` whose gradients are right on the CPU; elsewhere it is the same."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _guarded(self, super()._conv_forward, input, weight, bias)


class GuardedConv3d(nn.Conv3d):
    """``nn.Conv3d`` whose gradients are right on the CPU; elsewhere it is the same."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _guarded(self, super()._conv_forward, input, weight, bias)


def guard_cpu_bfloat16(module: nn.Module) -> nn.Module:
    """Makes every ``nn.Conv2d`` and ``nn.Conv3d`` inside ``module`` a guarded one, in place.

    Parameters, buffers and state_dict keys stay as they are. A subclass with a forward of its own
    is left alone. Returns ``module``.
    """
    for child in module.modules():
        for plain, guarded in ((nn.Conv2d, GuardedConv2d), (nn.Conv3d, GuardedConv3d)):
            if isinstance(child, plain) and _forwards_like(type(child), plain):
                child.__class__ = guarded
    return module


def _forwards_like(kind: type[nn.Module], plain: type[nn.Module]) -> bool:
    return all(getattr(kind, f) is getattr(plain, f) for f in ("forward", "_conv_forward"))


def _guarded(
    conv: nn.Conv2d | nn.Conv3d,
    forward: _ConvForward,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    if input.device.type != "cpu":
        return forward(input, weight, bias)
    if input.ndim == weight.ndim - 1:
        # One sample alone, which torch's convolutions take as well.
        return _guarded(conv, forward, input.unsqueeze(0), weight, bias).squeeze(0)
    reduced = _compute_dtype(input) in (torch.bfloat16, torch.float16)
    axes = [_Axis(conv, i) for i in range(len(conv.kernel_size))]
    sizes = input.shape[-len(axes) :]
    extra = [axis.zeros_wanted(size, reduced) for axis, size in zip(axes, sizes, strict=True)]
    enough = axes[0].output_size(sizes[0]) > 0 < sizes[0]  # or torch says what is missing
    if reduced and isinstance(conv, nn.Conv3d) and HAS_AMX and enough:
        forward = partial(_frame_by_frame, conv)
        extra[0] = 0  # no kernel that spans time is left
    if not any(extra):
        return forward(input, weight, bias)
    # The zeros stand where the convolution's own padding began, or lie past the last window: no
    # output that is kept can see a difference.
    out = forward(F.pad(input, _only_behind(extra)), weight, bias)
    for i, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        out = out.narrow(i - len(axes), 0, axis.output_size(size))
    return out


def _frame_by_frame(conv: nn.Conv3d, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A 3D convolution as 2D ones over all frames at once, one a step of the kernel, added up.

    (B, C, T, H, W) -> (B, C', T', H', W'), channels-last.
    """
    # Once, not at each step of the kernel.
    input, padding = _padded_for_frames(conv, input.to(_compute_dtype(input)))
    (stride, *strides), (dilation, *dilations) = conv.stride, conv.dilation
    steps = weight.shape[2]
    # Time first, so that what a step of the kernel sees is a view of all frames, and autograd keeps
    # these once. With a single step clips come first, as they lie in memory already.
    order = (2, 0) if steps > 1 else (0, 2)
    frames = input.permute(*order, 3, 4, 1).contiguous().permute(0, 1, 4, 2, 3)
    time = order.index(2)
    last = frames.shape[time] - dilation * (steps - 1)
    total = None
    for step, kernel in enumerate(weight.unbind(2)):
        first = step * dilation
        every = slice(first, first + last, stride)
        seen = frames[every] if time == 0 else frames[:, every]
        out = F.conv2d(
            seen.flatten(0, 1),
            kernel,
            None if step else bias,
            strides,
            padding,
            dilations,
            conv.groups,
        )
        total = out if total is None else total + out
    assert total is not None
    maps = total.unflatten(0, seen.shape[:2])
    # Of a map of one pixel the strides fit two layouts, and torch's batch norm on the CPU, given
    # one such and a gradient laid out otherwise, mixes up frames and channels. A clone fits one.
    clips = maps.transpose(0, 1) if time == 0 else maps
    clips = clips.transpose(1, 2)
    if clips.shape[-2:].numel() == 1:
        return clips.clone(memory_format=torch.channels_last_3d)
    return clips.contiguous(memory_format=torch.channels_last_3d)


def _padded_for_frames(conv: nn.Conv3d, input: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The clips with the padding that 2D convolutions cannot add, and what is left to them."""
    sides = conv._reversed_padding_repeated_twice  # the last axis first, in front before behind
    if conv.padding_mode != "zeros":
        return F.pad(input, sides, mode=conv.padding_mode), (0, 0)
    if sides[0::2] != sides[1::2]:
        return F.pad(input, sides), (0, 0)
    in_time = [0, 0, 0, 0, *sides[4:]]
    return F.pad(input, in_time) if any(in_time) else input, (sides[2], sides[0])


def _compute_dtype(input: Tensor) -> torch.dtype:
    if input.dtype == torch.float64:
        return input.dtype  # which autocast leaves alone
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype


def _only_behind(extra: Sequence[int]) -> list[int]:
    """F.pad's order: the last axis first, and in front before behind."""
    return [zeros for behind in reversed(extra) for zeros in (0, behind)]


class _Axis:
    """One axis of a convolution: how its windows lie on an input of a given size."""

    def __init__(self, conv: nn.Conv2d | nn.Conv3d, index: int) -> None:
        self.is_time = isinstance(conv, nn.Conv3d) and index == 0
        self.depthwise = conv.groups > 1
        self.stride = conv.stride[index]
        self.window = conv.dilation[index] * (conv.kernel_size[index] - 1) + 1
        # torch resolves padding="same" here too, the last axis first. Paddings of another mode than
        # zeros are added beforehand, so that the kernel itself meets none.
        both = conv._reversed_padding_repeated_twice[::-1][2 * index : 2 * index + 2]
        self.behind, self.front = both if conv.padding_mode == "zeros" else (0, 0)

    def output_size(self, size: int) -> int:
        return (size + self.front + self.behind - self.window) // self.stride + 1

    def zeros_wanted(self, size: int, reduced: bool) -> int:
        """How many zeros an input of that size is short of being safe; reduced: under 32 bits."""
        if not self.is_time:
            # Maps no larger than the padding beside them; with stride 1, kernels of 3 are right.
            fragile = reduced and (self.stride > 1 or self.window > 3)
            return max(0, self.front + 1 - size) if fragile else 0
        # One past the last frame of the first window that starts on or after frame 0.
        reach = -self.front % self.stride + self.window
        return max(0, reach - size) if self._is_fragile(size, reduced) else 0

    def _is_fragile(self, size: int, reduced: bool) -> bool:
        if not reduced:
            return self.front > self.stride > 1
        lone_and_depthwise = self.depthwise and size == 1 and self.front > 0
        return lone_and_depthwise or (self.front >= self.stride and self.output_size(size) > 1)
