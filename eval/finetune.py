"""Fine-tune a pretrained encoder for action recognition, or train it from scratch, and test it.

    python eval/finetune.py --config eval/configs/ucf101_finetune.yaml \\
        --data.root data/ucf101 --checkpoint runs/ucf101-stitch --output runs/ucf101-stitch-finetune

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.finetune import FinetuneConfig, run


def main() -> None:
    run(parse(FinetuneConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
