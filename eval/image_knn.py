"""kNN classification of images with a pretrained encoder, k 20 and 200.

    python eval/image_knn.py --config eval/configs/cifar10_image-knn.yaml \\
        --data.root data/cifar10 --checkpoint runs/cifar10-moco --output runs/cifar10-moco-knn

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.image_knn import ImageKnnConfig, run


def main() -> None:
    run(parse(ImageKnnConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
