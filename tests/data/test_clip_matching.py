"""Which file a listed clip is: never another clip's, and never "missing" where copies are there."""

from __future__ import annotations

from ndavid.data.clip_matching import match_files

KINETICS = "abc_000001_000011.mp4"


def test_a_clip_in_two_folders_is_not_missing():
    found = match_files([KINETICS], [f"train/wave/{KINETICS}", f"replacement/{KINETICS}"])
    assert found.files == {KINETICS: f"replacement/{KINETICS}"}
    assert found.others == {KINETICS: (f"train/wave/{KINETICS}",)}
    assert not found.missing and not found.unlisted and not found.unclear


def test_names_that_tell_their_clip_are_found_in_whichever_folders():
    clip = "Archery/v_Archery_g01_c01.avi"
    copies = ["new/v_Archery_g01_c01.mp4", "UCF-101/Archery/v_Archery_g01_c01.avi"]
    found = match_files([clip], copies)
    # The one in the class folder comes first.
    assert found.files == {clip: copies[1]} and found.others == {clip: (copies[0],)}


def test_stems_that_many_clips_may_have_are_not_guessed():
    found = match_files(["c/1.avi"], ["a/1.avi", "b/1.avi"])
    assert found.unclear == {"c/1.avi": ("a/1.avi", "b/1.avi")}
    assert not found.files and not found.missing and not found.unlisted
    # Two clips for one file: it is not known whose it is.
    found = match_files(["c/1.avi", "d/1.avi"], ["x/1.mp4"])
    assert not found.files and set(found.unclear) == {"c/1.avi", "d/1.avi"}
    # Once the files of a and b are theirs, nothing is left for c.
    found = match_files(["a/1.avi", "b/1.avi", "c/1.avi"], ["x/a/1.mp4", "x/b/1.mp4"])
    assert found.files == {"a/1.avi": "x/a/1.mp4", "b/1.avi": "x/b/1.mp4"}
    assert found.missing == ("c/1.avi",)


def test_a_file_goes_to_the_clip_with_most_folders_in_common():
    listed = ["test/a/1.avi", "train/a/1.avi"]
    found = match_files(listed, ["train/a/1.mp4", "test/a/1.mp4"])
    assert found.files == {"test/a/1.avi": "test/a/1.mp4", "train/a/1.avi": "train/a/1.mp4"}
    assert not found.others
    found = match_files(listed, ["set/test/a/1.mp4"])
    assert found.files == {"test/a/1.avi": "set/test/a/1.mp4"}
    assert found.missing == ("train/a/1.avi",), "a test clip's file is no training clip's"


def test_copies_are_ordered_and_files_of_others_are_none():
    listed = ["UCF/a/1.avi", "b/1.avi"]
    files = ["UCF/a/1.avi", "b/1.avi", "UCF/a/1.mp4", "more/a/1.mp4", "other/c/1.mp4"]
    found = match_files(listed, files)
    assert found.files == {"UCF/a/1.avi": "UCF/a/1.avi", "b/1.avi": "b/1.avi"}
    assert found.others == {"UCF/a/1.avi": ("UCF/a/1.mp4", "more/a/1.mp4")}
    assert found.unlisted == ("other/c/1.mp4",)


def test_some_of_the_clips():
    found = match_files(["a/1.avi", "b/1.avi", "c/2.avi"], ["a/1.mp4", "b/1.mp4", "x/3.mp4"])
    some = found.only(["a/1.avi"])
    assert some.files == {"a/1.avi": "a/1.mp4"} and some.missing == ()
    assert some.unlisted == ("x/3.mp4",)
