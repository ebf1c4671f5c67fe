"""Linear probe of an encoder of images: on cached features, or by MoCo's recipe.

    python eval/image_linear.py --config eval/configs/cifar10_image-linear.yaml \\
        --data.root data/cifar10 --checkpoint runs/cifar10-moco --output runs/cifar10-moco-linear

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.image_linear import ImageLinearConfig, run


def main() -> None:
    run(parse(ImageLinearConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
