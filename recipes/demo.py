"""The main job on the embedded data: synthetic clips -> DPC with and without NDA -> fine-tuning.

    make demo            (or: python recipes/demo.py --output runs/demo)

It writes about 240 small mp4 clips whose classes differ only in motion, pretrains DPC twice at the
same budget (without and with negatives), fine-tunes both and a random encoder, and prints top-1
with its interval beside chance. Every command it runs is printed and can be run by hand. Steps that
are done are not done again; delete the output folder to start over.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from pathlib import Path

from ndavid.cli import main as ndavid_command
from ndavid.data.synthetic import write_motion_clips
from ndavid.errors import NdavidError
from ndavid.evaluation.protocol import Result, load_result
from ndavid.evaluation.report import (
    CurveGroup,
    Picture,
    Report,
    ReportRow,
    format_table,
    write_report,
)

ROOT = Path(__file__).resolve().parent.parent
ARMS = {"none": "demo_r10.yaml", "nda": "demo_r10_nda-temporal.yaml"}


def call(script: str, *arguments: str) -> None:
    """Runs one of the project's scripts with this Python, after printing the command."""
    command = [sys.executable, script, *arguments]
    print("\n$ python " + shlex.join(command[1:]), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def prepare_clips(folder: Path) -> Path:
    """Writes the synthetic clips and their manifest; returns the prepared folder."""
    clips, prepared = folder / "clips", folder / "prepared"
    if not (clips / "classInd.txt").exists():
        write_motion_clips(clips)
    if not (prepared / "manifest.csv").exists():
        places = {"--videos": clips, "--annotations": clips, "--output": prepared}
        options = [word for option, path in places.items() for word in (option, str(path))]
        call("datasets/prepare.py", "ucf101", *options)
    return prepared


def pretrain(folder: Path, prepared: Path, arm: str, config: str) -> Path:
    """Pretrains one arm and returns its run directory."""
    run = folder / f"pretrain-{arm}"
    call(
        "recipes/pretrain_dpc.py",
        *("--config", f"recipes/configs/dpc/{config}"),
        *("--data.manifest", str(prepared)),
        *("--run.output", str(run)),
    )
    return run


def finetune(folder: Path, prepared: Path, name: str, checkpoint: Path | None) -> Result:
    """Fine-tunes from a pretraining run (None: from random weights) and returns the test result."""
    output = folder / f"finetune-{name.replace(', ', '-').replace(' ', '-').lower()}"
    call(
        "eval/finetune.py",
        *("--config", "eval/configs/demo_finetune.yaml"),
        *("--checkpoint", str(checkpoint or "")),
        *("--manifest", str(prepared)),
        *("--output", str(output)),
    )
    return load_result(output / "result.json")


def draw_ops(folder: Path) -> Picture:
    """The gallery of ops on one of the clips."""
    picture = folder / "ops.png"
    first, second = sorted((folder / "clips").glob("*/*.mp4"))[0:31:30]
    ndavid_command(
        ["preview", "--input", str(first), "--partner", str(second), "--output", str(picture)]
    )
    return Picture(title="The negatives", image=picture, caption="Each row is one op on one clip.")


def write_page(folder: Path, rows: list[ReportRow], runs: dict[str, Path]) -> Path:
    """One page with the table, the curves, the gallery and each evaluation."""
    report = Report(
        title="ndavid demo",
        lead="DPC on synthetic clips whose classes differ only in motion. One seed, small budget.",
        rows=rows,
        curves=[CurveGroup(title="Pretraining", runs=runs)],
        pictures=[draw_ops(folder)],
    )
    return write_report(report, folder / "report.html")


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
    page = write_page(folder, rows, checkpoints)
    print(f"\n{format_table(rows)}")
    print(f"\none seed and a small budget: read the intervals. {time.monotonic() - started:.0f} s")
    print(f"report: {page}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"), help="folder to write")
    folder = parser.parse_args().output.resolve()
    try:
        run(folder)
    except NdavidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: step failed with exit code {error.returncode}; see above", file=sys.stderr)
        return error.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
