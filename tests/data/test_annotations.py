"""Labels are 0-based and complete in every split, and a wrong line is named with its number."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ndavid.data.annotations import (
    Annotations,
    parse_hmdb51,
    parse_kinetics,
    parse_ucf101,
)
from ndavid.data.clip_matching import match_files
from ndavid.data.folder_annotations import parse_folder
from ndavid.data.source_groups import kinetics_group, source_group
from ndavid.data.video_files import list_videos
from ndavid.errors import DataError

CLASSES = ("Archery", "HandstandPushups", "YoYo")


def write_ucf101(folder: Path, num_folds: int = 3, suffix: str = ".avi") -> Path:
    """Lists of 3 classes x 6 groups x 2 clips, with CRLF line ends as in the official archive."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{i} {name}" for i, name in enumerate(CLASSES, start=1)]
    (folder / "classInd.txt").write_bytes(("\r\n".join(lines) + "\r\n").encode())
    for fold in range(1, num_folds + 1):
        train, test = [], []
        for label, name in enumerate(CLASSES, start=1):
            for group in range(1, 7):
                for clip in (1, 2):
                    path = f"{name}/v_{name}_g{group:02d}_c{clip:02d}{suffix}"
                    if group in (2 * fold - 1, 2 * fold):
                        test.append(path)
                    else:
                        train.append(f"{path} {label}")
        (folder / f"trainlist{fold:02d}.txt").write_bytes("\r\n".join(train).encode())
        (folder / f"testlist{fold:02d}.txt").write_bytes("\r\n".join(test).encode())
    return folder


def write_hmdb51(folder: Path) -> Path:
    """2 classes, 3 folds, every code; trailing blanks as in the official files."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("wave", "climb_stairs"):
        clips = [f"Film_{k}_{name}_f_nm_np1_fr_med_{k}.avi" for k in range(6)]
        clips.append(f"Yards!!!_(300+)_{name}_u_cm_np1_ba_goo_0.avi")
        for fold in (1, 2, 3):
            codes = [(k + fold) % 3 for k in range(len(clips))]
            lines = [f"{clip} {code} " for clip, code in zip(clips, codes, strict=True)]
            (folder / f"{name}_test_split{fold}.txt").write_text("\n".join(lines) + "\n")
    return folder


def check_labels(annotations: Annotations) -> None:
    for fold in annotations.splits:
        for side in ("train", "test"):
            labels = {entry.label for entry in fold.values() if entry.split == side}
            assert labels == set(range(len(annotations.classes)))


# --- UCF101 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "ucfTrainTestlist"])
def test_ucf101_labels_are_zero_based_on_both_sides_of_every_fold(tmp_path: Path, place):
    write_ucf101(tmp_path / place)
    annotations = parse_ucf101(tmp_path)
    assert annotations.classes == CLASSES and len(annotations.splits) == 3
    check_labels(annotations)
    first = "Archery/v_Archery_g01_c02.avi"
    assert annotations.label_of(first) == 0
    assert annotations.splits_of(first) == ("test", "train", "train")
    assert annotations.group_of(first) == "g01"
    assert Counter(e.split for e in annotations.splits[0].values()) == {"train": 24, "test": 12}


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("classInd.txt", "3 YoYo", "", r"trainlist01\.txt: line 17: class 'YoYo'.*classInd"),
        ("classInd.txt", "2 Hand", "7 Hand", r"classInd\.txt: line 2: class number 7"),
        ("classInd.txt", "3 YoYo", "3 Archery", r"classInd\.txt: line 3: .*twice"),
        ("classInd.txt", "1 Archery", "Archery", r"classInd\.txt: line 1: expected"),
        ("trainlist02.txt", "g01_c01.avi 1", "g01_c01.avi 2", r"trainlist02\.txt: line 1: .* 2,"),
        ("trainlist01.txt", "g03_c01.avi 1", "g03_c01.avi", r"trainlist01\.txt: line 1: .*missing"),
        ("testlist01.txt", "v_YoYo_g01_c01", "v_YoYo_g01_c02", r"testlist01\.txt: line 10: .*alre"),
        ("testlist03.txt", "Archery/v", "Bowling/v", r"testlist03\.txt: line 1: class 'Bowling'"),
        ("testlist01.txt", "Archery/v_Archery", "v_Archery", r"testlist01\.txt: line 1: expected"),
    ],
)
def test_a_wrong_ucf101_line_is_named(tmp_path: Path, file, old, new, message):
    path = write_ucf101(tmp_path) / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message):
        parse_ucf101(tmp_path)


def test_a_clip_on_both_sides_of_a_fold_is_an_error(tmp_path: Path):
    write_ucf101(tmp_path)
    with (tmp_path / "testlist01.txt").open("a") as stream:
        stream.write("\r\nArchery/v_Archery_g05_c01.avi")
    with pytest.raises(DataError, match=r"testlist01\.txt: line 13: .*already in train"):
        parse_ucf101(tmp_path)


@pytest.mark.parametrize("gone", ["classInd.txt", "testlist02.txt", "trainlist01.txt"])
def test_a_missing_ucf101_file_is_named(tmp_path: Path, gone: str):
    write_ucf101(tmp_path, num_folds=2 if gone != "trainlist01.txt" else 1)
    (tmp_path / gone).unlink()
    with pytest.raises(DataError, match=gone.replace(".", r"\.")):
        parse_ucf101(tmp_path)


def test_no_such_folder_is_a_data_error(tmp_path: Path):
    for parse in (parse_ucf101, parse_hmdb51, parse_folder):
        with pytest.raises(DataError, match="no such folder"):
            parse(tmp_path / "gone")


# --- HMDB51 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [".", "testTrainMulti_7030_splits"])
def test_hmdb51_codes_and_labels(tmp_path: Path, place):
    write_hmdb51(tmp_path / place)
    annotations = parse_hmdb51(tmp_path)
    assert annotations.classes == ("climb_stairs", "wave") and len(annotations.splits) == 3
    check_labels(annotations)
    # Code (k + fold) % 3 for clip k: 0 unused, 1 train, 2 test.
    clip = "wave/Film_0_wave_f_nm_np1_fr_med_0.avi"
    assert annotations.splits_of(clip) == ("train", "test", "")
    assert annotations.label_of(clip) == 1
    assert (
        annotations.group_of("wave/Yards!!!_(300+)_wave_u_cm_np1_ba_goo_0.avi") == "Yards!!!_(300+)"
    )


@pytest.mark.parametrize("line", ["clip.avi 3", "clip.avi", "clip.avi one"])
def test_a_wrong_hmdb51_line_is_named(tmp_path: Path, line: str):
    path = write_hmdb51(tmp_path) / "wave_test_split2.txt"
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DataError, match=r"wave_test_split2\.txt: line 8"):
        parse_hmdb51(tmp_path)


def test_a_class_that_lacks_a_fold_is_named(tmp_path: Path):
    (write_hmdb51(tmp_path) / "wave_test_split3.txt").unlink()
    with pytest.raises(DataError, match=r"wave_test_split3\.txt"):
        parse_hmdb51(tmp_path)


# --- Kinetics -------------------------------------------------------------------------------------

HEADER = "label,youtube_id,time_start,time_end,split\n"


def test_kinetics_csvs_make_one_fold(tmp_path: Path):
    train = HEADER + 'wave,abc,1,11,train\n"clap, hands",-x_y,20,30,train\n'
    (tmp_path / "train.csv").write_text(train)
    (tmp_path / "val.csv").write_text(HEADER + "wave,def,0,10,val\n")
    (tmp_path / "test.csv").write_text("youtube_id,time_start,time_end,split\nghi,5,15,test\n")
    annotations = parse_kinetics(tmp_path)
    assert annotations.classes == ("clap, hands", "wave")
    (fold,) = annotations.splits
    assert fold["abc_000001_000011.mp4"] == (1, "train")
    assert fold["-x_y_000020_000030.mp4"] == (0, "train")
    assert fold["def_000000_000010.mp4"] == (1, "val")
    assert fold["ghi_000005_000015.mp4"] == (-1, "test")
    assert annotations.group_of("train/wave/-x_y_000020_000030.mp4") == "-x_y"
    matches = match_files(annotations.paths, ["train/wave/abc_000001_000011.mkv"])
    assert matches.files == {"abc_000001_000011.mp4": "train/wave/abc_000001_000011.mkv"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("label,id\nx,y\n", "line 1: no column time_end"),
        (HEADER + "wave,abc,one,11,train\n", "line 2: time_start"),
        (HEADER + "wave,,1,11,train\n", "line 2: youtube_id"),
        (HEADER + "wave,abc,1,11,training\n", "line 2: split 'training'"),
        (HEADER, "no row has a label"),
    ],
)
def test_a_wrong_kinetics_csv_is_named(tmp_path: Path, text, message):
    (tmp_path / "train.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        parse_kinetics(tmp_path)


# --- folders --------------------------------------------------------------------------------------


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_split_folders_give_sides_and_labels(tmp_path: Path):
    touch(
        tmp_path, "train/b/1.mp4", "train/a/1.mp4", "test/a/1.MP4", "val/b/x/9.avi", "train/a/n.txt"
    )
    annotations = parse_folder(tmp_path)
    assert annotations.classes == ("a", "b")
    assert dict(annotations.splits[0]) == {
        "train/a/1.mp4": (0, "train"),
        "train/b/1.mp4": (1, "train"),
        "test/a/1.MP4": (0, "test"),
        "val/b/x/9.avi": (1, "val"),
    }
    # Equal names in two folders are two videos.
    assert match_files(annotations.paths, list_videos(tmp_path)).missing == ()
    assert len(set(match_files(annotations.paths, list_videos(tmp_path)).files.values())) == 4


def test_class_folders_are_all_train_and_a_fraction_moves_whole_groups(tmp_path: Path):
    names = [
        f"{c}/v_{c}_g{g:02d}_c{n:02d}.avi" for c in "ab" for g in range(1, 9) for n in (1, 2, 3)
    ]
    touch(tmp_path, *names)
    assert {e.split for e in parse_folder(tmp_path).splits[0].values()} == {"train"}
    annotations = parse_folder(tmp_path, test_fraction=0.25)
    sides: dict[tuple[str, str], set[str]] = {}
    for clip, entry in annotations.splits[0].items():
        sides.setdefault((clip[0], annotations.group_of(clip)), set()).add(entry.split)
    assert all(len(found) == 1 for found in sides.values())
    assert Counter(k[0] for k, found in sides.items() if found == {"test"}) == {"a": 2, "b": 2}
    assert parse_folder(tmp_path, test_fraction=0.25).splits == annotations.splits
    assert parse_folder(tmp_path, test_fraction=0.25, seed=1).splits != annotations.splits


def test_a_flat_folder_is_unlabelled(tmp_path: Path):
    touch(tmp_path, "one.mp4", "two.webm", ".hidden.mp4", ".git/x.mp4")
    annotations = parse_folder(tmp_path)
    assert annotations.classes == ()
    assert dict(annotations.splits[0]) == {"one.mp4": (-1, "train"), "two.webm": (-1, "train")}


def test_a_class_that_is_only_tested_is_named(tmp_path: Path):
    touch(tmp_path, "train/a/1.mp4", "test/b/1.mp4")
    with pytest.raises(DataError, match="class 'b' has no clip in train"):
        parse_folder(tmp_path)


def test_an_empty_folder_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match="no videos"):
        parse_folder(touch(tmp_path, "notes.txt"))


# --- names ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("Archery/v_Archery_g07_c04.avi", "g07"),
        ("HandstandPushups/v_HandStandPushups_g01_c01.avi", "g01"),
        ("v_Archery_g07_c04.avi", "Archery_g07"),
        ("wave/TrumanShow_wave_f_nm_np1_fr_med_26.avi", "TrumanShow"),
        ("climb_stairs/A_climb_stairs_climb_stairs_l_cm_np2_le_bad_0.avi", "A_climb_stairs"),
        ("golf/Golf_-_Hit_300+_Yards!!!_golf_f_nm_np1_fr_med_0.avi", "Golf_-_Hit_300+_Yards!!!"),
        ("x/holiday.mp4", ""),
    ],
)
def test_groups_by_the_pattern_of_the_name(path, group):
    assert source_group(path) == group


def test_kinetics_groups():
    assert kinetics_group("val/x/-a_b_000001_000011.mp4") == "-a_b"
    assert kinetics_group("val/x/other.mp4") == ""


@given(st.sets(st.tuples(st.sampled_from("abc"), st.integers(0, 20)), min_size=1))
def test_every_listed_clip_is_matched_missing_or_the_file_is_unlisted(pairs):
    listed = {f"{c}/{n}.avi" for c, n in pairs if n < 15}
    disk = {f"root/{c}/{n}.mp4" for c, n in pairs if n > 5}
    matches = match_files(listed, disk)
    assert set(matches.files) | set(matches.missing) == listed
    assert set(matches.files.values()) | set(matches.unlisted) == disk
    for clip, file in matches.files.items():
        assert Path(clip).stem == Path(file).stem
    both = {(c, n) for c, n in pairs if 5 < n < 15}
    assert {(Path(c).parent.name, int(Path(c).stem)) for c in matches.files} >= both


# --- hostile lists --------------------------------------------------------------------------------

HOSTILE = [
    "../../x/{}",
    "/etc/{}",
    "a/../../{}",
    "\x1b[2J{}",
    "..\\..\\{}",
    "C:\\x\\{}",
    "a\x07/{}",
]


@pytest.mark.parametrize("pattern", HOSTILE)
@pytest.mark.parametrize("side", ["train", "test"])
def test_a_ucf101_name_that_leaves_its_folder_is_named(tmp_path: Path, pattern: str, side: str):
    write_ucf101(tmp_path)
    path = tmp_path / f"{side}list02.txt"
    number = len(path.read_text().splitlines()) + 1
    name = pattern.format("YoYo/v.avi")
    path.write_text(f"{path.read_text()}\n{name} 3\n", encoding="utf-8")
    with pytest.raises(DataError, match=rf"{path.name}: line {number}: the name ") as caught:
        parse_ucf101(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("pattern", HOSTILE)
def test_a_hmdb51_name_that_leaves_its_folder_is_named(tmp_path: Path, pattern: str):
    path = write_hmdb51(tmp_path) / "wave_test_split2.txt"
    path.write_text(f"{path.read_text()}{pattern.format('v.avi')} 1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"wave_test_split2\.txt: line 8: the name "):
        parse_hmdb51(tmp_path)


@pytest.mark.parametrize("pattern", [*HOSTILE, "a/{}", "a\\{}"])
def test_a_kinetics_id_that_is_a_path_is_named(tmp_path: Path, pattern: str):
    path = tmp_path / "train.csv"
    path.write_text(f"{HEADER}wave,abc,1,11,train\nwave,{pattern.format('id')},1,11,train\n")
    with pytest.raises(DataError, match=r"train\.csv: line 3: (the name|youtube_id)"):
        parse_kinetics(tmp_path)


@pytest.mark.parametrize("times", ["inf,2", "1,-inf", "nan,2"])
def test_kinetics_times_without_end_are_named(tmp_path: Path, times: str):
    (tmp_path / "train.csv").write_text(f"{HEADER}wave,abc,{times},train\n")
    with pytest.raises(DataError, match="line 2: time_start and time_end must be numbers"):
        parse_kinetics(tmp_path)


def test_a_class_name_that_commands_a_terminal_is_named(tmp_path: Path):
    lists = write_ucf101(tmp_path / "ucf101")
    text = (lists / "classInd.txt").read_text()
    (lists / "classInd.txt").write_text(text.replace("YoYo", "Yo\x1bYo"))
    with pytest.raises(DataError, match=r"classInd\.txt: line 3: the class name"):
        parse_ucf101(lists)
    (write_hmdb51(tmp_path / "hmdb51") / "w\nx_test_split1.txt").touch()
    with pytest.raises(DataError, match="the class name"):
        parse_hmdb51(tmp_path / "hmdb51")
    (tmp_path / "train.csv").write_text(f"{HEADER}wa\x1bve,abc,1,11,train\n")
    with pytest.raises(DataError, match=r"train\.csv: line 2: the class name"):
        parse_kinetics(tmp_path)


# --- the real lists -------------------------------------------------------------------------------


def test_the_shared_sets_have_the_counts_of_their_readme(shared_data: Path):
    ucf101 = parse_ucf101(shared_data / "ucf101_6class")
    check_labels(ucf101)
    assert len(ucf101.paths) == 731 and len(ucf101.splits) == 3
    assert Counter(e.split for e in ucf101.splits[0].values()) == {"train": 529, "test": 202}
    assert len({(ucf101.label_of(p), ucf101.group_of(p)) for p in ucf101.paths}) == 6 * 25
    jhmdb = parse_ucf101(shared_data / "jhmdb21")
    check_labels(jhmdb)
    assert Counter(e.split for e in jhmdb.splits[1].values()) == {"train": 606, "test": 322}
    assert len({jhmdb.group_of(path) for path in jhmdb.paths}) == 336
