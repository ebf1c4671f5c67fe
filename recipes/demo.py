"""The main job on the embedded data: synthetic clips -> DPC with and without NDA -> fine-tuning.

    make demo            (or: python recipes/demo.py --output runs/demo)

It writes about 240 small mp4 clips whose classes differ only in motion, pretrains DPC twice at the
same budget (without and with negatives), fine-tunes both and a random encoder, and prints top-1
with its interval beside chance. Every command is printed. What is done is not done again.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from ndavid.cli import main as ndavid_command
from ndavid.config import run_main
from ndavid.data.synthetic import write_motion_clips
from ndavid.errors import NdavidError
from ndavid.evaluation import report
from ndavid.evaluation.protocol import Result, load_result
from ndavid.evaluation.report import ReportRow

ROOT = Path(__file__).resolve().parent.parent
ARMS = {"none": "demo_r10.yaml", "nda": "demo_r10_nda-temporal.yaml"}


def call(script: str, *arguments: str) -> None:
    """Runs one of the project's scripts with this Python, after printing the command."""
    command = [sys.executable, script, *arguments]
    print("\n$ python " + shlex.join(command[1:]), flush=True)
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        process.wait()
    finally:  # Ctrl-C was told to it, too: it saves what it has
        code = process.wait()
    if code:
        raise NdavidError(f"{script} failed; its own message stands above")


def prepare_clips(folder: Path) -> Path:
    """Writes the synthetic clips and their manifest; returns the prepared folder."""
    clips, prepared = folder / "clips", folder / "prepared"
    write_motion_clips(clips)
    source = ("--videos", str(clips), "--annotations", str(clips))
    call("datasets/prepare.py", "ucf101", *source, "--output", str(prepared))
    return prepared


def pretrain(folder: Path, prepared: Path, arm: str, config: str) -> Path:
    """Pretrains one arm and returns its run directory."""
    run = folder / f"pretrain-{arm}"
    call(
        "recipes/pretrain_dpc.py",
        *("--config", f"recipes/configs/dpc/{config}"),
        *("--data.root", str(prepared), "--run.output", str(run)),
    )
    return run


def finetune(folder: Path, prepared: Path, name: str, checkpoint: Path | None) -> Result:
    """Fine-tunes from a pretraining run (None: from random weights) and returns the test result."""
    output = folder / f"finetune-{name.replace(', ', '-').replace(' ', '-').lower()}"
    call(
        "eval/finetune.py",
        *("--config", "eval/configs/demo_finetune.yaml"),
        *("--checkpoint", str(checkpoint or "")),
        *("--data.root", str(prepared), "--output", str(output)),
    )
    return load_result(output / "result.json")


def draw_ops(folder: Path) -> report.Picture:
    """The gallery of ops on one of the clips."""
    picture = folder / "ops.png"
    first, second = sorted((folder / "clips").glob("*/*.mp4"))[0:31:30]
    clips = ("--input", str(first), "--partner", str(second))
    ndavid_command(["preview", *clips, "--output", str(picture)])
    caption = "Each row is one op on one clip."
    return report.Picture(title="The negatives", image=picture, caption=caption)


def write_page(folder: Path, rows: list[ReportRow], runs: dict[str, Path]) -> Path:
    """One page with the table, the curves, the gallery and each evaluation."""
    page = report.Report(
        title="ndavid demo",
        lead="DPC on synthetic clips whose classes differ only in motion. One seed, small budget.",
        rows=rows,
        curves=[report.CurveGroup(title="Pretraining", runs=runs)],
        pictures=[draw_ops(folder)],
    )
    return report.write_report(page, folder / "report.html")


def run(folder: Path) -> None:
    """Every step of the demo, in order."""
    started = time.monotonic()
    prepared = prepare_clips(folder)
    checkpoints = {arm: pretrain(folder, prepared, arm, config) for arm, config in ARMS.items()}
    names = {"random encoder": None, **{f"DPC, {arm}": run for arm, run in checkpoints.items()}}
    rows = [
        ReportRow(name=name, result=finetune(folder, prepared, name, checkpoint))
        for name, checkpoint in names.items()
    ]
    print(f"\n{report.format_table(rows)}")
    print(f"\none seed, a small budget: read the intervals. {time.monotonic() - started:.0f} s")
    print(f"report: {write_page(folder, rows, checkpoints)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write")
    run(parser.parse_args().output.resolve())


if __name__ == "__main__":
    run_main(main)
