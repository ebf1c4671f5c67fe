"""Before an evaluation reads a video: is it the one that was prepared?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ndavid.collectives import rank, world_size
from ndavid.data.changed_files import changed_files, is_recorded
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.engine.distributed import gather_objects
from ndavid.errors import DataError
from ndavid.evaluation.protocol import Protocol

OnChanged = Literal["raise", "warn"]


class PreparedFiles:
    """The files of an evaluation beside what the manifest says of them; each is looked at once.

    Every rank looks at its share. All of them must make this object.

    Args:
        records: The videos that will be read.
        manifest: Where they are.
        on_changed: ``raise``, or ``warn`` to read changed files all the same.

    Raises:
        DataError: On a file that is not the one that was prepared, on all ranks, unless
            ``on_changed`` is ``warn``.
    """

    def __init__(
        self, records: Sequence[ClipRecord], manifest: Manifest, on_changed: OnChanged
    ) -> None:
        self.records = records
        mine = changed_files(records[rank() :: world_size()], manifest.root)
        self.changed: dict[str, str] = {}
        for share in gather_objects(mine):
            self.changed |= share
        if self.changed and on_changed == "raise":
            path, change = min(self.changed.items())
            raise DataError(
                manifest.root / path,
                f"is not the file that was prepared ({change}); {len(self.changed)} of "
                f"{len(records)} videos changed: run datasets/prepare.py again, or read them as "
                "they are with views.on_changed: warn",
            )

    def tell(self, protocol: Protocol) -> None:
        """Puts what a reader must know into the protocol."""
        count = len(self.records)
        if self.changed:
            path, change = min(self.changed.items())
            protocol.warn(
                f"{len(self.changed)} of {count} videos are not the files that were prepared, such "
                f"as {path} ({change}): frames are chosen by the counts of the old ones."
            )
        unknown = sum(not is_recorded(record) for record in self.records)
        if unknown:
            protocol.notes.append(
                f"The manifest has no digest of {unknown} of {count} videos: whether they changed "
                "since they were prepared was not checked."
            )
