"""Anomalies told by a GAN's discriminator: AUROC, AUPR and FPR at 95% TPR.

    python eval/anomaly.py --config eval/configs/cifar10_anomaly.yaml \\
        --data.root data/cifar10 --checkpoint runs/cifar10-gan-jigsaw \\
        --output runs/cifar10-gan-jigsaw-anomaly

Several GPUs: ``accelerate launch`` instead of ``python``. ``--help`` lists every key.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.evaluation.anomaly import AnomalyConfig, run


def main() -> None:
    run(parse(AnomalyConfig, sys.argv[1:], description=__doc__ or ""))


if __name__ == "__main__":
    run_main(main)
