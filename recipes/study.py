"""Run a study: a grid of trainings and measurements, and what their differences say.

    python recipes/study.py --config recipes/configs/studies/images_cpu.yaml \\
        --places.cifar10 data/cifar10.npz --output runs/studies/images

From the repository's root. Stopped or failed, it goes on when the command is given again; steps
that were done are not repeated. The output folder holds results.csv, tables.md, differences.json,
figures, and every run and result with its log. ``--dry_run true`` lists the steps, and
``--report_only true`` writes the report of what is there. The exit code is 1 where steps failed.
"""

from __future__ import annotations

import sys

from ndavid.config import parse, run_main
from ndavid.study.config import StudyConfig
from ndavid.study.report import write_report
from ndavid.study.runner import list_steps, run_steps


def main() -> None:
    config = parse(StudyConfig, sys.argv[1:], description=__doc__ or "")
    if config.dry_run:
        print(list_steps(config))
        return
    words = ["python", *sys.argv]
    if config.report_only:
        print(write_report(config, words))
        return
    try:
        progress = run_steps(config)
    except SystemExit:  # told to stop: what there is may be all there will ever be
        print(write_report(config, words))
        raise
    print(write_report(config, words))
    for step, reason in progress.failures:
        print(f"failed: {step.folder}: {reason}", file=sys.stderr)
    if progress.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    run_main(main)
