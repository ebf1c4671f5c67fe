"""Which tested videos were cut from one source: they are right and wrong together.

Clips of one recording share the scene, the actor and the camera, so that a hundred clips of twenty
recordings say little more than twenty. An interval that takes them for independent is too narrow.
"""

from __future__ import annotations

from ndavid.data.manifest import read_manifest
from ndavid.errors import DataError
from ndavid.evaluation.protocol import Result


def sources(result: Result) -> dict[str, str]:
    """An item of ``outcomes.csv`` -> its source, ``label/group`` of the manifest it was tested on.

    Clips without a group are left out: each stands alone. So is everything where the result names
    no manifest (of images), or one that cannot be read here.
    """
    root = root_of(result)
    if not root:
        return {}
    try:
        records = read_manifest(root).records
    except DataError:
        return {}
    # A group's name counts within its class only.
    return {record.path: f"{record.label}/{record.group}" for record in records if record.group}


def root_of(result: Result) -> str:
    """The prepared videos that a result was measured on; empty for images."""
    data = result.config.get("data")
    # Results of older versions have the manifest on top.
    root = data.get("root") if isinstance(data, dict) else result.config.get("manifest")
    return root if isinstance(root, str) and result.protocol.manifest else ""
