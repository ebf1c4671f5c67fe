"""What a piece of code opens and starts, as Python's audit events tell it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

_STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork")


@dataclass
class Watched:
    """Real paths of the files that were opened, and the programs that were started."""

    opened: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)

    def opened_outside(self, *folders: str | os.PathLike[str]) -> list[str]:
        """The files that lie in none of the folders, but for Python's own modules."""
        homes = tuple(os.path.realpath(folder) + os.sep for folder in (*folders, sys.prefix))
        code = (".py", ".pyc", ".so")
        return [p for p in self.opened if not p.startswith(homes) and not p.endswith(code)]


_watching: list[Watched] = []


def _note(event: str, arguments: tuple) -> None:
    if not _watching:
        return
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        _watching[-1].opened.append(os.path.realpath(os.fsdecode(arguments[0])))
    elif event in _STARTS:
        _watching[-1].started.append(f"{event} {arguments!r}")


_hooked = False


@contextmanager
def watching() -> Iterator[Watched]:
    """Notes what happens inside the block."""
    global _hooked
    if not _hooked:
        sys.addaudithook(_note)  # for the process's life: a hook cannot be taken off
        _hooked = True
    found = Watched()
    _watching.append(found)
    try:
        yield found
    finally:
        _watching.remove(found)
