"""Makes bfloat16 training on the CPU give right gradients: a guard for every 3D convolution.

oneDNN's bfloat16 kernels for 3D convolutions are wrong for clips that are short beside the kernel
(seen with torch 2.14.1 and oneDNN 3.12). The *weight* gradient is garbage (inf, NaN, noise, and now
and then a crash, because the kernel writes outside its buffer) where the first window that lies
clear of the padding in front reaches into the padding behind: a kernel of 3 steps over exactly 2,
one of 5 over 2 to 4, or one of 7 with stride 2 over 3 to 7. A depthwise convolution in
channels_last_3d gives a wrong *output* for a single time step. All else, float32 above all, is
right, so nothing but the loss curve tells. DPC's layer4 meets the trap: 5 frames, then 3, then 2.

Zero frames appended before such a convolution, and the surplus cropped after it, leave the result
as it was and take it off that kernel. ``tests/models/test_precision.py`` holds the measurements.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GuardedConv3d(nn.Conv3d):
    """``nn.Conv3d`` that is right in bfloat16 on the CPU; elsewhere it is the same."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        extra = self._missing_steps(input.shape[-3]) if _in_bfloat16_on_cpu(input) else 0
        if not extra:
            return super()._conv_forward(input, weight, bias)
        # The new frames stand where the convolution's own zero padding began, or lie past the last
        # window: no output that is kept can see a difference.
        padded = F.pad(input, (0, 0, 0, 0, 0, extra))
        kept = self._output_steps(input.shape[-3])
        return super()._conv_forward(padded, weight, bias).narrow(-3, 0, kept)

    def _missing_steps(self, steps: int) -> int:
        """How many steps an input of that length is short of being safe."""
        front, stride = self._time_padding()[0], self.stride[0]
        # One past the last frame of the first window that starts on or after frame 0.
        reach = -front % stride + self._window()
        in_front_and_behind = front >= stride and self._output_steps(steps) > 1
        lone_depthwise = self.groups > 1 and steps == 1 and front > 0
        return max(0, reach - steps) if in_front_and_behind or lone_depthwise else 0

    def _output_steps(self, steps: int) -> int:
        return (steps + sum(self._time_padding()) - self._window()) // self.stride[0] + 1

    def _window(self) -> int:
        return self.dilation[0] * (self.kernel_size[0] - 1) + 1

    def _time_padding(self) -> tuple[int, int]:
        if self.padding_mode != "zeros":
            return 0, 0  # F.pad comes first: the kernel itself meets no padding
        # torch resolves padding="same" here too; the order is width, height, time.
        front, behind = self._reversed_padding_repeated_twice[-2:]
        return front, behind


def guard_cpu_bfloat16(module: nn.Module) -> nn.Module:
    """Makes every ``nn.Conv3d`` inside ``module`` (or itself) a :class:`GuardedConv3d`, in place.

    Parameters, buffers and state_dict keys stay as they are. A subclass with a forward of its own
    is left alone. Returns ``module``.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv3d) and _forwards_like_conv3d(type(child)):
            child.__class__ = GuardedConv3d
    return module


def _forwards_like_conv3d(kind: type[nn.Conv3d]) -> bool:
    return kind.forward is nn.Conv3d.forward and kind._conv_forward is nn.Conv3d._conv_forward


def _in_bfloat16_on_cpu(input: Tensor) -> bool:
    if input.device.type != "cpu":
        return False
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return input.dtype == torch.bfloat16
