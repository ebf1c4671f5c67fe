"""Docstrings as the house writes them, for Sphinx: a small extension used by conf.py.

The house's docstrings are plain text first. Names stand in single or double backticks, commands and
tables are indented below a blank line, and a string under a field is its help text. Here such text
becomes reStructuredText: names that can be found become links, indented text stays as it is typed.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from typing import Any

from sphinx.application import Sphinx

_CODE = re.compile(r"(?<![:`\w])(`{1,2})(?!`)([^`]+)\1(?![`_\w])")
_NAME = re.compile(r"[A-Za-z_][\w.]*")
# Packages whose members are documented under their own name, not under the file that holds them.
_DOORS = ("ndavid.nda", "ndavid.losses")
_BEFORE_NAPOLEON = 400


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("autodoc-process-docstring", rewrite, priority=_BEFORE_NAPOLEON)
    app.connect("autodoc-process-signature", hide_keys)
    return {"parallel_read_safe": True}


def rewrite(
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Turns the lines of one docstring into reStructuredText, in place."""
    text = escape("\n".join(keep_layout(lines)))
    lines[:] = _CODE.sub(lambda match: mark(match[2], name), text).split("\n")
    if what in ("attribute", "data", "property"):
        # An empty comment, because Napoleon would read "blocks: frames of one" as type and text.
        lines[:0] = ["..", ""]
    if inspect.isclass(obj):
        lines[:0] = bases(obj)


def hide_keys(
    app: Sphinx, what: str, name: str, obj: object, options: object, signature: str, returns: str
) -> tuple[str, str] | None:
    """Leaves out the signature of a config: its keys and defaults follow one by one."""
    if what == "class" and dataclasses.is_dataclass(obj) and name.endswith("Config"):
        return "", returns
    return None


def bases(cls: type) -> list[str]:
    """A line that names the classes of ours that one adds to, none for any other."""
    ours = [base for base in cls.__bases__ if _is_ours(base) and base.__name__[0] != "_"]
    named = [f":py:obj:`{base.__name__} <{public_path(base)}>`" for base in ours]
    return [f"Adds to {' and '.join(named)}.", ""] if named else []


def keep_layout(lines: list[str]) -> list[str]:
    """Makes text that is indented below a blank line a literal block."""
    result: list[str] = []
    before = ""  # the last line that is not blank
    for number, line in enumerate(lines):
        opens = line.startswith("    ") and number and not lines[number - 1].strip()
        if opens and before and not before.startswith(" ") and not before.endswith("::"):
            result += ["::", ""]
        if line.strip():
            before = line
        result.append(line)
    return result


def escape(text: str) -> str:
    """Bars outside code are absolute values or alternatives here, and no substitutions."""
    code = {k for match in _CODE.finditer(text) for k in range(*match.span())}
    result, place = [], 0
    for line in text.split("\n"):
        typed = line.startswith(("    ", ">>>"))
        bars = (c == "|" and not typed and place + k not in code for k, c in enumerate(line))
        result.append("".join(f"\\{c}" if bar else c for c, bar in zip(line, bars, strict=True)))
        place += len(line) + 1
    return "\n".join(result)


def mark(code: str, where: str) -> str:
    """``code``, as a link if it names a class or function that the docstring at ``where`` sees."""
    target = find(code, where) if _NAME.fullmatch(code) else None
    return f":py:obj:`{code} <{target}>`" if target else f"``{code}``"


def find(code: str, where: str) -> str | None:
    """The dotted path of what a name means at ``where``, None if it is not one of ours."""
    for scope in scopes(where):
        found = scope
        for part in code.split("."):
            found = getattr(found, part, None)
        if (inspect.isclass(found) or inspect.isfunction(found)) and _is_ours(found):
            return public_path(found)
    return None


def scopes(where: str) -> list[Any]:
    """The class and module around a dotted path, innermost first, and the package."""
    parts = where.split(".")
    for end in range(len(parts), 0, -1):
        try:
            module = importlib.import_module(".".join(parts[:end]))
        except ImportError:
            continue
        found = [module]
        for part in parts[end:]:
            found.append(getattr(found[-1], part, None))
        return [*found[::-1], importlib.import_module("ndavid")]
    return []


def public_path(found: Any) -> str:
    """Where a class or function is documented."""
    for door in _DOORS:
        if found.__module__.startswith(f"{door}."):
            exported = importlib.import_module(door).__all__
            if found.__qualname__.split(".")[0] in exported:
                return f"{door}.{found.__qualname__}"
    return f"{found.__module__}.{found.__qualname__}"


def _is_ours(found: Any) -> bool:
    return (getattr(found, "__module__", None) or "").startswith("ndavid.")
