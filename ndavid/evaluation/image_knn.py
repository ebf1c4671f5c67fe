"""kNN classification of images with frozen features (``knn.py`` has the vote)."""

from __future__ import annotations

from dataclasses import dataclass

from ndavid.evaluation.frozen_images import (
    FrozenImagesConfig,
    load_frozen_images,
    write_image_result,
)
from ndavid.evaluation.knn import KnnSettings, classify_by_neighbours
from ndavid.evaluation.output_folder import alone_in_output
from ndavid.evaluation.protocol import Result


@dataclass(kw_only=True)
class ImageKnnConfig(FrozenImagesConfig, KnnSettings):
    """kNN classification of images with frozen features."""

    output: str = ""
    """folder for result.json and report.html; empty:
    runs/, the checkpoint\'s name and -image_knn (evaluation/output_folder.py)"""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_votes()


@alone_in_output
def run(config: ImageKnnConfig) -> Result:
    """Classifies the test images, writes ``result.json`` and returns it."""
    frozen = load_frozen_images(config)
    return write_image_result(classify_by_neighbours(frozen, config), config, frozen.loaded.opened)
