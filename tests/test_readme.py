"""What the README says can be done, can be done."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from accelerate.utils import LoggerType

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_library_block_runs_and_trains_the_encoder() -> None:
    (block,) = [text for text in blocks("python") if "info_nce" in text]
    names: dict[str, object] = {}
    exec(compile(block, "README.md", "exec"), names)
    assert names["broken"].pixels.shape == names["clips"].shape  # type: ignore[attr-defined]
    gradient = names["encoder"].stem[0].weight.grad  # type: ignore[attr-defined]
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_every_file_a_command_names_exists() -> None:
    named = set(re.findall(r"(?:recipes|eval|datasets|docs)/[\w./-]+\.(?:py|yaml|md|png)", README))
    assert len(named) > 8
    missing = {name for name in named if not (ROOT / name).exists()}
    assert not missing


def test_one_process_is_started_by_python_and_what_it_takes_to_use_more_is_said() -> None:
    section = README.split("## Several GPUs, mixed precision, trackers\n")[1].split("\n## ")[0]
    for said in ("plain `python`", "traceback", "run.precision", "run.trackers", "torchrun"):
        assert said in section
    (command,) = re.findall(r"^accelerate launch .*", README, flags=re.MULTILINE)
    assert command in section, "commands for one process need no launcher"
    named = re.findall(r"`(wandb|mlflow|comet_ml|aim)`", section)
    assert len(named) == 4 and set(named) <= {member.value for member in LoggerType}


def table_rows(first_cell: str) -> list[str]:
    """The rows of the table whose header begins with the cell."""
    _, _, rest = README.partition(f"| {first_cell} |")
    return rest.split("\n\n")[0].splitlines()


@pytest.mark.parametrize("method", ["dpc", "moco", "gan", "classifier"])
def test_the_table_of_recipes_names_every_config(method: str) -> None:
    folder = f"recipes/configs/{method}"
    rows = table_rows(f"config (`{folder}/`)")
    for path in (ROOT / folder).glob("*.yaml"):
        stem, _, op = path.stem.partition("_nda-")
        (row,) = [line for line in rows if line.startswith(f"| `{stem}` |")]
        assert (op or "none") in row, path.name


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make (\S+)", "\n".join(blocks("bash")), flags=re.MULTILINE)) <= targets
