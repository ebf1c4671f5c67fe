"""What people call the folders of a split: `train`, `Testing`, `VALID`."""

from __future__ import annotations

import re

_SIDES = {
    "train": ("train", "training", "trainset", "trn"),
    "test": ("test", "testing", "testset", "tst"),
    "val": ("val", "valid", "validate", "validation", "valset", "dev", "devset"),
}
_SIDE_OF = {name: side for side, names in _SIDES.items() for name in names}
# Words that make a name look like a split's, though nobody can tell what is meant.
_HINTS = {**_SIDE_OF, "eval": "val", "evaluation": "val", "heldout": "val", "holdout": "val"}


def side_called(name: str) -> str | None:
    """ "train", "test" or "val" for a usual name of a split's folder in any case, else None."""
    return _SIDE_OF.get(name.casefold())


def sides_hinted(name: str) -> set[str]:
    """The sides that the words of a name speak of: `my_TestVideos2` gives "test"."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)
    return {_HINTS[word.lower()] for word in words if word.lower() in _HINTS}
