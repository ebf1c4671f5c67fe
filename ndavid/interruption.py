"""What Ctrl-C leaves behind, said in one line: what is kept, and the command that goes on."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Sequence

from ndavid.errors import printable


def command_again(*more: str) -> str:
    """The command that this process was started with, ``more`` options added, for a message.

    A launcher's own words are not known to the processes it starts: there, and where no script was
    started, it is told in words.
    """
    script, *arguments = sys.argv
    words = printable(shlex.join([script, *arguments, *more]))
    if not script.endswith(".py"):
        return "start it again" + (f" with {printable(shlex.join(more))}" if more else "")
    if launched():
        return f"the same launcher with {words}"
    return f"python {words}"


def launched() -> bool:
    """Whether torchrun, or accelerate for several processes, started this process."""
    return "LOCAL_RANK" in os.environ


@contextlib.contextmanager
def kept_when_interrupted(what: str, *, more: Sequence[str] = ()) -> Iterator[None]:
    """Context of work that goes on when its command is given again: Ctrl-C then says so.

    Args:
        what: is kept, such as "the clips that were probed are kept in data/mine".
        more: options that the command needs in addition.

    Raises:
        KeyboardInterrupt: with one line for the user in place of one without words.
    """
    try:
        yield
    except KeyboardInterrupt as stopped:
        if stopped.args:
            raise
        raise KeyboardInterrupt(f"{what}; to go on: {command_again(*more)}") from None
