"""The journal gives back what was put, whatever the file went through."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ndavid.data.journal import Journal


def test_results_are_there_at_once_and_after_reopening(tmp_path: Path):
    with Journal(tmp_path / "sub" / "j.jsonl") as journal:
        journal.put("a\nb", {"n": 1})
        journal.put("ü", {"n": 2})
        assert Journal(journal.path).get("a\nb") == {"n": 1}  # before it is closed
        journal.put("a\nb", {"n": 3})
    with Journal(tmp_path / "sub" / "j.jsonl") as journal:
        assert len(journal) == 2
        assert journal.get("a\nb") == {"n": 3} and journal.get("ü") == {"n": 2}
        assert journal.get("other") is None


@given(cut=st.integers(0, 200))
def test_a_file_cut_anywhere_keeps_its_whole_lines_and_takes_new_ones(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("journal") / "j.jsonl"
    with Journal(path) as journal:
        for number in range(8):
            journal.put(str(number), {"value": number})
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    whole = data.count(b"\n")
    with Journal(path) as journal:
        # A line that only lost its newline still counts.
        assert len(journal) - whole in (0, 1)
        journal.put("new", {"value": -1})
    with Journal(path) as journal:
        assert journal.get("new") == {"value": -1}
        assert all(journal.get(str(number)) == {"value": number} for number in range(whole))
