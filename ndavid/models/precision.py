"""Makes bfloat16 training on the CPU give right gradients: a guard for every 3D convolution.

oneDNN's bfloat16 kernel for the *weight* gradient of a 3D convolution is wrong for some short
inputs (seen with torch 2.14.1 and oneDNN 3.12: a kernel of 3 time steps over exactly 2 of them
writes outside its buffer, and the gradient holds inf, NaN or noise). Output and input gradient are
right, and so is float32, so nothing but the loss curve tells. DPC's layer4 meets exactly that case
(5 frames, then 3, then 2).

One zero frame appended before the convolution, and the surplus cropped after it, leaves the result
as it was and takes the convolution off that kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GuardedConv3d(nn.Conv3d):
    """``nn.Conv3d`` with a right weight gradient in bfloat16 on the CPU; elsewhere the same."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._meets_the_trap(input):
            return super()._conv_forward(input, weight, bias)
        steps = self._output_steps(input.shape[-3])
        # The new frame stands where the convolution's own zero padding began, or lies past the
        # last window where there is none: no output that is kept can see a difference.
        padded = F.pad(input, (0, 0, 0, 0, 0, 1))
        return super()._conv_forward(padded, weight, bias).narrow(-3, 0, steps)

    def _meets_the_trap(self, input: Tensor) -> bool:
        return (
            input.shape[-3] == 2
            and self.kernel_size[0] > 1
            and self.padding_mode == "zeros"  # other modes pad first: the kernel sees more steps
            and input.device.type == "cpu"
            and _computes_in_bfloat16(input)
        )

    def _output_steps(self, steps: int) -> int:
        # Reversed order: (w, w, h, h, t, t); also right for padding="same" and "valid".
        left, right = self._reversed_padding_repeated_twice[-2:]
        window = self.dilation[0] * (self.kernel_size[0] - 1) + 1
        return (steps + left + right - window) // self.stride[0] + 1


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


def _computes_in_bfloat16(input: Tensor) -> bool:
    if torch.is_autocast_enabled("cpu"):
        return torch.get_autocast_dtype("cpu") == torch.bfloat16
    return input.dtype == torch.bfloat16
