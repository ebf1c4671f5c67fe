"""An evaluation's output folder belongs to it while it runs."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

from ndavid.evaluation.protocol import Result
from ndavid.locks import hold

ConfigT = TypeVar("ConfigT")


def alone_in_output(run: Callable[[ConfigT], Result]) -> Callable[[ConfigT], Result]:
    """Makes an evaluator hold ``config.output``; of several ranks the first one holds it for all.

    Raises:
        ConfigError: When it is called, before anything is computed: another process works in that
            folder.
        DataError: The folder cannot be written.
    """

    @functools.wraps(run)
    def alone(config: ConfigT) -> Result:
        settings: Any = config
        # The launcher's word: ranks have not met yet.
        if not settings.output or os.environ.get("RANK", "0") != "0":
            return run(config)
        with hold(settings.output):
            return run(config)

    return alone
