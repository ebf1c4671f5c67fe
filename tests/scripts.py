"""The repository's scripts, which are no package: imported by path, asked what they understand."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


class Parsed(Exception):
    """Raised in place of a script's work, once it has understood its command line."""


def load(path: Path) -> ModuleType:
    """A script as a module."""
    name = f"script_{path.parent.name}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec and spec.loader
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def check(script: str, arguments: Sequence[str], where: str) -> None:
    """A script understands a command line: its config, its keys, its values.

    Args:
        script: from the repository's root.
        arguments: as on the command line; files are read from the working directory.
        where: for the message.

    Raises:
        AssertionError: argparse refused.
        NdavidError: ours refused.
    """
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(ROOT / script.rpartition("/")[0])  # as Python does for a script
    module = load(ROOT / script)
    patch.setattr(sys, "argv", [script, *arguments])
    if hasattr(module, "parse"):
        patch.setattr(module, "parse", _stop_after(module.parse))
    else:
        parser = argparse.ArgumentParser
        patch.setattr(parser, "parse_args", _stop_after(parser.parse_args))
    try:
        with pytest.raises(Parsed):
            module.main()
    except SystemExit as error:
        raise AssertionError(f"{where}: refused") from error
    finally:
        patch.undo()


def _stop_after(parse: Callable[..., Any]) -> Callable[..., Any]:
    """The same parser, after which nothing is done."""

    def stopped(*arguments: Any, **options: Any) -> Any:
        parse(*arguments, **options)
        raise Parsed

    return stopped
