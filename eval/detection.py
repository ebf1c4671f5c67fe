"""Detection transfer: a Faster R-CNN on a pretrained image encoder, measured by AP.

    python eval/detection.py --config eval/configs/voc0712_detection.yaml \\
        --data.root data/VOCdevkit --checkpoint runs/moco-imagenet --output runs/moco-voc

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.detection import DetectionConfig, run


def main() -> None:
    run(parse(DetectionConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
