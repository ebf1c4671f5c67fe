"""kNN classification of videos with a pretrained encoder.

    python eval/knn.py --config eval/configs/ucf101_knn.yaml \\
        --data.root data/ucf101 --checkpoint runs/ucf101-moco --output runs/ucf101-moco-knn

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.knn import KnnConfig, run


def main() -> None:
    run(parse(KnnConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
