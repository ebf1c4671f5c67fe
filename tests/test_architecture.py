"""The doors of the house: which room may import which, read off the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ndavid"

# What may be imported by every room: leaves that import nothing of ours.
COMMON = {"errors", "collectives"}
ALLOWED = {
    "errors": set(),
    "collectives": set(),
    "config": {"errors"},
    "nda": {"errors"},
    "data": {"errors"},
    "models": COMMON,
    "losses": COMMON,
    "methods": COMMON | {"nda", "models", "losses"},
    "engine": COMMON | {"config"},
    "evaluation": COMMON | {"config", "data", "models", "losses", "methods", "engine"},
    "cli": {"errors", "config", "nda", "data"},
}


def rooms_imported(path: Path) -> set[str]:
    """Names of the ndavid rooms that a file imports, at any depth of the file."""
    tree = ast.parse(path.read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("ndavid.")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; use absolute ones"
            if node.module == "ndavid":
                found |= {a.name for a in node.names}
            elif node.module and node.module.startswith("ndavid."):
                found.add(node.module.split(".")[1])
    return found - {"__version__"}


def room_of(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_rooms_import_only_through_their_doors(path: Path) -> None:
    room = room_of(path)
    if room == "__init__":
        assert rooms_imported(path) == set()
        return
    assert room in ALLOWED, f"{path}: a room that DESIGN does not know; give it doors in this test"
    forbidden = rooms_imported(path) - ALLOWED[room] - {room}
    assert not forbidden, f"{path} imports {sorted(forbidden)}; {room} may import {ALLOWED[room]}"


def test_only_engine_knows_accelerate() -> None:
    for path in PACKAGE.rglob("*.py"):
        if room_of(path) in {"engine", "evaluation"}:
            continue
        modules = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert "accelerate" not in modules, path


def test_script_folders_are_not_packages() -> None:
    # datasets/__init__.py would shadow the Hugging Face package of that name.
    for folder in ("datasets", "recipes", "eval", "tests"):
        assert not (ROOT / folder / "__init__.py").exists(), folder


def test_no_catch_all_modules() -> None:
    names = {p.stem for p in PACKAGE.rglob("*.py")}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_no_global_randomness_in_the_package() -> None:
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert "np.random." not in text and "numpy.random" not in text, path
        assert "import random" not in text, path
