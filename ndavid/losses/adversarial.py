"""What a discriminator and a generator minimise when broken images join the generated ones.

Papers: Sinha et al. 2021, "Negative Data Augmentation" (the discriminator faces the mixture of
generated and NDA samples); Lim and Ye 2017, "Geometric GAN" (hinge); Goodfellow et al. 2014
(non-saturating); Gulrajani et al. 2017, "Improved Training of Wasserstein GANs" (gradient
penalty); Nowozin et al. 2016, "f-GAN" (variational divergences).

With D's logits d on real, generated and broken images, every discriminator minimises

    mean real(d) + alpha * mean fake(d_generated) + beta * mean fake(d_nda)

    objective        real(d)                  fake(d)                   generator's loss
    hinge            relu(1 - d)              relu(1 + d)               mean(-d)
    non_saturating   softplus(-d)             softplus(d)               mean softplus(-d)
    wasserstein      -d                       d                         mean(-d) * alpha
    js               (softplus(-d) - ln2)/2   (softplus(d) - ln2)/2     -mean fake(d) * alpha
    kl               -d                       exp(d) - 1                -mean fake(d) * alpha
    chi2             2 (1 - r)                r^2 - 1                   -mean fake(d) * alpha

The last four are ``min_G max_D L(alpha G + beta NDA, D)`` with alpha + beta = 1: the loss of the
best discriminator is minus the distance from the data P to the mixture Q, of which the generator
minimises the part that is its own. For the divergences d has one meaning: above 0 where P is
denser than Q. The density ratio P / Q that a logit stands for is ``exp(d)`` for js and kl, and
``r = softplus(d) / ln2`` for chi2, whose square would overflow with an exponential.

What the best generator then is, and where the hinge loss differs: docs/negatives_theory.md.

Differences from the papers: f-GAN's chi2 has no activation; a logit could stand for a negative
ratio, and there the generator's gradient would point away from the data. Constants are kept, so
that the loss of a discriminator that answers 0 everywhere is 0, and minus the loss bounds the
divergence in nats from below.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Literal["hinge", "non_saturating", "wasserstein", "js", "kl", "chi2"]

# The objectives that measure a distance to a mixture, which is none unless its weights sum to 1.
_DISTANCES = ("wasserstein", "js", "kl", "chi2")

_LN2 = math.log(2)


class DiscriminatorLoss(NamedTuple):
    """The loss, and the means it was made of, for the metrics."""

    loss: Tensor
    """Scalar, with gradient: real + alpha * fake + beta * nda."""
    real: Tensor
    """Scalar, detached, as are the next two; unweighted."""
    fake: Tensor
    nda: Tensor
    """NaN when there are no NDA logits."""


def discriminator_loss(
    real: Tensor,
    fake: Tensor,
    nda: Tensor | None = None,
    *,
    objective: Objective = "hinge",
    alpha: float = 1.0,
    beta: float = 0.0,
    nda_mask: Tensor | None = None,
) -> DiscriminatorLoss:
    """Returns what the discriminator minimises, given its logits on three kinds of image.

    Computed in float32 (float64, if the logits are). ``wasserstein`` also needs a
    `gradient_penalty`, which the caller weighs and adds.

    Args:
        real: (B,) logits of real images.
        fake: (B',) logits of generated images.
        nda: (B'',) logits of broken real images; None for none, and beta is then not looked at.
        objective: see the table of the module.
        alpha: weight of the generated images, the paper's lambda; > 0.
        beta: weight of the broken images, 1 - lambda; >= 0. At 0 the loss and its gradients are,
            to the bit, those without NDA logits.
        nda_mask: bool (B''), True where the image counts; the mean is over those, and 0 where there
            are none. An image that no operation could change is a real one.

    Raises:
        ValueError: on logits that are not (B,) with B > 0, an unknown objective, weights out of
            range, or weights that don't sum to 1 where the objective is a distance.
    """
    _check_objective(objective)
    weighs_nda = nda is not None and beta != 0
    check_weights(objective, alpha, beta if weighs_nda else 0.0, weighs_nda)
    real_part = _real_term(_logits(real, "real"), objective).mean()
    fake_part = _fake_term(_logits(fake, "fake"), objective).mean()
    loss = real_part + alpha * fake_part
    nda_part = torch.full_like(real_part.detach(), math.nan)
    if nda is not None:
        nda_part = _mean_where(_fake_term(_logits(nda, "nda"), objective), nda_mask)
        # Left out rather than multiplied by 0: an infinite logit would make that NaN.
        if weighs_nda:
            loss = loss + beta * nda_part
    return DiscriminatorLoss(loss, real_part.detach(), fake_part.detach(), nda_part.detach())


def generator_loss(fake: Tensor, *, objective: Objective = "hinge", alpha: float = 1.0) -> Tensor:
    """Returns the scalar that the generator minimises, given logits (B,) of its images.

    Args:
        fake: (B,) logits of generated images, with gradient to the generator.
        objective: that of the discriminator.
        alpha: the discriminator's. The distances scale with it, as the generated images are that
            part of the mixture; hinge and non_saturating don't, as published.

    Raises:
        ValueError: as `discriminator_loss`.
    """
    _check_objective(objective)
    _check_alpha(alpha)
    logits = _logits(fake, "fake")
    if objective == "hinge":
        return -logits.mean()
    if objective == "non_saturating":
        return F.softplus(-logits).mean()
    return -alpha * _fake_term(logits, objective).mean()


def gradient_penalty(
    critic: Callable[[Tensor], Tensor], real: Tensor, other: Tensor, mix: Tensor
) -> Tensor:
    """Returns the mean of (|gradient of the critic| - 1)^2 between real and other images.

    The second derivative is needed, so that the critic must not be one that torch.compile made,
    nor depend on other images of its batch.

    Args:
        critic: images (B, ...) -> logits (B,).
        real: (B, ...).
        other: (B, ...): samples of what the critic faces, generated or, in the share beta, broken.
        mix: (B,) in [0, 1], drawn uniformly by the caller: the share of the real image.

    Returns:
        Scalar float32, with gradient to the critic's parameters; none to the images.

    Raises:
        ValueError: on shapes that don't fit.
    """
    if real.shape != other.shape or mix.shape != real.shape[:1]:
        raise ValueError(
            f"gradient_penalty takes real and other images of one shape (B, ...) and mix (B,), "
            f"got {tuple(real.shape)}, {tuple(other.shape)} and {tuple(mix.shape)}"
        )
    share = mix.to(real).reshape(-1, *[1] * (real.dim() - 1))
    with torch.enable_grad():
        between = torch.lerp(other.detach(), real.detach(), share).requires_grad_()
        logits = _logits(critic(between), "critic")
        (gradient,) = torch.autograd.grad(logits.sum(), between, create_graph=True)
        norms = _at_least_float32(gradient).flatten(1).norm(dim=1)
        return (norms - 1).square().mean()


def _real_term(logits: Tensor, objective: Objective) -> Tensor:
    """What each logit of a real image costs the discriminator."""
    if objective == "hinge":
        return F.relu(1 - logits)
    if objective == "non_saturating":
        return F.softplus(-logits)
    if objective == "js":
        return (F.softplus(-logits) - _LN2) / 2
    if objective == "chi2":
        return 2 * (1 - _chi2_ratio(logits))
    return -logits  # wasserstein, kl


def _fake_term(logits: Tensor, objective: Objective) -> Tensor:
    """What each logit of a generated or broken image costs the discriminator."""
    if objective == "hinge":
        return F.relu(1 + logits)
    if objective == "non_saturating":
        return F.softplus(logits)
    if objective == "js":
        return (F.softplus(logits) - _LN2) / 2
    if objective == "kl":
        return torch.expm1(logits)
    if objective == "chi2":
        return _chi2_ratio(logits).square() - 1
    return logits  # wasserstein


def _mean_where(terms: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of the terms that the mask takes, 0 where it takes none."""
    if mask is None:
        return terms.mean()
    if mask.dtype != torch.bool or mask.shape != terms.shape:
        raise ValueError(
            f"nda_mask must be bool {tuple(terms.shape)} (True = use), "
            f"got {mask.dtype} {tuple(mask.shape)}"
        )
    # Filled and not multiplied: an infinite term times 0 is NaN.
    return terms.masked_fill(~mask, 0.0).sum() / mask.sum().clamp(min=1)


def _chi2_ratio(logits: Tensor) -> Tensor:
    """The density ratio that a logit of the chi2 objective stands for: 1 at 0, never negative."""
    return F.softplus(logits) / _LN2


def _logits(logits: Tensor, name: str) -> Tensor:
    """(B,) logits in float32 or wider."""
    if logits.dim() != 1 or logits.shape[0] == 0:
        raise ValueError(
            f"expected {name} logits of shape (B,) with B > 0, got {tuple(logits.shape)}"
        )
    return _at_least_float32(logits)


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check_objective(objective: str) -> None:
    known = get_args(Objective)
    if objective not in known:
        raise ValueError(f"unknown adversarial objective {objective!r}: one of {', '.join(known)}")


def _check_alpha(alpha: float) -> None:
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha, the weight of generated images, must be > 0, got {alpha}")


def check_weights(objective: str, alpha: float, beta: float, weighs_nda: bool) -> None:
    """Raises ValueError where an objective cannot work with these weights."""
    _check_alpha(alpha)
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"beta, the weight of NDA images, must be >= 0, got {beta}")
    # A divergence from P to alpha G alone has its optimum where it was; the Wasserstein critic
    # would gain without end by adding a constant to all its logits.
    needs_sum = objective in _DISTANCES and (weighs_nda or objective == "wasserstein")
    if needs_sum and not math.isclose(alpha + beta, 1.0, abs_tol=1e-6):
        raise ValueError(
            f"{objective} is the distance to the mixture alpha * generated + beta * NDA, whose "
            f"weights must sum to 1: got alpha {alpha} and beta {beta}"
            + ("" if weighs_nda else " (there are no NDA logits, or none that count)")
        )
