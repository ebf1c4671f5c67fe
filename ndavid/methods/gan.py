"""A GAN whose discriminator is shown real, generated and broken images.

Papers: Sinha et al. 2021, "Negative Data Augmentation" (NDA-GAN: broken real images T(x) beside the
generated ones, on the negative side); Brock et al. 2019 (BigGAN: several discriminator steps for
one of the generator, averaged generator); Zhao et al. 2020 (augmentation of all the
discriminator's images alike).

    discriminator:  L(D(x), +) + alpha L(D(G(z)), -) + beta L(D(T(x)), -)
    generator:      as without T

A training step is ``discriminator_steps`` optimizer steps of the discriminator and one of the
generator (the engine's ``alternating.py``). The generator does not change before its own step, so
that the generated images for all steps of the discriminator are made beforehand, under one
normalisation of its weights.

Whatever share of a batch the discriminator sees at a time, the gradients are those of the whole:
the generator runs on all latents of an optimizer step at once, batch norm takes the statistics of
all ranks, and the spectral norms are estimated once per optimizer step.

Differences from the original code: one discriminator pass over [generated, real, broken], where it
had two and advanced the spectral norm twice; broken images are broken for certain (its operations
now and then return the image as it was), and an image that came out unchanged all the same, such
as a plain area cut into a jigsaw, is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ndavid.errors import ConfigError
from ndavid.losses.adversarial import (
    check_weights,
    discriminator_loss,
    generator_loss,
    gradient_penalty,
)
from ndavid.methods.branch import branch
from ndavid.methods.broken_samples import BrokenSamples, as_pixels
from ndavid.methods.diff_augment import DiffAugment
from ndavid.methods.gan_config import AdversarialConfig, GanAugmentConfig, GanNdaConfig
from ndavid.models.gan.model import Gan, GanConfig
from ndavid.models.gan.spectral_norm import frozen_power_iteration, shared_spectral_norm
from ndavid.models.normalize import Normalize

Batch = dict[str, Any]

DISCRIMINATOR, GENERATOR = "discriminator", "generator"


class GanMethod(nn.Module):
    """The two networks, their objective, and what the discriminator is shown.

    A step reads ``batches_per_step`` batches with ``image``, uint8 or float in [0, 1],
    (B, 3, S, S), and, for a GAN of several classes, ``label`` (B,). `plan_updates` shares them out
    to optimizer steps; `forward` takes one batch of one of these.

    Args:
        model: the networks.
        nda: the broken images; none by default.
        adversarial: objective, and how many steps the discriminator takes.
        augment: what happens to images on their way to the discriminator.

    Raises:
        ConfigError: an operation that cannot be read, or weights that the objective cannot have.
    """

    def __init__(
        self,
        model: GanConfig,
        nda: GanNdaConfig | None = None,
        *,
        adversarial: AdversarialConfig | None = None,
        augment: GanAugmentConfig | None = None,
    ) -> None:
        super().__init__()
        self.nda = nda or GanNdaConfig()
        self.adversarial = adversarial or AdversarialConfig()
        _require_weights(self.nda, self.adversarial)
        augment = augment or GanAugmentConfig()
        self.operation = self.nda.operation()
        self.flip, self.real_probability = augment.flip, augment.real_probability
        self.of_real, self.of_all = augment.of_real(), augment.of_all()
        self.diff_augment = DiffAugment(augment.diffaugment) if augment.diffaugment else None
        self.pixels = Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        self.gan = Gan(model)
        self.batches_per_step = self.adversarial.discriminator_steps

    def optimizer_groups(self) -> dict[str, list[dict[str, Any]]]:
        """The parameters of each network, and the factor on their learning rate."""
        scale = self.adversarial.discriminator_lr_scale
        discriminator = list(self.gan.discriminator.parameters())
        return {
            DISCRIMINATOR: [{"params": discriminator, "lr_scale": scale}],
            GENERATOR: [{"params": list(self.gan.generator.parameters())}],
        }

    def averaged(self) -> nn.Module:
        """What an average is kept of: the generator."""
        return self.gan.generator

    def compile_targets(self) -> tuple[nn.Module, ...]:
        """The submodules worth ``torch.compile``."""
        return (self.gan.generator, self.gan.discriminator)

    def plan_updates(
        self, batches: Sequence[Batch], *, generator: torch.Generator | None, step: int
    ) -> list[tuple[str, list[Batch]]]:
        """The optimizer steps of one training step: the discriminator's, with generated images, and
        the generator's.

        Args:
            batches: ``batches_per_step`` of them, or a multiple, for accumulation.
            generator: on the CPU; draws latents and labels.
            step: not used: every training step has the same optimizer steps.

        Raises:
            ValueError: images of another size than the generator's.
        """
        self._check_size(batches[0]["image"])
        share = len(batches) // self.adversarial.discriminator_steps
        updates = []
        with torch.no_grad(), shared_spectral_norm(self.gan.generator):
            for start in range(0, len(batches), share):
                own = batches[start : start + share]
                updates.append((DISCRIMINATOR, self._with_generated(own, generator)))
        own = batches[:share]
        latents, labels = self._draw(own, generator)
        last = {"latents": latents, "labels": labels, "parts": [len(b["image"]) for b in own]}
        return [*updates, (GENERATOR, [last])]

    def forward(
        self, batch: Batch, *, generator: torch.Generator | None, step: int
    ) -> dict[str, Tensor]:
        """Loss and detached metrics of the network to update, on a batch of `plan_updates`."""
        if "latents" in batch:
            return self._generator_step(batch, generator, step)
        return self._discriminator_step(batch, generator, step)

    def broken_samples(
        self, batch: Batch, *, generator: torch.Generator | None
    ) -> BrokenSamples | None:
        """Real images and broken ones as the discriminator is shown them."""
        if self.operation is None:
            return None
        real = self._positive(self.pixels(batch["image"]), generator)
        nda_generator = branch(generator)
        made = self.operation.broken(real, generator=nda_generator)
        shown = [self._augmented(stream, generator) for stream in (real, made.pixels)]
        before, after = (as_pixels(stream, self.pixels) for stream in shown)
        note = "real images and broken ones, as the discriminator sees them"
        return BrokenSamples(before, after, made.changed, note)

    # What a step needs

    def _check_size(self, images: Tensor) -> None:
        size = self.gan.config.image_size
        if images.shape[-2:] != (size, size):
            raise ValueError(
                f"a GAN of {size} x {size} px got images of {tuple(images.shape)}; resize them, or "
                "set model.image_size"
            )

    def _draw(
        self, batches: Sequence[Batch], generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor | None]:
        """Latents (N, latent_dim) and labels (N,) for as many images as the batches hold."""
        config, device = self.gan.config, batches[0]["image"].device
        count = sum(len(batch["image"]) for batch in batches)
        latents = torch.randn(count, config.latent_dim, generator=generator).to(device)
        if not config.num_classes:
            return latents, None
        labels = torch.randint(config.num_classes, (count,), generator=generator)
        return latents, labels.to(device)

    def _with_generated(
        self, batches: Sequence[Batch], generator: torch.Generator | None
    ) -> list[Batch]:
        """The batches of one optimizer step, with as many generated images, and labels."""
        latents, labels = self._draw(batches, generator)
        sizes = [len(batch["image"]) for batch in batches]
        fakes = self.gan.generator(latents, labels).split(sizes)
        of_fakes = [None] * len(sizes) if labels is None else labels.split(sizes)
        return [
            {
                "image": batch["image"],
                "label": self._labels_of(batch),
                "fake": fake,
                "fake_label": fake_label,
                "first": position == 0,
            }
            for position, (batch, fake, fake_label) in enumerate(
                zip(batches, fakes, of_fakes, strict=True)
            )
        ]

    def _labels_of(self, batch: Batch) -> Tensor | None:
        """The real images' labels; of one class are all images, whatever the set's labels say."""
        number = self.gan.config.num_classes
        if number == 1:
            images = batch["image"]
            return torch.zeros(len(images), dtype=torch.long, device=images.device)
        return batch["label"] if number else None

    # Optimizer steps

    def _discriminator_step(
        self, batch: Batch, generator: torch.Generator | None, step: int
    ) -> dict[str, Tensor]:
        real = self._positive(self.pixels(batch["image"]), generator)
        alpha, beta = self.nda.weights_at(step)
        streams, labels = [batch["fake"], real], [batch["fake_label"], batch["label"]]
        # Branched off with NDA and without, so that all later draws are the same.
        nda_generator = branch(generator)
        changed = unchanged = None
        if self.operation is not None and beta > 0:
            made = self.operation.broken(real, generator=nda_generator)
            changed, unchanged = made.changed, made.params["unchanged"]
            streams.append(made.pixels)
            labels.append(batch["label"])
        shown = [self._augmented(stream, generator) for stream in streams]
        # One sigma per optimizer step: only its first batch moves the estimate.
        judge = self.gan.discriminator if batch["first"] else self._judge
        logits = judge(torch.cat(shown), _joined(labels))
        fake, true, *broken = logits.float().split([len(stream) for stream in streams])
        objective = self.adversarial.objective
        result = discriminator_loss(
            true, fake, *broken, objective=objective, alpha=alpha, beta=beta, nda_mask=changed
        )
        loss = result.loss
        metrics = {"real_logit": true.mean(), "fake_logit": fake.mean()}
        if changed is not None and unchanged is not None:
            metrics |= {
                "nda_logit": _mean_of(broken[0], changed),
                "nda_below_real": _mean_of(_below_each(broken[0], true), changed),
                "nda_unchanged": unchanged.float().mean(),
            }
        metrics |= {"fake_below_real": _below(fake, true)}
        if objective == "wasserstein" and self.adversarial.gradient_penalty:
            penalty = self._penalty(shown, labels, changed, alpha, generator)
            loss = loss + self.adversarial.gradient_penalty * penalty
            metrics["gradient_penalty"] = penalty
        return {"loss": loss} | {name: value.detach() for name, value in metrics.items()}

    def _generator_step(
        self, batch: Batch, generator: torch.Generator | None, step: int
    ) -> dict[str, Tensor]:
        latents, labels, parts = batch["latents"], batch["labels"], batch["parts"]
        images = self.gan.generator(latents, labels)
        shown = self._augmented(images, generator)
        of_parts = [None] * len(parts) if labels is None else labels.split(parts)
        logits = [
            self._judge(part, label, save_memory=len(parts) > 1)
            for part, label in zip(shown.split(parts), of_parts, strict=True)
        ]
        fake = torch.cat(logits).float()
        objective, alpha = self.adversarial.objective, self.nda.weights_at(step).alpha
        return {"loss": generator_loss(fake, objective=objective, alpha=alpha)}

    def _judge(self, images: Tensor, labels: Tensor | None, *, save_memory: bool = False) -> Tensor:
        """Logits (B,) by a discriminator that stands still, its spectral norms too.

        To save memory its activations are thrown away, and computed again on the way back.
        """
        if save_memory:
            return checkpoint(self._judge, images, labels, use_reentrant=False)
        with frozen_power_iteration(self.gan.discriminator):
            return self.gan.discriminator(images, labels)

    def _penalty(
        self,
        shown: Sequence[Tensor],
        labels: Sequence[Tensor | None],
        changed: Tensor | None,
        alpha: float,
        generator: torch.Generator | None,
    ) -> Tensor:
        """The gradient penalty between real images and what the critic faces: alpha of it fakes.

        Fakes stand in for the broken images that did not change (``changed`` (B,) is False).
        """
        fake, real, *broken = shown
        mix = torch.rand(len(real), generator=generator).to(real.device)
        other = fake
        if broken:
            chosen = _column(torch.rand(len(real), generator=generator) < alpha, real)
            if changed is not None:
                chosen = chosen | ~_column(changed, real)
            other = torch.where(chosen, fake, broken[0])
        discriminator = self.gan.discriminator
        with frozen_power_iteration(discriminator):
            # Not by a call: what torch.compile makes of a module has no second derivative.
            return gradient_penalty(lambda x: discriminator.forward(x, labels[1]), real, other, mix)

    # What the discriminator is shown

    def _positive(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Real images after their own augmentation."""
        if self.flip:
            mirrored = torch.rand(len(images), generator=generator) < 0.5
            images = torch.where(_column(mirrored, images), images.flip(-1), images)
        if self.of_real is not None:
            chosen = torch.rand(len(images), generator=generator) < self.real_probability
            broken = self.of_real(images, generator=generator)
            images = torch.where(_column(chosen, images), broken, images)
        return images

    def _augmented(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Images of one stream after what all streams pass through, with gradient."""
        if self.of_all is not None:
            images = self.of_all(images, generator=generator)
        if self.diff_augment is not None:
            images = self.diff_augment(images, generator)
        return images


def _require_weights(nda: GanNdaConfig, adversarial: AdversarialConfig) -> None:
    """Now rather than at the first step that has broken images."""
    alpha, beta = nda.weights_at(nda.curriculum_steps)
    try:
        check_weights(adversarial.objective, alpha, beta, weighs_nda=beta > 0)
    except ValueError as error:
        raise ConfigError(f"nda.alpha, nda.beta: {error}") from error


def _column(chosen: Tensor, images: Tensor) -> Tensor:
    """A choice (B,), ready to broadcast over images."""
    return chosen.to(images.device, non_blocking=True)[:, None, None, None]


def _joined(labels: Sequence[Tensor | None]) -> Tensor | None:
    """One label tensor for the streams, or None for an unconditional GAN."""
    known = [one for one in labels if one is not None]
    return torch.cat(known) if known else None


def _below(negative: Tensor, real: Tensor) -> Tensor:
    """Share of the pairs of logits in which the negative's is below the real one's."""
    return _below_each(negative, real).mean()


def _below_each(negative: Tensor, real: Tensor) -> Tensor:
    """Of each negative (B,), the share of the real logits that lie above it."""
    return (negative[:, None] < real[None, :]).float().mean(dim=1)


def _mean_of(values: Tensor, chosen: Tensor) -> Tensor:
    """The mean of the values (B,) that are chosen, NaN when none is."""
    return values.masked_fill(~chosen, 0.0).sum() / chosen.sum()
