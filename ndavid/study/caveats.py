"""What a result warns of that a reader of a study's tables must know, too."""

from __future__ import annotations

from ndavid.evaluation.protocol import Protocol

LEAK = "LEAK"
"""How the note of a result begins whose weights have seen what they were tested on."""

_UNSURE = ("not checked", "not recorded")


def caveats_of(protocol: Protocol) -> list[str]:
    """Leaks, overlaps that could not be looked for, and how many items were left out."""
    found = [
        note
        for note in protocol.notes
        if note.startswith(LEAK) or any(words in note for words in _UNSURE)
    ]
    if protocol.num_bad:
        found.append(f"Left out as unreadable: {protocol.num_bad}.")
    if protocol.num_dropped:
        found.append(f"Left out as shorter than a clip: {protocol.num_dropped} videos.")
    return found
