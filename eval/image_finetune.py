"""Fine-tune an encoder of images on all of the labels or a share, or train it from scratch.

    python eval/image_finetune.py --config eval/configs/cifar10_10percent_image-finetune.yaml \\
        --data.root data/cifar10 --checkpoint runs/cifar10-moco --output runs/cifar10-moco-10percent

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.image_finetune import ImageFinetuneConfig, run


def main() -> None:
    run(parse(ImageFinetuneConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
