"""AUROC of an encoder's features between the test set and other sets, or broken images.

    python eval/ood.py --config eval/configs/cifar10_ood.yaml \\
        --data.root data/cifar10 --checkpoint runs/cifar10-moco --output runs/cifar10-moco-ood

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.ood import OodConfig, run


def main() -> None:
    run(parse(OodConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
