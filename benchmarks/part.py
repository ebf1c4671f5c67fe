"""What every benchmark script shares: its arguments and the JSON that it leaves.

The JSON holds whatever the script found, "machine" (machine.py) and "ratios", the rows that
`run.py` puts into the final table. Each has

* ``name``: "this / that", with what else identifies it;
* ``ratio``: the number; None where nothing could be measured, and the note says why;
* ``spread``: [low, high] around it, or None;
* ``limit``, ``at_least`` and ``ok``, where a limit was asked for: the ratio must not exceed it, or
  with ``at_least`` not fall below it;
* ``note``: a few words.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import machine


def arguments_of(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the first line of a script's docstring, and ``--output``."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path, help="also write everything as JSON")
    return parser


def write(output: Path | None, ratios: list[dict[str, Any]], **found: Any) -> None:
    """Writes what was found, if anybody asked for it."""
    if output is None:
        return
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {"machine": machine.facts(), **found, "ratios": ratios}
    output.write_text(json.dumps(report, indent=2) + "\n")


def print_ratios(rows: list[dict[str, Any]]) -> None:
    """The rows as they stand in the final table."""
    width = max((len(row["name"]) for row in rows), default=0) + 2
    for row in rows:
        low, high = row["spread"] or (None, None)
        spread = "" if low is None else f"[{low:.3g}, {high:.3g}]"
        line = f"{row['name']:{width}s}{number(row['ratio']):>9s} {spread:20s}{verdict(row):18s}"
        print(line + row["note"])


def number(ratio: float | None) -> str:
    """A ratio as the tables show it."""
    return "-" if ratio is None else f"{ratio:.3g}"


def verdict(row: dict[str, Any]) -> str:
    """The limit of a row, and that it was missed where it was."""
    if row.get("limit") is None:
        return ""
    sign = ">=" if row.get("at_least") else "<="
    return f"{sign} {row['limit']:.3g}{'' if row['ok'] else '  MISSED'}"
