"""Combine prepared datasets into one manifest, to pretrain on all of them.

    combine.py --manifests "[data/ucf101, data/hmdb51]" --output data/both
    combine.py --manifests "[data/jhmdb21:2, data/ucf101]" --output data/both

DIR:2 gives its fold 2 to every fold of the union; the others give each their own. Files stay where
they are.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

from ndavid.config import parse, run_main
from ndavid.data.manifest import read_manifest
from ndavid.data.union import Part, unite
from ndavid.errors import ConfigError
from ndavid.locks import hold


@dataclass(kw_only=True)
class CombineConfig:
    """What is combined, and where the manifest goes."""

    manifests: list[str] = field(default_factory=list)
    """folders of prepared datasets, or their manifest.csv; DIR:2 takes fold 2 throughout"""
    output: str = ""
    """folder for the manifest"""

    def __post_init__(self) -> None:
        if not self.output:
            raise ConfigError("output must name a folder for the manifest")


def read_part(text: str) -> Part:
    """``DIR`` or ``DIR:FOLD``."""
    found = re.fullmatch(r"(.+?)(?::(\d+))?", text)
    if found is None:
        raise ConfigError("manifests: an empty name")
    path = Path(found[1])
    folder = path.parent if path.suffix == ".csv" else path
    return Part(folder.resolve().name, read_manifest(path), int(found[2]) if found[2] else None)


def main() -> None:
    config = parse(CombineConfig, sys.argv[1:], description=__doc__ or "")
    union = unite([read_part(text) for text in config.manifests])
    with hold(config.output):
        target = union.write(Path(config.output) / "manifest.csv")
    print(f"{len(union.records)} clips of {len(union.classes)} classes -> {target}")
    for fold in range(1, union.num_folds + 1):
        counts = ", ".join(f"{s} {len(union.select(s, fold))}" for s in ("train", "val", "test"))
        print(f"  fold {fold}: {counts}")


if __name__ == "__main__":
    run_main(main)
