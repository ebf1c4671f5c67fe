"""Errors that every rank raises, so that none waits for another that has left."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ndavid.engine.distributed import gather_objects
from ndavid.errors import NdavidError

T = TypeVar("T")


def together(work: Callable[[], T]) -> T:
    """Returns ``work()``; where it fails on any rank, all ranks raise the first rank's error.

    Every rank must call it at the same point, and ``work`` must not hold a collective.

    Raises:
        NdavidError: Whatever one rank's ``work`` raised. Other exceptions are not shared: they are
            defects, and end the process with their traceback.
    """
    error: NdavidError | None = None
    try:
        value = work()
    except NdavidError as caught:
        error = caught
    first = next((one for one in gather_objects(error) if one is not None), None)
    if error is not None:
        raise error  # With its own traceback.
    if first is not None:
        raise first
    return value
