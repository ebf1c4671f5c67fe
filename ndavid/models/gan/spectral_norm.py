"""Spectral normalisation: each weight divided by an estimate of its largest singular value.

Paper: Miyato, Kataoka, Koyama and Yoshida 2018, "Spectral Normalization for Generative Adversarial
Networks" (arXiv 1802.05957).

torch's parametrization, with what training a GAN wants besides: the estimate is made in float32
under autocast too; several forwards may share one estimate (``frozen_power_iteration``) and one
normalised weight (``shared_spectral_norm``); a copy whose weights were averaged can be brought up
to date (``refresh_spectral_norms``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _SpectralNorm


class SpectralNorm(_SpectralNorm):
    """torch's parametrization, in float32, that can hold on to the weight it has normalised.

    Compiled (``torch.compile``), a frozen forward must see its backward before the next forward
    that moves the singular vectors; torch raises otherwise.
    """

    _u: Tensor
    _v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight)
        self.is_shared = False
        self._held: Tensor | None = None

    def forward(self, weight: Tensor) -> Tensor:
        held = self._held
        # A weight that was normalised without gradient does not serve a forward that wants one.
        wants_grad = weight.requires_grad and torch.is_grad_enabled()
        if held is not None and (held.requires_grad or not wants_grad):
            return held
        # Autocast would round the singular vectors to 8 bits, and sigma with them.
        with _without_autocast(weight):
            normalised = weight / self._sigma(weight.flatten(1))
        if self.is_shared:
            self._held = normalised
        return normalised

    def _sigma(self, matrix: Tensor) -> Tensor:
        # Fresh tensors, so that a backward does not find the buffers moved by a later forward.
        u, v = self._u.clone(), self._v.clone()
        if self.training:
            with torch.no_grad():
                u = F.normalize(torch.mv(matrix, v), dim=0, eps=self.eps)
                v = F.normalize(torch.mv(matrix.T, u), dim=0, eps=self.eps)
                self._u.copy_(u)
                self._v.copy_(v)
        return torch.dot(u, torch.mv(matrix, v))

    def share(self, shared: bool) -> None:
        """Starts or stops returning one and the same tensor."""
        self.is_shared = shared
        self._held = None


def spectral_norm(layer: nn.Module) -> nn.Module:
    """Normalises ``layer.weight``, in place; returns ``layer``.

    State dict keys become torch's: ``parametrizations.weight.original`` and ``....0._u``, ``._v``.
    Initialise the weight before: afterwards ``layer.weight`` is a result, not the parameter.
    """
    parametrize.register_parametrization(
        layer, "weight", SpectralNorm(layer.get_parameter("weight"))
    )
    return layer


def spectral_norms(module: nn.Module) -> list[SpectralNorm]:
    """Every spectral normalisation inside ``module``."""
    return [child for child in module.modules() if isinstance(child, SpectralNorm)]


def _without_autocast(weight: Tensor) -> AbstractContextManager[object]:
    # Shapes alone (the meta device) have no autocast.
    return nullcontext() if weight.is_meta else torch.autocast(weight.device.type, enabled=False)


@contextmanager
def frozen_power_iteration(module: nn.Module) -> Iterator[nn.Module]:
    """Inside, forwards in training mode use the singular vectors as they are.

    The first forward of a step moves them; every further one (a micro-batch, a second pass) belongs
    in here, so that the whole step sees one function.
    """
    training = [norm for norm in spectral_norms(module) if norm.training]
    for norm in training:
        norm.eval()
    try:
        yield module
    finally:
        for norm in training:
            norm.train()


@contextmanager
def shared_spectral_norm(module: nn.Module) -> Iterator[nn.Module]:
    """Inside, each weight is normalised once and reused by all forwards.

    For several passes between two updates of the weights: a change of the weights inside goes
    unnoticed. Passes with gradient share one graph, so that they need one common ``backward`` (or
    ``retain_graph``); in training mode the singular vectors move once.
    """
    norms = spectral_norms(module)
    for norm in norms:
        norm.share(True)
    try:
        yield module
    finally:
        for norm in norms:
            norm.share(False)


@torch.no_grad()
def refresh_spectral_norms(module: nn.Module, iterations: int = 15) -> nn.Module:
    """Fits the singular vectors to the weights as they are, in place; returns ``module``.

    For a model whose weights (and singular vectors) are averages of others', which are nobody's
    singular vectors any more.
    """
    for layer in module.modules():
        if not parametrize.is_parametrized(layer, "weight"):
            continue
        parametrization = layer.get_submodule("parametrizations.weight")
        assert isinstance(parametrization, parametrize.ParametrizationList)
        for norm in parametrization:
            if isinstance(norm, SpectralNorm):
                norm._power_method(parametrization.original.flatten(1), iterations)
    return module
