"""Detection as a method: padding is not seen, labels shift and shift back, one image is learnt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ndavid.engine.rng import seeded
from ndavid.methods.detection import DetectionMethod
from ndavid.models.detector import DetectorConfig, build_detector
from ndavid.models.encoders.build import build_encoder
from ndavid.models.normalize import Normalize

SMALL = DetectorConfig(
    layout="single",
    head_norm=False,
    anchor_sizes=[16, 32],
    head_width=32,
    proposals=60,
    regions=16,
)


def method() -> DetectionMethod:
    with seeded(0, "init"):
        return DetectionMethod(build_detector(build_encoder("cifar:resnet20"), SMALL, 2))


def batch(pad: int = 0) -> dict[str, Tensor]:
    """Two images of 48x40 and 40x48 with two and one boxes, ``pad`` more pixels than need be."""
    draw = torch.Generator().manual_seed(3)
    images = torch.zeros(2, 3, 48 + pad, 48 + pad, dtype=torch.uint8)
    sizes = [(48, 40), (40, 48)]
    for image, (height, width) in zip(images, sizes, strict=True):
        image[:, :height, :width] = torch.randint(
            60, 100, (3, height, width), generator=draw, dtype=torch.uint8
        )
    images[0, 0, 6:26, 8:30] = 250
    images[0, 2, 30:44, 4:20] = 250
    images[1, 2, 10:32, 20:44] = 250
    return {
        "image": images,
        "size": torch.tensor(sizes),
        "boxes": torch.tensor([[8.0, 6, 30, 26], [4.0, 30, 20, 44], [20.0, 10, 44, 32]]),
        "box_labels": torch.tensor([0, 1, 1]),
        "num_boxes": torch.tensor([2, 1]),
    }


class Spy(nn.Module):
    """Keeps what a detector is given."""

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        self.images, self.targets = images, targets
        if targets is not None:
            return {"loss_a": torch.tensor(2.0, requires_grad=True), "loss_b": torch.tensor(0.5)}
        found = {"boxes": torch.zeros(1, 4), "scores": torch.ones(1), "labels": torch.tensor([1])}
        return [found for _ in images]


def test_the_detector_gets_normalised_images_without_padding_and_labels_from_one() -> None:
    spy = Spy()
    data = batch(pad=16)
    output = DetectionMethod(spy)(data, generator=torch.Generator(), step=0)
    assert output["loss"].requires_grad and output["loss"].item() == 2.5
    assert output["loss_a"].item() == 2.0 and not output["loss_a"].requires_grad
    assert [tuple(image.shape) for image in spy.images] == [(3, 48, 40), (3, 40, 48)]
    expected = Normalize()(data["image"])
    assert torch.equal(spy.images[1], expected[1, :, :40, :48])
    assert spy.targets is not None
    assert [t["labels"].tolist() for t in spy.targets] == [[1, 2], [2]]
    assert torch.equal(spy.targets[1]["boxes"], data["boxes"][2:])
    found = DetectionMethod(spy).detect(data)
    assert [one["labels"].tolist() for one in found] == [[0], [0]] and spy.targets is None


def test_padding_changes_nothing() -> None:
    model = method().eval()
    with torch.inference_mode():
        tight, loose = model.detect(batch()), model.detect(batch(pad=40))
    for one, other in zip(tight, loose, strict=True):
        assert len(one["scores"]) > 0
        assert torch.equal(one["boxes"], other["boxes"])
        assert torch.equal(one["scores"], other["scores"])


def test_two_images_are_learnt() -> None:
    model = method()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    data = batch()
    first = last = 0.0
    with seeded(0, "steps"):
        for step in range(100):
            loss = model(data, generator=torch.Generator(), step=step)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            first, last = first or loss.item(), loss.item()
    assert last < 0.3 * first
    # Statistics of two images alone: as in training.
    model.eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train()
    with torch.no_grad():
        found = model.detect(data)
    wanted = [{0: data["boxes"][0], 1: data["boxes"][1]}, {1: data["boxes"][2]}]
    for one, boxes in zip(found, wanted, strict=True):
        for label, box in boxes.items():
            mine = one["labels"] == label
            best = one["boxes"][mine][one["scores"][mine].argmax()]
            assert torch.allclose(best, box, atol=5), (label, best, box)
