"""Tar headers of bounded size: Python reads those that speak of the next member whole into memory.

A long name or a set of attributes lies in a header of its own, of whatever size it states. In a
compressed tar gigabytes of it take some kilobytes of the file. The list of a sparse file's holes is
read in the same way.
"""

from __future__ import annotations

import tarfile
from typing import Any

# Of one header. A path takes 4 KiB at most, an attribute of a file on Linux 64 KiB.
MAX_HEADER_BYTES = 256 * 2**10

_SPEAK_OF_THE_NEXT = {
    tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE,
}  # fmt: skip

# Where an old GNU header says that more blocks of holes follow it.
_MORE_HOLES = 482


class BoundedTarInfo(tarfile.TarInfo):
    """A member whose headers are read only if they are small: `tarfile.open(..., tarinfo=this)`.

    Reading one that is not is a `tarfile.TarError`. It is none of the kinds for which `tarfile`
    goes on to try other compressions.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> BoundedTarInfo:
        """A header's 512 bytes, once what it asks to be read next is known to be small."""
        member = super().frombuf(buf, encoding, errors)
        # A negative size would read to the end.
        if member.type in _SPEAK_OF_THE_NEXT and not 0 <= member.size <= MAX_HEADER_BYTES:
            raise tarfile.TarError(
                f"a header of {member.size} bytes, where at most {MAX_HEADER_BYTES} are read: it "
                "is damaged or hostile"
            )
        if member.type == tarfile.GNUTYPE_SPARSE and buf[_MORE_HOLES]:
            raise _many_holes()
        return member

    def _proc_gnusparse_10(self, *_: object) -> None:
        """What `tarfile` calls for the other list of holes that has no stated end."""
        raise _many_holes()


def _many_holes() -> tarfile.TarError:
    return tarfile.TarError("a sparse file with a list of holes: pack it without --sparse")
