"""The config of a run as its folder keeps it, and what of it may change on resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ndavid.config import When, changeable_keys, flatten, to_values, to_yaml


@dataclass(frozen=True)
class Settings:
    """What decides a run, by dotted key."""

    yaml: str = ""
    """the content of config.yaml"""
    values: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)
    """those of the config's class"""
    changeable: dict[str, When] = field(default_factory=dict)
    """when a resumed run may change a key; the others it may not"""

    @classmethod
    def of(cls, config: object | None, values: Mapping[str, Any] | None = None) -> Settings:
        """The settings of a config dataclass; nothing for None.

        Args:
            config: has a default for every field.
            values: nested, what is kept instead of all that stands in ``config``.
        """
        if config is None:
            return cls()
        kind = type(config)
        kept = to_values(config if values is None else values)
        return cls(to_yaml(kept), flatten(kept), flatten(to_values(kind())), changeable_keys(kind))

    def shared_out(self) -> dict[str, Any]:
        """How steps are computed and shared out, which a checkpoint keeps."""
        return {key: value for key, value in self.values.items() if self.moves(key)}

    def moves(self, key: str) -> bool:
        """Whether a key may change where a run goes on elsewhere."""
        return self.changeable.get(key, "").startswith("elsewhere")

    def cuts_batches(self, key: str) -> bool:
        """Whether a change of the key changes which samples a step sees."""
        return self.changeable.get(key) == "elsewhere, in other batches"

    def is_free(self, key: str, same_data: bool) -> bool:
        """Whether any resumed run may change a key, given whether its data is the same."""
        when = self.changeable.get(key)
        return when == "always" or (same_data and when == "with the same data")
