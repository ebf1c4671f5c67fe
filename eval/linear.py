"""Linear probe of a pretrained encoder on cached features.

    python eval/linear.py --config eval/configs/ucf101_linear.yaml \\
        --data.root data/ucf101 --checkpoint runs/ucf101-stitch --output runs/ucf101-stitch-linear

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.linear import LinearConfig, run


def main() -> None:
    run(parse(LinearConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
