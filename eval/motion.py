"""Motion probe: do a pretrained encoder's features tell true clips from reversed and shuffled ones?

    python eval/motion.py --config eval/configs/ucf101_motion.yaml \\
        --data.root data/ucf101 --checkpoint runs/ucf101-stitch --output runs/ucf101-stitch-motion

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.motion import MotionConfig, run


def main() -> None:
    run(parse(MotionConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
