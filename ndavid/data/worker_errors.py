"""Carrying a DataError out of a DataLoader worker.

A DataLoader does not pickle a worker's exception: it calls the exception's class, in the main
process, with one string that holds the traceback. DecodeError takes three arguments, so users would
meet a RuntimeError with a traceback inside, and no path. The exception raised here writes its facts
into its text, and its class, called with that text, gives back the DataError itself.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

from torch.utils.data import get_worker_info

from ndavid.errors import DataError, DecodeError

_MARK = "ndavid-data-error:"


class _Parcel(Exception):
    """Wraps a DataError inside a worker; becomes that error again when made from text."""

    def __new__(cls, content: DataError | str):
        if isinstance(content, str) and _MARK in content:
            facts = json.loads(content.rsplit(_MARK, 1)[1].splitlines()[0])
            return _unpack(**facts)
        return super().__new__(cls, content)

    def __str__(self) -> str:
        error = self.args[0]
        if not isinstance(error, DataError):
            return str(error)
        facts = {"path": error.path, "reason": error.reason}
        if isinstance(error, DecodeError):
            facts["backend"] = error.backend
        return _MARK + json.dumps(facts)


def _unpack(path: str, reason: str, backend: str | None = None) -> DataError:
    return DataError(path, reason) if backend is None else DecodeError(path, backend, reason)


@contextlib.contextmanager
def data_errors_leave_workers() -> Iterator[None]:
    """DataErrors raised inside reach the main process as they are, from a worker too."""
    try:
        yield
    except DataError as error:
        if get_worker_info() is None:
            raise
        raise _Parcel(error) from None
