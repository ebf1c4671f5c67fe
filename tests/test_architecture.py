"""The doors of the house: which room may import which, read off the source itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "ndavid"

# What may be imported by every room: leaves that import nothing of ours but the errors.
COMMON = {
    "errors",
    "collectives",
    "checkpoint_files",
    "files",
    "locks",
    "ranges",
    "progress",
    "interruption",
}
ALLOWED = {
    "errors": set(),
    "collectives": set(),
    "progress": set(),
    "interruption": {"errors"},
    "files": {"errors"},
    "checkpoint_files": {"errors", "files"},
    "locks": {"errors"},
    "failures": {"errors"},
    "ranges": {"errors"},
    "config": {"errors", "failures"},
    "nda": {"errors"},
    "data": {"errors", "config", "files", "locks", "ranges", "progress"},
    "models": COMMON,
    "losses": COMMON,
    "methods": COMMON | {"nda", "models", "losses"},
    "engine": COMMON | {"config"},
    "evaluation": COMMON | {"config", "data", "models", "losses", "methods", "engine"},
    "study": {"errors", "files", "locks", "config", "interruption", "engine", "evaluation"},
    "cli": {"errors", "failures", "config", "nda", "data"},
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
        if room_of(path) == "engine":
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


# Functions that draw from torch's default generator unless they are given another.
DRAWS = {
    *("rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial", "poisson"),
    *("rand_like", "randn_like", "randint_like"),
}
DRAWS_IN_PLACE = {
    *("normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "geometric_"),
    "log_normal_",
}
# The default generator is set in two places: around initialisers, and before each step.
RESEEDS = {
    ("engine/rng.py", "torch.random.default_generator.manual_seed"),
    ("engine/updates.py", "torch.manual_seed"),
}


def imported_names(tree: ast.Module) -> dict[str, str]:
    """The name in a file -> what it stands for, dotted."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                names[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """``np.random.rand`` as ``numpy.random.rand``; empty for what does not begin at an import."""
    if isinstance(node, ast.Name):
        return names.get(node.id, "")
    if isinstance(node, ast.Attribute) and (start := dotted(node.value, names)):
        return f"{start}.{node.attr}"
    return ""


def uses_default_generator(call: ast.Call, name: str) -> bool:
    """Whether a call draws from or seeds a generator that everybody shares."""
    given = [k.value for k in call.keywords if k.arg == "generator"]
    own = bool(given) and not (isinstance(given[0], ast.Constant) and given[0].value is None)
    last = name.rsplit(".", 1)[-1]
    if name.startswith("torch."):
        if last in {"manual_seed", "manual_seed_all", "seed", "seed_all", "set_rng_state"}:
            return True
        # Initialisers have no say in the matter: whoever builds a network does it in `seeded`.
        return last in DRAWS and not own
    method = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    return not name and method in DRAWS_IN_PLACE and not own


def global_randomness(source: str) -> set[str]:
    """What a file uses of random numbers that are not a function of the run's seed."""
    tree = ast.parse(source)
    names = imported_names(tree)
    found = {n for n in names.values() if n.split(".")[0] == "random"}
    found |= {n for n in names.values() if n.startswith("numpy.random")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            name = dotted(node, names)
            found |= {name} if name.startswith("numpy.random") else set()
        if isinstance(node, ast.Call):
            name = dotted(node.func, names)
            found |= (
                {name or ast.unparse(node.func)} if uses_default_generator(node, name) else set()
            )
    return found


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_no_global_randomness_in_the_package(path: Path) -> None:
    relative = path.relative_to(PACKAGE).as_posix()
    allowed = {name for file, name in RESEEDS if file == relative}
    assert global_randomness(path.read_text()) == allowed


@pytest.mark.parametrize(
    "source",
    [
        "import random",
        "import random as r",
        "from random import shuffle",
        "import numpy as np\nnp.random.rand(2)",
        "import numpy\nx = numpy.random.default_rng",
        "from numpy import random",
        "from numpy.random import default_rng",
        "import numpy.random as npr",
        "import torch\ntorch.rand(2)",
        "import torch as t\nt.randperm(3)",
        "import torch\ntorch.randint(3, (2,), generator=None)",
        "from torch import randn\nrandn(2)",
        "import torch\ntorch.randn_like(x)",
        "import torch\ntorch.manual_seed(0)",
        "import torch\ntorch.cuda.manual_seed_all(0)",
        "import torch\ntorch.empty(2).uniform_(0, 1)",
        "def f(x): x.normal_()",
    ],
)
def test_the_check_sees_global_randomness(source: str) -> None:
    assert global_randomness(source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.rand(2, generator=g)",
        "import torch\ng = torch.Generator().manual_seed(3)",
        "import torch\ntorch.empty(2).uniform_(0, 1, generator=g)",
        "from torch import nn\nnn.init.normal_(w)",
        "from torchvision.transforms import v2\nv2.functional.normalize(x)",
        "def rand(): return rand()",
    ],
)
def test_the_check_passes_seeded_draws(source: str) -> None:
    assert not global_randomness(source)
