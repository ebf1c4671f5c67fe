"""Measure generated images: fcd, kcd, precision and recall; FID, KID and IS with Inception.

    python eval/generation.py --config eval/configs/cifar10_generation.yaml \\
        --reference.root data/cifar10 --checkpoint runs/cifar10-gan \\
        --classifier runs/cifar10_resnet20 --output runs/cifar10-gan-generation

Images in a folder instead of a checkpoint: ``--generated.source flat --generated.root my_samples``.
Inception: ``--inception-weights FILE``, or ``--download true`` to let it be fetched. Several GPUs:
``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.generation import GenerationConfig, run


def main() -> None:
    # Keys have underscores; a hyphen is what fingers type.
    words = [w.replace("--inception-weights", "--inception_weights", 1) for w in sys.argv[1:]]
    run(parse(GenerationConfig, words, description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
