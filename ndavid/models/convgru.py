"""A convolutional GRU: recurrence over the blocks of a clip, one state a spatial cell.

Ballas et al., "Delving Deeper into Convolutional Networks for Learning Video Representations",
ICLR 2016 (arXiv 1511.06432); one layer with 1x1 kernels as in DPC (arXiv 1909.04656).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ConvGRUCell(nn.Module):
    """One step of the recurrence; all gates are convolutions on input and state side by side."""

    def __init__(self, input_dim: int, hidden_dim: int, kernel_size: int = 1) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        width = input_dim + hidden_dim
        padding = kernel_size // 2
        self.reset_gate = nn.Conv2d(width, hidden_dim, kernel_size, padding=padding)
        self.update_gate = nn.Conv2d(width, hidden_dim, kernel_size, padding=padding)
        self.out_gate = nn.Conv2d(width, hidden_dim, kernel_size, padding=padding)
        initialise_orthogonal(self)

    def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
        """Input (B, input_dim, h, w) and state (B, hidden_dim, h, w) -> the next state."""
        both = torch.cat([x, hidden], dim=1)
        update = torch.sigmoid(self.update_gate(both))
        reset = torch.sigmoid(self.reset_gate(both))
        candidate = torch.tanh(self.out_gate(torch.cat([x, hidden * reset], dim=1)))
        return hidden * (1 - update) + candidate * update


class ConvGRU(nn.Module):
    """The cell run over a sequence, with dropout on the state after every step in training."""

    def __init__(
        self, input_dim: int, hidden_dim: int, *, kernel_size: int = 1, dropout: float = 0.1
    ) -> None:
        super().__init__()
        self.cell = ConvGRUCell(input_dim, hidden_dim, kernel_size)
        self.dropout = nn.Dropout(dropout)

    def step(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        """One input (B, D, h, w) on a state (zeros where None) -> the next state."""
        if hidden is None:
            hidden = x.new_zeros(x.shape[0], self.cell.hidden_dim, *x.shape[2:])
        return self.dropout(self.cell(x, hidden))

    def forward(self, sequence: Tensor, hidden: Tensor | None = None) -> Tensor:
        """Inputs (B, N, D, h, w), N >= 1 -> the state after the last one, (B, hidden_dim, h, w)."""
        for x in sequence.unbind(dim=1):
            hidden = self.step(x, hidden)
        if hidden is None:
            raise ValueError("a ConvGRU needs at least one step of input")
        return hidden


def initialise_orthogonal(module: nn.Module) -> None:
    """Orthogonal weights and zero biases for every convolution of ``module``."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.orthogonal_(child.weight)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
