"""The few kinds of error a user can meet; each message names what, where and what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence


def printable(text: str) -> str:
    """`text` as a terminal may show it: what is no printable letter as an escape like \\x1b."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "replace").decode()
        for letter in text
    )


def printable_lines(text: str) -> str:
    """Text of several lines, each of them `printable`."""
    return "\n".join(printable(line) for line in text.split("\n"))


def first_few(names: Sequence[str], shown: int = 5) -> str:
    """The first names of a list for a line of text, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))


class NdavidError(Exception):
    """Base of every error that ndavid raises on purpose."""


class ConfigError(NdavidError):
    """A key, value or combination in a config that cannot be used."""


class DataError(NdavidError):
    """A file, manifest row or annotation that cannot be used."""

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        self.path = os.fspath(path)
        self.reason = reason
        super().__init__(self.path, reason)

    def __str__(self) -> str:
        return f"{printable(self.path)}: {_one_line(self.reason)}"


class DecodeError(DataError):
    """A video that a decoding backend cannot read to the end."""

    def __init__(self, path: str | os.PathLike[str], backend: str, reason: str) -> None:
        super().__init__(path, reason)
        self.backend = backend
        # All constructor arguments in .args, so that the error survives pickling out of a worker.
        self.args = (self.path, backend, reason)

    def __str__(self) -> str:
        return (
            f"{printable(self.path)}: cannot decode with {self.backend}: {_one_line(self.reason)}"
        )


class CheckpointError(NdavidError):
    """A checkpoint that is missing, incomplete, not one, or does not fit the model."""


class TrainingError(NdavidError):
    """A run that cannot go on: a loss that is not finite, or too many bad clips."""
