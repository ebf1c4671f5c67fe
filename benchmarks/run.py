"""All benchmarks, one after another, and one table of their ratios at the end.

    python benchmarks/run.py --output runs/bench
    python benchmarks/run.py --output runs/bench --parts nda_ops dpc_step

Every part is a script of its own beside this one, run in a process of its own: what it prints
goes to ``PART.log``, what it found to ``PART.json``. Then ``bench.json`` holds all of that, the
machine's facts and the load average before each part, and ``bench.md`` the table. A part that fails
is reported, the others go on, and the exit code is 1. At most 15 minutes on two cores.

A part has a ``main()`` and takes ``--output FILE.json``. Into the file it writes a dict with
"ratios", a list of rows for the table: ``name``, ``ratio`` and, where they apply, ``spread``
[low, high], ``limit``, ``at_least`` (the limit is a least value), ``ok``, ``note``. `part.write`
and `timing.ratio_row` make both; whatever else is in the dict is kept. A ratio is of things that
took turns in one run (timing.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import machine
import part
import psutil

HERE = Path(__file__).resolve().parent
SECONDS_A_PART = 600.0
SECONDS_TO_LEAVE = 5.0


class Part(NamedTuple):
    """A script, what it is called with, and what it is about."""

    arguments: tuple[str, ...]
    about: str


PARTS: dict[str, Part] = {
    "nda_ops": Part(("--threads", "1"), "operations against a copy of the batch"),
    "decoding": Part((), "decoders, prepared against original clips"),
    "loading": Part((), "a sample and image views against the usual way"),
    "loader": Part((), "the loader with 0, 1 and 2 workers"),
    "training_step": Part((), "where a step's time goes"),
    "dpc_step": Part((), "DPC's step by precision and layout"),
    "memory": Part((), "peak memory"),
    "growth": Part((), "how cost grows"),
    "moco_step": Part((), "what NDA adds to MoCo's step"),
    "gan_step": Part((), "what NDA adds to a GAN's steps"),
    "gpu": Part((), "speed on a GPU"),
}


def run_part(name: str, output: Path, timeout: float = SECONDS_A_PART) -> dict[str, Any]:
    """Runs one part; returns its report, and what went wrong if something did."""
    script = HERE / f"{name}.py"
    found, log = output / f"{name}.json", output / f"{name}.log"
    found.unlink(missing_ok=True)
    command = [sys.executable, str(script), "--output", str(found), *PARTS[name].arguments]
    outcome: dict[str, Any] = {
        "command": [f"{HERE.name}/{script.name}", *command[2:]],
        "load_before": machine.load(),
    }
    start = time.perf_counter()
    problem = run_to_its_end(command, log, timeout)
    outcome["seconds"] = time.perf_counter() - start
    if not problem:
        try:
            outcome["report"] = json.loads(found.read_text())
            outcome["report"]["ratios"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            problem = f"no report: {error!r}"
    if problem:
        outcome["problem"] = f"{problem}: {last_line(log)}"
    return outcome


def run_to_its_end(command: list[str], log: Path, timeout: float) -> str:
    """Runs a command, and ends all it started if it takes too long; returns what went wrong."""
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"not done after {timeout:.0f} s"
        finally:
            if process.poll() is None:
                end_with_descendants(process.pid)
                process.wait()
    return f"exit code {code}" if code else ""


def end_with_descendants(pid: int) -> None:
    """Ends a process and all that came of it: asked first, killed if they stay.

    Not by their session alone: torchrun's workers have their own. Nor by descent alone: who has
    lost a parent descends from nobody.
    """
    try:
        top = psutil.Process(pid)
        found = {top, *top.children(recursive=True)}
    except psutil.NoSuchProcess:
        return
    processes = [
        *found,
        *(p for p in psutil.process_iter() if p not in found and in_session(p, pid)),
    ]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, staying = psutil.wait_procs(processes, timeout=SECONDS_TO_LEAVE)
    for process in staying:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(staying, timeout=SECONDS_TO_LEAVE)


def in_session(process: psutil.Process, leader: int) -> bool:
    """Whether a process is in the session that ``leader`` began."""
    try:
        return os.getsid(process.pid) == leader
    except (ProcessLookupError, PermissionError):
        return False


def last_line(log: Path) -> str:
    """The last thing that a part said."""
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"{lines[-1].strip()} ({log})" if lines else f"it said nothing ({log})"


def rows_of(parts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all parts, each with its part's name; a part that failed gives none."""
    return [
        {"spread": None, "limit": None, "note": "", **row, "part": name}
        for name, outcome in parts.items()
        if "problem" not in outcome
        for row in outcome["report"]["ratios"]
    ]


COLUMNS = ("part", "what", "ratio", "spread", "limit", "holds", "note")


def cells(row: dict[str, Any]) -> tuple[str, ...]:
    """A row of the table as text."""
    spread = row["spread"]
    limit, holds = "", ""
    if row["limit"] is not None:
        limit = f"{'>=' if row.get('at_least') else '<='} {row['limit']:.3g}"
        holds = "yes" if row["ok"] else "NO"
    return (
        row["part"],
        row["name"],
        part.number(row["ratio"]),
        "" if spread is None else f"{spread[0]:.3g} to {spread[1]:.3g}",
        limit,
        holds,
        row["note"],
    )


def text_table(rows: Sequence[dict[str, Any]]) -> str:
    """The table for a terminal."""
    lines = [COLUMNS, *(cells(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def markdown(rows: Sequence[dict[str, Any]], report: dict[str, Any]) -> str:
    """The table and the machine's facts as a page."""
    lines = ["# Speed", "", *(f"- {fact}" for fact in facts_in_words(report["machine"])), ""]
    lines += [f"- {line}" for line in outcomes(report["parts"])]
    lines += ["", f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in cells(row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def facts_in_words(facts: dict[str, Any]) -> list[str]:
    """What a table of ratios needs beside it."""
    commit = facts["git"]
    where = "no git" if commit is None else commit["commit"] + " + changes" * commit["changed"]
    return [
        f"{facts['processor']}, {facts['cores_allowed']} cores, {facts['memory_gib']} GiB; "
        f"{' '.join(facts['flags']) or 'flags unknown'}; GPU: {facts['gpu'] or 'none'}",
        f"torch {facts['versions']['torch']}, Python {facts['versions']['python']}; {where}",
    ]


def outcomes(parts: dict[str, dict[str, Any]]) -> list[str]:
    """A line a part: how long it took, beside what load, and what went wrong."""
    lines = []
    for name, outcome in parts.items():
        load = outcome["load_before"]
        busy = "" if load is None else f", load before {load[0]:.1f}"
        failed = f"; FAILED: {outcome['problem']}" if "problem" in outcome else ""
        lines.append(f"{name}: {PARTS[name].about}; {outcome['seconds']:.0f} s{busy}{failed}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, default=Path("runs/bench"), help="a folder")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    output: Path = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    facts = machine.facts()
    parts: dict[str, dict[str, Any]] = {}
    for name in arguments.parts:
        parts[name] = run_part(name, output)
        print(outcomes({name: parts[name]})[0], flush=True)
    rows = rows_of(parts)
    report = {"machine": facts, "parts": parts, "ratios": rows}
    (output / "bench.json").write_text(json.dumps(report, indent=2) + "\n")
    (output / "bench.md").write_text(markdown(rows, report))
    print("", *facts_in_words(facts), "", text_table(rows), sep="\n")
    limited = [row for row in rows if row["limit"] is not None]
    failed = [name for name, outcome in parts.items() if "problem" in outcome]
    print(
        f"\n{sum(row['ok'] for row in limited)} of {len(limited)} limits hold; "
        f"{sum(outcome['seconds'] for outcome in parts.values()):.0f} s; "
        f"parts that failed: {', '.join(failed) or 'none'}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
