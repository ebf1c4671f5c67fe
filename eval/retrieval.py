"""Nearest-neighbour retrieval with a pretrained encoder, R@k.

    python eval/retrieval.py --config eval/configs/ucf101_retrieval.yaml \\
        --data.root data/ucf101 --checkpoint runs/ucf101-stitch

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.retrieval import RetrievalConfig, run


def main() -> None:
    run(parse(RetrievalConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
