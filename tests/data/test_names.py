"""Names out of data files stay in their folder, and no name reaches a terminal as a command."""

from __future__ import annotations

import pytest

from ndavid.data.names import check_name, fault_of_name
from ndavid.errors import DataError, DecodeError, printable


@pytest.mark.parametrize(
    "name",
    [
        "",
        "  ",
        "/etc/passwd",
        "../up.avi",
        "A/../../up.avi",
        "A\\..\\..\\up.avi",
        "C:\\up.avi",
        "\\\\host\\share\\up.avi",
        "two\nlines.avi",
        "return\r.avi",
        "red\x1b[31m.avi",
        "eight\x9bbit.avi",
        "null\0.avi",
        "next\u2028line.avi",
        "bytes\udcff.avi",
        "turned\u202eiva.exe",
        *(f"turned{chr(code)}.avi" for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))),
    ],
)
def test_a_name_that_leaves_its_folder_or_commands_a_terminal_is_refused(name):
    assert fault_of_name(name) is not None
    with pytest.raises(DataError) as caught:
        check_name("list.txt", "line 3", name)
    message = str(caught.value)
    assert message.startswith("list.txt: line 3: ")
    assert message.isprintable()


@pytest.mark.parametrize(
    "name",
    [
        *("A/clip.avi", "Höhle/ü 1.avi", "a..b/c...avi", "日本/動画.mp4", "1:23.avi", "v (1) [x]"),
        "family \N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}.mp4",
        "\u0915\u094d\u200d\u0937/\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645.mp4",
        "\u05d0\u200f(1).mp4",
    ],
)
def test_a_plain_name_is_used_as_it_is(name):
    assert check_name("list.txt", "line 3", name) == name


def test_errors_show_names_escaped():
    name = "a\x1b[2J\nb.avi\udcff"
    assert printable(name) == "a\\x1b[2J\\nb.avi\\udcff"
    assert str(DataError(name, "gone")).isprintable()
    assert str(DecodeError(name, "pyav", "what \x1b]0;title\x07")).isprintable()
