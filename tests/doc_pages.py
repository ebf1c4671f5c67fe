"""The code on pages of Markdown: its blocks, and its commands as the shell reads them.

A block that nobody could run is marked on the line above it, with the reason:
``<!-- not run: needs eight GPUs -->``.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROGRAMS = ("python", "accelerate", "torchrun", "make", "pip", "ndavid")

_BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$",
    flags=re.DOTALL | re.MULTILINE,
)
_STUB = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["COMMANDS"], "a") as log:
    log.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and why it is not run, empty if it is."""

    language: str
    text: str
    reason: str
    line: int


def pages() -> list[str]:
    """Every page of the repository that may hold code, from the root."""
    found = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    for folder in ("docs", "datasets"):
        found += sorted((ROOT / folder).rglob("*.md"))
    return [path.relative_to(ROOT).as_posix() for path in found]


def blocks(page: str) -> list[Block]:
    """The blocks of Python and of commands; in fences without a language those that call ours."""
    text = (ROOT / page).read_text()
    found = []
    for match in _BLOCK.finditer(text):
        language = match["language"]
        if not language and re.match(r"(python|accelerate|torchrun|make|ndavid) ", match["text"]):
            language = "bash"
        if language in ("bash", "python"):
            line = text[: match.start("text")].count("\n") + 1
            found.append(Block(language, match["text"], match["reason"] or "", line))
    return found


def commands(block: Block, folder: Path) -> list[list[str]]:
    """The commands of a block as bash would start them: loops, variables and quotes resolved.

    Args:
        block: of commands.
        folder: for stand-ins of the programs, which note how they are called and do nothing.
    """
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    for name in PROGRAMS:
        (programs / name).write_text(_STUB)
        (programs / name).chmod(0o755)
    (folder / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
    (folder / ".venv" / "bin" / "activate").touch()
    log = folder / "commands.jsonl"
    log.write_text("")
    # Nothing else is on the path: a command that is not known is an error.
    subprocess.run(
        ["/bin/bash", "-eu", "-c", block.text],
        cwd=folder,
        env={"PATH": str(programs), "COMMANDS": str(log), "HOME": os.environ.get("HOME", "")},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    return [json.loads(line) for line in log.read_text().splitlines()]


def script_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The script that a command starts and its arguments, None for other programs."""
    if words[0] not in ("python", "accelerate", "torchrun"):
        return None
    place = next(k for k, word in enumerate(words) if word.endswith(".py"))
    return words[place], words[place + 1 :]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the forge makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> list[str]:
    """Targets of a page's links and pictures that lead to files of the repository."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in found if not re.match(r"\w+:", target)]
