"""A journal of finished work: one JSON line a result, so that a killed run loses at most one."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from ndavid.errors import DataError


class Journal:
    """Results by key, kept in a JSONL file that is only ever appended to.

    A line cut short by a kill or a full disk is dropped on reading. A key's last result counts.

    Raises:
        DataError: the file cannot be opened for writing, or is a link.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._results: dict[str, dict[str, Any]] = {}
        ends_cleanly = self._read()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._stream = self._open()
        if not ends_cleanly:
            self._stream.write("\n")

    def get(self, key: str) -> dict[str, Any] | None:
        """The last result put under `key`, or None."""
        return self._results.get(key)

    def put(self, key: str, result: Mapping[str, Any]) -> None:
        """Keeps a result; it is in the file, whole, when this returns.

        Raises:
            DataError: the file cannot be written.
        """
        line = json.dumps({"key": key, **result}, ensure_ascii=True)
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except OSError as error:
            raise DataError(self.path, f"cannot write the journal: {error.strerror}") from error
        self._results[key] = dict(result)

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._results)

    def _open(self) -> TextIO:
        # A link in its place would have every line appended to a file outside the folder.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            handle = os.open(self.path, flags, 0o644)
        except OSError as error:
            is_link = error.errno == errno.ELOOP
            reason = "it is a link; remove it" if is_link else error.strerror
            raise DataError(self.path, f"cannot write the journal: {reason}") from error
        return os.fdopen(handle, "a", encoding="utf-8")

    def _read(self) -> bool:
        """Loads what is there; False if the file ends in the middle of a line."""
        if not self.path.exists():
            return True
        text = self.path.read_text(encoding="utf-8-sig", errors="replace")
        for line in text.splitlines():
            try:
                result = json.loads(line)
                self._results[result.pop("key")] = result
            except (ValueError, KeyError, AttributeError):
                continue
        return text.endswith("\n") or not text
