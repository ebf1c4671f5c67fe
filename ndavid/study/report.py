"""Writes what a study has found: results.csv, differences.json, tables.md and figures."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from ndavid.files import write_whole_text
from ndavid.study.caveats import LEAK
from ndavid.study.collect import Collected, collect, write_csv
from ndavid.study.config import TRAINING, StudyConfig
from ndavid.study.figures import difference_figure
from ndavid.study.paired import Difference, differences
from ndavid.study.plan import cells
from ndavid.study.tables import measurement_tables, overview, training_table

RESULTS, DIFFERENCES, TABLES = "results.csv", "differences.json", "tables.md"
_NAMED = 5


def write_report(config: StudyConfig, command: Sequence[str]) -> Path:
    """Writes the files into ``output``, from the steps that have finished; returns the tables.

    Args:
        config: The study.
        command: The words that started it, which head the tables.

    Raises:
        ConfigError, DataError: As `collect`.
    """
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    collected = collect(config, cells(config))
    found = differences(collected, config.baseline, config.resamples)
    write_csv(collected.rows, output / RESULTS)
    _write_json(config, collected, found, output / DIFFERENCES)
    page = _page(config, collected, found, command)
    write_whole_text(output / TABLES, page)
    return output / TABLES


def _write_json(
    config: StudyConfig, collected: Collected, found: Sequence[Difference], path: Path
) -> None:
    content = {
        "title": config.title,
        "baseline": config.baseline,
        "environments": collected.environments,
        "commits": collected.commits,
        "config": dataclasses.asdict(config),
        "differences": [dataclasses.asdict(difference) for difference in found],
    }
    write_whole_text(path, json.dumps(content, indent=1) + "\n")


def _page(
    config: StudyConfig,
    collected: Collected,
    found: Sequence[Difference],
    command: Sequence[str],
) -> str:
    parts = [
        f"# {config.title or 'A study'}\n",
        f"```bash\n{shlex.join(command)}\n```\n",
        _facts(config, collected, found),
    ]
    for method in [m.name for m in config.methods]:
        tables = measurement_tables(config, method, collected, found)
        if not tables:
            continue
        parts.append(f"## {method}\n")
        parts += _figure(config, method, collected, found)
        if len(tables) > 1:
            parts.append(overview(config, method, collected, found).markdown())
        parts += [table.markdown() for table in tables]
    training = training_table(config, collected)
    parts += ["## Training\n", training.markdown()] if training else []
    return "\n".join(parts)


def _figure(
    config: StudyConfig, method: str, collected: Collected, found: Sequence[Difference]
) -> list[str]:
    """Draws a method's differences and returns the line that shows them; empty without any.

    Random weights are left to the tables: beside their distance no other could be read.
    """
    trained = {arm.name for arm in config.arms if arm.trained}
    of_method = [d for d in found if d.method == method and d.arm in trained]
    if not of_method:
        return []
    path = Path(config.output) / f"differences_{method}.png"
    difference_figure(
        of_method,
        baseline=config.baseline,
        percent={(row.measurement, row.metric): row.percent for row in collected.rows},
        lower_is_better={
            (m.name, metric) for m in config.measurements for metric in m.lower_is_better
        },
        path=path,
    )
    return [f"![Differences of {method} to {config.baseline}]({path.name})\n"]


def _facts(config: StudyConfig, collected: Collected, found: Sequence[Difference]) -> str:
    """What was run, what is missing, and how many intervals would exclude 0 by chance alone."""
    trainings = [s for name, s in collected.seconds.items() if name.endswith(f"/{TRAINING}")]
    seconds = sum(collected.seconds.values())
    lines = [
        f"{len(trainings)} trainings ({sum(trainings) / 3600:.2f} h of wall time, added up) and "
        f"{len(collected.seconds) - len(trainings)} measurements "
        f"({(seconds - sum(trainings)) / 3600:.2f} h)."
    ]
    if collected.missing:
        missing = collected.missing
        lines.append(f"**Missing: {len(missing)} steps** ({_first_few(missing)}).")
    chosen = config.chosen_arms()
    if left_out := [arm.name for arm in config.arms if arm not in chosen]:
        lines.append(f"Arms left out (`only_arms`): {', '.join(left_out)}.")
    if config.splits:
        dealt = ", ".join(f"seed {seed} on {config.split_of(seed)}" for seed in config.seeds)
        lines.append(f"Official splits: {dealt}.")
    if len(collected.commits) > 1:
        lines.append(f"Made with the code of several commits: {', '.join(collected.commits)}.")
    lines.append(
        f"Each arm is paired with `{config.baseline}`, seed by seed and item by item; bold "
        "intervals exclude 0."
    )
    deciding = sum(difference.deciding is not None for difference in found)
    if deciding:
        lines.append(
            f"Of the {deciding} intervals that decide (over seeds and items; over seeds where "
            f"there are no items) about {0.05 * deciding:.1f}, at most, would exclude 0 if no arm "
            "differed from the baseline at all."
        )
    return "\n".join(lines) + "\n" + "".join(f"\n{line}\n" for line in _caveats(collected))


def _caveats(collected: Collected) -> list[str]:
    """What results warn of, leaks first: each once, with the measurements that it concerns."""
    found = dict(collected.caveats)
    if collected.unsourced:
        text = (
            "The videos' sources are unknown (no manifest could be read), so that clips of one "
            "source are taken for independent, and intervals over items are too narrow."
        )
        found[text] = collected.unsourced
    lines = []
    for text in sorted(found, key=lambda text: not text.startswith(LEAK)):
        shown = f"**{text}**" if text.startswith(LEAK) else text
        lines.append(f"{shown} In {len(found[text])} measurements ({_first_few(found[text])}).")
    return lines


def _first_few(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
