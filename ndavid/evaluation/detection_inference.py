"""Runs a trained detector over a test set, each image on exactly one rank.

Boxes come back in pixels of the original image, since objects are annotated there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader, Subset

from ndavid.collectives import rank, world_size
from ndavid.data.detection import (
    BoxedImage,
    DetectionDataset,
    DetectionSet,
    collate_detection,
    read_image,
)
from ndavid.engine.distributed import gather_objects
from ndavid.engine.loader import batches, to_device
from ndavid.engine.shared_memory import InSharedMemory, check_room
from ndavid.errors import TrainingError
from ndavid.evaluation.agreement import together
from ndavid.evaluation.detection_ap import ImageResult
from ndavid.evaluation.detection_figure import detections_figure
from ndavid.evaluation.report import Picture
from ndavid.methods.detection import DetectionMethod
from ndavid.progress import Progress

Found = dict[str, torch.Tensor]

_PICTURES = 12


def detect_all(
    method: DetectionMethod,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    batch_size: int = 1,
    num_workers: int = 0,
) -> list[ImageResult]:
    """What is in each image of ``dataset`` and what was found in it, on every rank.

    Args:
        method: in eval mode during the call, restored after it.
        dataset: read without augmentation.
        device: where ``method`` is.
        batch_size: images a forward pass.
        num_workers: loader processes.

    Raises:
        ConfigError: the loader processes' batches find too little shared memory.
        DataError: an image that cannot be read, on all ranks.
        TrainingError: boxes or scores that are not finite.
    """
    training = method.training
    method.eval()
    try:
        mine = together(lambda: _detect_mine(method, dataset, device, batch_size, num_workers))
    finally:
        method.train(training)
    found = {index: one for part in gather_objects(mine) for index, one in part.items()}
    images = dataset.images.images
    if found.keys() != set(range(len(images))):
        raise AssertionError("an image was not looked at")
    return [_result(image, found[index]) for index, image in enumerate(images)]


def _detect_mine(
    method: DetectionMethod,
    dataset: DetectionDataset,
    device: torch.device,
    batch_size: int,
    num_workers: int,
) -> dict[int, Found]:
    """This rank's share of the images: what was found, by index, in original pixels."""
    mine = range(rank(), len(dataset), world_size())
    check_room(
        lambda: collate_detection([dataset[mine[0]]]),
        batch_size=batch_size,
        num_workers=num_workers,
        num_batches=-(-len(mine) // batch_size),
    )
    loader = DataLoader(
        Subset(dataset, mine),
        batch_size=batch_size,
        collate_fn=InSharedMemory(collate_detection),
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    found: dict[int, Found] = {}
    with (
        torch.inference_mode(),
        Progress(len(mine), "detecting", unit="image", silent=rank() != 0) as progress,
    ):
        for batch in batches(loader):
            indices, sizes = batch["index"].tolist(), batch["size"].tolist()
            outputs = method.detect(to_device(batch, device))
            for index, size, output in zip(indices, sizes, outputs, strict=True):
                found[index] = _original(output, dataset.images.images[index], size)
            progress.advance(len(indices))
    return found


def _original(output: Found, image: BoxedImage, size: Sequence[int]) -> Found:
    """Detections of a resized image in pixels of the original one."""
    height, width = size
    output = {name: value.cpu() for name, value in output.items()}
    if not (output["boxes"].isfinite().all() and output["scores"].isfinite().all()):
        raise TrainingError("the detector gives numbers that are not finite; it is broken")
    factors = torch.tensor([image.width / width, image.height / height] * 2)
    return output | {"boxes": output["boxes"].float() * factors}


def _result(image: BoxedImage, found: Found) -> ImageResult:
    return ImageResult(
        boxes=image.boxes,
        labels=image.labels,
        difficult=image.difficult,
        crowd=image.crowd,
        found_boxes=found["boxes"],
        found_scores=found["scores"].float(),
        found_labels=found["labels"],
    )


def picture_of(images: DetectionSet, results: Sequence[ImageResult]) -> Picture:
    """A sheet of test images, evenly spaced over the set, with annotated and found boxes."""
    count = min(_PICTURES, len(results))
    chosen = [place * len(results) // count for place in range(count)]
    pixels = [read_image(images.root, images.images[index]) for index in chosen]
    return Picture(
        title="Detections",
        image=detections_figure(pixels, [results[i] for i in chosen], images.classes),
        caption="Test images, evenly spaced over the set. White: annotated (grey: difficult or "
        "crowd). Coloured: found with a score of at least 0.5.",
    )
