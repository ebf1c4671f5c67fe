"""Every YAML in the repository parses into its script's config, and says how to run it."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from ndavid import nda
from ndavid.config import from_yaml

ROOT = Path(__file__).resolve().parent.parent
DPC = sorted((ROOT / "recipes" / "configs" / "dpc").glob("*.yaml"))
EVAL = sorted((ROOT / "eval" / "configs").glob("*.yaml"))
LAUNCH = sorted((ROOT / "recipes" / "launch").glob("*.yaml"))


def load_script(path: Path) -> ModuleType:
    """Imports a script that is no package member, by its path."""
    name = f"script_{path.parent.name}_{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def pretrain_config(path: Path):  # type: ignore[no-untyped-def]
    return from_yaml(load_script(ROOT / "recipes" / "pretrain_dpc.py").PretrainDpcConfig, path)


def header(path: Path) -> str:
    """The comment on top of a file."""
    lines = path.read_text().splitlines()
    end = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def test_every_yaml_is_covered_by_a_test_here() -> None:
    kept = {p for p in ROOT.rglob("*.y*ml") if not {".venv", "runs", ".git"} & set(p.parts)}
    assert kept == set(DPC) | set(EVAL) | set(LAUNCH)
    assert DPC and EVAL and LAUNCH


@pytest.mark.parametrize("path", DPC, ids=lambda p: p.stem)
def test_pretraining_config(path: Path) -> None:
    config = pretrain_config(path)
    top = header(path)
    assert f"recipes/configs/dpc/{path.name}" in top and "recipes/pretrain_dpc.py" in top
    assert "# Hardware:" in top
    assert config.run.output == f"runs/{path.stem}"
    assert ("_nda-" in path.stem) == bool(config.nda.spec)
    if config.nda.spec:
        nda.from_spec(config.nda.spec)


@pytest.mark.parametrize("path", [p for p in DPC if "_nda-" in p.stem], ids=lambda p: p.stem)
def test_nda_config_differs_from_its_baseline_in_the_negatives_only(path: Path) -> None:
    baseline = path.with_name(path.stem.split("_nda-")[0] + ".yaml")
    assert baseline.exists(), f"{path.name} has no baseline {baseline.name} beside it"
    ours, theirs = (dataclasses.asdict(pretrain_config(p)) for p in (path, baseline))
    for config in (ours, theirs):
        config.pop("nda")
        config["run"].pop("output")
    assert ours == theirs


@pytest.mark.parametrize("path", EVAL, ids=lambda p: p.stem)
def test_evaluation_config(path: Path) -> None:
    task = path.stem.rsplit("_", 1)[1]
    config_class = {
        "finetune": "FinetuneConfig",
        "scratch": "FinetuneConfig",
        "linear": "LinearConfig",
        "retrieval": "RetrievalConfig",
    }[task]
    module = "finetune" if task == "scratch" else task
    script = load_script(ROOT / "eval" / f"{module}.py")
    assert from_yaml(getattr(script, config_class), path) is not None
    assert f"eval/configs/{path.name}" in header(path)


@pytest.mark.parametrize("path", LAUNCH, ids=lambda p: p.stem)
def test_launch_file(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert config.num_processes == yaml.safe_load(path.read_text())["num_processes"]
    assert f"recipes/launch/{path.name}" in header(path)
