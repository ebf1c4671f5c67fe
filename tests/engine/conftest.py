"""The toy run of toy.py, for tests in this folder."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """tests/engine/toy.py as a module."""
    file = Path(__file__).with_name("toy.py")
    spec = importlib.util.spec_from_file_location("engine_toy", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["engine_toy"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def toy_config(toy: ModuleType, tmp_path: Path) -> Callable[..., Any]:
    """Makes a ToyConfig that writes to tmp_path; ``run`` and ``optim`` take dicts of changes."""

    def make(
        run: dict[str, Any] | None = None, optim: dict[str, Any] | None = None, **toy_fields: Any
    ) -> Any:
        config = toy.ToyConfig(**toy_fields)
        config.run.output = str(tmp_path / "run")
        for part, changes in ((config.run, run), (config.optim, optim)):
            for name, value in (changes or {}).items():
                assert hasattr(part, name), name
                setattr(part, name, value)
        return config

    return make
