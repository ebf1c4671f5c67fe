"""How good a classifier of images is on the share of its training set that it never trained on."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from ndavid.checkpoint_files import MODEL_FILE
from ndavid.collectives import world_size
from ndavid.data.config import DataConfig
from ndavid.data.image_subsets import SubsetImages
from ndavid.engine.environment import describe as describe_environment
from ndavid.engine.hooks import HookContext
from ndavid.engine.loop import RunResult
from ndavid.engine.run_config import RunConfig
from ndavid.evaluation.agreement import together
from ndavid.evaluation.chance import classification_chances
from ndavid.evaluation.classify import (
    PerItem,
    accuracies,
    classification_details,
    classify,
    top_outcomes,
)
from ndavid.evaluation.data_warnings import absent_classes, skipped_in_training, unreadable
from ndavid.evaluation.image_views import ImageViews, ImageViewsConfig, describe_images
from ndavid.evaluation.protocol import Result
from ndavid.files import file_sha256
from ndavid.methods.classification import ClassificationMethod
from ndavid.models.classifier import EncoderClassifier


class HeldOutAccuracy:
    """An epoch hook for ``engine.fit`` that logs ``top1``, and what makes the final Result.

    Args:
        source: The held-out images, as a part of the whole set.
        views: How they are looked at.
        every: Epochs between measurements.
    """

    def __init__(self, source: SubsetImages, views: ImageViewsConfig, every: int) -> None:
        self.source = source
        self.views = views
        self.every = every

    def __call__(self, context: HookContext) -> dict[str, float]:
        """Returns ``top1`` of an epoch that is due, else nothing."""
        if context.epoch % self.every:
            return {}
        method = cast(ClassificationMethod, context.method)
        return {"top1": accuracies(self._predict(method, context.device))["top1"].value}

    def result(
        self,
        method: ClassificationMethod,
        trained: RunResult,
        trained_on: Tensor,
        data: DataConfig,
        run: RunConfig,
    ) -> Result:
        """Returns the accuracy of the last step's weights, and the digest of their file.

        Args:
            method: What was trained.
            trained: How the training ended.
            trained_on: (N,) labels of the images that it was trained on.
            data: The whole set.
            run: The training's settings.
        """
        device = next(method.parameters()).device
        predictions = self._predict(method, device)
        protocol = describe_images(self.views, data, self.source, split=data.split)
        protocol.num_images = len(predictions.labels)
        protocol.num_bad = len(predictions.bad)
        protocol.averaging = "one view an image"
        classes = self.source.classes
        protocol.warn(
            *unreadable(predictions.bad, "held-out", "images"),
            *skipped_in_training(trained.bad_clips, "images"),
            *absent_classes(classes, predictions.labels, "held-out", "images"),
            *absent_classes(classes, trained_on, "training", "images"),
        )
        protocol.selection = f"last step ({trained.steps})"
        protocol.notes += [
            f"Measured on {len(self.source)} images of {data.split} that were held out of training."
        ]
        metrics = accuracies(predictions)
        chances = classification_chances(predictions.labels, metrics)
        weights = trained.checkpoint / MODEL_FILE
        return Result(
            task="classifier",
            metrics=metrics,
            protocol=protocol,
            network=cast(EncoderClassifier, method.classifier).encoder.name,
            chance=chances["top1"],
            chances=chances,
            tested={"path": str(weights), "sha256": together(lambda: file_sha256(weights))},
            seed=run.seed,
            environment=describe_environment(
                seed=run.seed, device=device, world_size=world_size(), precision=run.precision
            ),
            details=classification_details(predictions, self.source.classes),
            # By their place in the whole set: among the held-out it depends on the seed.
            outcomes=top_outcomes(predictions, list(map(str, self.source.indices.tolist()))),
        )

    def _predict(self, method: ClassificationMethod, device: torch.device) -> PerItem:
        return classify(
            method,
            ImageViews(self.source, self.views),
            device=device,
            on_bad=self.views.on_bad,
            views_per_batch=self.views.views_per_batch,
            num_workers=self.views.num_workers,
            description="held-out images",
        )
