from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ndavid.errors import ConfigError
from ndavid.methods.classification import ClassificationMethod
from ndavid.models.normalize import Normalize


class MeanColour(nn.Module):
    """Three logits: the mean of each channel, times one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, video: Tensor) -> Tensor:
        return self.gain * video.mean(dim=(2, 3, 4))


def batch_of_colours() -> dict[str, Tensor]:
    video = torch.zeros(4, 3, 2, 8, 8, dtype=torch.uint8)
    for sample, channel in enumerate([0, 1, 2, 2]):
        video[sample, channel] = 255
    return {"video": video, "label": torch.tensor([0, 1, 2, 0])}


def test_loss_and_top1_are_those_of_the_normalised_clips() -> None:
    method, batch = ClassificationMethod(MeanColour()), batch_of_colours()
    result = method(batch, generator=torch.Generator(), step=0)
    logits = Normalize()(batch["video"]).mean(dim=(2, 3, 4))
    picked = logits.log_softmax(1)[torch.arange(4), batch["label"]]
    torch.testing.assert_close(result["loss"], -picked.mean())
    assert result["top1"].item() == 0.75
    assert not result["top1"].requires_grad
    result["loss"].backward()
    assert method.classifier.gain.grad.isfinite()


def test_label_smoothing_moves_mass_to_the_other_classes() -> None:
    batch = batch_of_colours()
    result = ClassificationMethod(MeanColour(), label_smoothing=0.3)(batch)
    log_p = Normalize()(batch["video"]).mean(dim=(2, 3, 4)).log_softmax(1)
    picked = log_p[torch.arange(4), batch["label"]]
    torch.testing.assert_close(result["loss"], -(0.7 * picked + 0.3 * log_p.mean(1)).mean())


def test_state_is_the_classifier_alone() -> None:
    assert set(ClassificationMethod(MeanColour()).state_dict()) == {"classifier.gain"}


def test_images_are_classified_as_clips_are_and_augmented_on_the_way() -> None:
    class MeanOfImages(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean(dim=(2, 3))

    def brighter(pixels: Tensor, generator: torch.Generator) -> Tensor:
        return pixels.float() / 255 + torch.rand(4, 1, 1, 1, generator=generator)

    clips = batch_of_colours()
    batch = {"image": clips["video"][:, :, 0], "label": clips["label"]}
    plain = ClassificationMethod(MeanOfImages())
    assert plain(batch)["top1"] == 0.75
    torch.testing.assert_close(
        plain(batch)["loss"], ClassificationMethod(MeanColour())(clips)["loss"]
    )
    method = ClassificationMethod(MeanOfImages(), augment=brighter)
    drawn = method(batch, generator=torch.Generator().manual_seed(3))["loss"]
    pixels = brighter(batch["image"], torch.Generator().manual_seed(3))
    logits = Normalize()(pixels).mean(dim=(2, 3))
    torch.testing.assert_close(drawn, nn.functional.cross_entropy(logits, batch["label"]))
    # A test sees the images as they are.
    torch.testing.assert_close(method.logits(batch["image"]), plain.logits(batch["image"]))
    with pytest.raises(ValueError, match="generator"):
        method(batch)


def test_impossible_smoothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        ClassificationMethod(MeanColour(), label_smoothing=1.0)
