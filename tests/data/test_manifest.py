"""A manifest comes back as it was written, and a bad row is named by its number."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from ndavid.data.manifest import ClipRecord, Manifest, read_manifest
from ndavid.data.names import fault_of_name
from ndavid.errors import ConfigError, DataError

names = st.text(
    st.characters(blacklist_categories=("Cs", "Cc")),
    min_size=1,
    max_size=12,
).filter(lambda s: s.strip() == s and not s.startswith("/"))


def make(num_classes: int = 3, groups: int = 6, clips: int = 4, root: Path = Path()) -> Manifest:
    """Groups are numbered within each class, as in UCF101; the last two are test."""
    records = tuple(
        ClipRecord(
            path=f"c{label}/v_g{group:02d}_c{clip:02d}.avi",
            label=label,
            group=f"g{group:02d}",
            num_frames=50 + clip,
            fps=25.0,
            width=320,
            height=240,
            splits=("test" if group >= groups - 2 else "train", "train"),
            decord_ok=[True, False, None][clip % 3],
            num_bytes=[None, 4000][clip % 2],
            digest=["", "ends:" + 32 * "a", "sha256:" + 64 * "0"][clip % 3],
            damaged=[None, 0, 7][clip % 3],
        )
        for label in range(num_classes)
        for group in range(groups)
        for clip in range(clips)
    )
    return Manifest(root, tuple(f"Class {k}" for k in range(num_classes)), records)


def test_what_is_written_is_read(tmp_path) -> None:
    manifest = make(root=tmp_path)
    path = manifest.write(tmp_path)
    assert path == tmp_path / "manifest.csv"
    header = path.read_text().splitlines()[0]
    columns = "path,label,class,group,frames,fps,width,height,decord_ok,bytes,digest,damaged"
    assert header == f"{columns},split_1,split_2"
    assert read_manifest(path) == read_manifest(tmp_path) == manifest
    assert manifest.num_folds == 2


def test_older_manifests_lack_some_columns(tmp_path) -> None:
    columns = "path,label,class,group,frames,fps,width,height,decord_ok"
    row = "a.avi,0,A,g1,50,25.0,320,240,yes"
    path = tmp_path / "manifest.csv"
    path.write_text(f"{columns},split_1,split_2\n{row},train,test\n")
    old = read_manifest(path).records[0]
    assert (old.num_bytes, old.digest, old.damaged) == (None, "", None)
    assert old.splits == ("train", "test")
    path.write_text(f"{columns},damaged,split_1,split_2\n{row},3,train,test\n")
    assert read_manifest(path).records == (replace(old, damaged=3),)


@given(path=names, group=st.one_of(st.just(""), names), class_name=names)
@example(path="a\\b", group="", class_name="\\")
def test_odd_names_survive(tmp_path_factory, path, group, class_name) -> None:
    assume(fault_of_name(path) is None)
    folder = tmp_path_factory.mktemp("odd")
    record = ClipRecord(path, 0, group, 7, 29.97, 4, 2, ("val",))
    manifest = Manifest(folder, (class_name,), (record,))
    manifest.write(folder)
    assert read_manifest(folder) == manifest


unsafe = st.one_of(
    st.builds("{}{}".format, st.sampled_from(["/", "\\", "../", "..\\", "a/../", "C:/"]), names),
    names,
).filter(fault_of_name)


@given(path=unsafe)
@example(path="\\")
@example(path="..")
def test_what_is_no_safe_name_is_neither_written_nor_read(tmp_path_factory, path) -> None:
    folder = tmp_path_factory.mktemp("unsafe")
    record = ClipRecord("safe.mp4", 0, "", 7, 29.97, 4, 2, ("val",))
    manifest = Manifest(folder, ("a",), (record,))
    with pytest.raises(DataError) as caught:
        replace(manifest, records=(replace(record, path=path),)).write(folder)
    assert fault_of_name(path) in str(caught.value)
    # So a file that holds it was written by somebody else.
    file = manifest.write(folder)
    rows = file.read_text(encoding="utf-8").split("safe.mp4")
    assert len(rows) == 2
    quoted = '"' + path.replace('"', '""') + '"'
    file.write_text(quoted.join(rows), encoding="utf-8")
    with pytest.raises(DataError, match="row 2: "):
        read_manifest(folder)


def test_videos_may_lie_elsewhere(tmp_path) -> None:
    videos, lists = tmp_path / "videos", tmp_path / "lists"
    videos.mkdir()
    path = make(root=videos).write(lists / "ucf.csv")
    assert path.read_text().startswith("# root: ../videos\n")
    assert read_manifest(path).root.resolve() == videos.resolve()
    text = path.read_text().replace("../videos", str(videos))
    path.write_text(text)
    assert read_manifest(path).root == videos


def test_a_class_without_clips_keeps_its_number(tmp_path) -> None:
    manifest = make(num_classes=3, root=tmp_path)
    without = replace(manifest, records=tuple(r for r in manifest.records if r.label != 1))
    without.write(tmp_path)
    assert read_manifest(tmp_path).classes == ("Class 0", "Class 1", "Class 2")
    (tmp_path / "classes.txt").unlink()
    assert read_manifest(tmp_path).classes == ("Class 0", "class_1", "Class 2")


def test_writing_leaves_the_old_file_when_it_fails(tmp_path) -> None:
    manifest = make(root=tmp_path)
    path = manifest.write(tmp_path)
    before = path.read_text()
    broken = replace(manifest.records[0], label=99)
    with pytest.raises(IndexError):
        replace(manifest, records=(*manifest.records, broken)).write(tmp_path)
    assert path.read_text() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes.txt", "manifest.csv"]


GOOD = "a.avi,0,A,g1,50,25.0,320,240,yes,train"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a.avi,0,A,g1,50,25.0,320,240,yes", "row 3: 9 fields instead of 10"),
        ("b.avi,x,A,g1,50,25.0,320,240,yes,train", "row 3: .*'x'"),
        ("b.avi,0,A,g1,fifty,25.0,320,240,yes,train", "row 3: .*'fifty'"),
        ("b.avi,0,A,g1,0,25.0,320,240,yes,train", "row 3: frames is 0"),
        ("b.avi,0,A,g1,50,nan,320,240,yes,train", "row 3: fps nan"),
        ("b.avi,0,A,g1,50,25.0,0,240,yes,train", "row 3: size 0x240"),
        ("b.avi,0,A,g1,50,25.0,320,240,maybe,train", "row 3: decord_ok.*'maybe'"),
        ("b.avi,0,A,g1,50,25.0,320,240,yes,training", r"row 3: splits.*\['training'\]"),
        ("b.avi,0,B,g1,50,25.0,320,240,yes,train", "row 3: label 0 is 'A' and 'B'"),
        ("b.avi,0,,g1,50,25.0,320,240,yes,train", "row 3: label 0 has no class name"),
        ("b.avi,-2,,g1,50,25.0,320,240,yes,train", "row 3: label -2 is below -1"),
        ("/b.avi,0,A,g1,50,25.0,320,240,yes,train", "row 3: path '/b.avi' must be relative"),
        (",0,A,g1,50,25.0,320,240,yes,train", "row 3: no path"),
        ("../../b.avi,0,A,g1,50,25.0,320,240,yes,train", "row 3: .*leaves its folder"),
        ("C:/b.avi,0,A,g1,50,25.0,320,240,yes,train", "row 3: .*is absolute"),
        ("\x1bb.avi,0,A,g1,50,25.0,320,240,yes,train", "row 3: .*control character"),
        ("b.avi,1,B\x1b,g1,50,25.0,320,240,yes,train", "row 3: the class name .*control"),
        ("b.avi,0,A,g\x1b,50,25.0,320,240,yes,train", "row 3: the group .*control"),
        ("a.avi,0,A,g1,50,25.0,320,240,yes,test", "row 3: a.avi is listed twice"),
    ],
)
@pytest.mark.parametrize("with_root", [False, True])
def test_bad_rows_are_named(tmp_path, row, reason, with_root) -> None:
    header = "path,label,class,group,frames,fps,width,height,decord_ok,split_1"
    comment = "# root: videos\n" if with_root else ""
    (tmp_path / "manifest.csv").write_text(f"{comment}{header}\n{GOOD}\n{row}\n")
    shifted = reason.replace("row 3", "row 4") if with_root else reason
    with pytest.raises(DataError, match=shifted) as caught:
        read_manifest(tmp_path)
    assert caught.value.path == str(tmp_path / "manifest.csv")


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ("0,,", "row 2: bytes is 0"),
        ("many,,", "row 2: .*'many'"),
        ("9,beef,", "row 2: digest 'beef' must be ends:HEX"),
        ("9,,-1", "row 2: damaged is -1"),
    ],
)
def test_bad_facts_of_a_file_are_named(tmp_path, facts, reason) -> None:
    columns = "path,label,class,group,frames,fps,width,height,decord_ok,bytes,digest,damaged"
    row = f"a.avi,0,A,g1,50,25.0,320,240,yes,{facts},train"
    (tmp_path / "manifest.csv").write_text(f"{columns},split_1\n{row}\n")
    with pytest.raises(DataError, match=reason):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"path": "two\nlines.avi"}, "control character"),
        ({"path": "../up.avi"}, "leaves its folder"),
        ({"path": "bytes\udcff.avi"}, "control character"),
        ({"group": "g\r1"}, "the group .*control character"),
    ],
)
def test_no_manifest_is_written_that_cannot_be_read(tmp_path, change, reason) -> None:
    manifest = make(root=tmp_path)
    path = manifest.write(tmp_path)
    before = path.read_text()
    odd = replace(manifest.records[0], **change)
    with pytest.raises(DataError, match=reason):
        replace(manifest, records=(odd, *manifest.records[1:])).write(tmp_path)
    with pytest.raises(DataError, match="class name"):
        replace(manifest, classes=("Class\n0", *manifest.classes[1:])).write(tmp_path)
    with pytest.raises(DataError, match="root of the videos"):
        replace(manifest, root=tmp_path / "two\nlines").write(tmp_path)
    assert path.read_text() == before and read_manifest(tmp_path) == manifest


def test_names_beside_the_rows_are_checked(tmp_path) -> None:
    path = make(root=tmp_path).write(tmp_path)
    text = path.read_text()
    path.write_text(f"# root: ../v\x1b[2J\n{text}")
    with pytest.raises(DataError, match="line 1: the root of the videos"):
        read_manifest(tmp_path)
    path.write_text(text)
    (tmp_path / "classes.txt").write_text("Class 0\nClass 1\nClass 2\nx\x1b\n")
    with pytest.raises(DataError, match=r"classes\.txt: line 4: the class name"):
        read_manifest(tmp_path)
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"classes\.txt: no readable class names"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("path,label\n", "row 1: columns must be"),
        ("path,label,class,group,frames,fps,width,height,decord_ok,split_1\n", "no clips"),
        ("path,label,class,group,frames,fps,width,height,decord_ok\n", "row 1: columns"),
    ],
)
def test_files_that_are_no_manifest(tmp_path, text, reason) -> None:
    (tmp_path / "manifest.csv").write_text(text)
    with pytest.raises(DataError, match=reason):
        read_manifest(tmp_path)


def test_no_manifest_at_all(tmp_path) -> None:
    with pytest.raises(DataError, match="no readable manifest") as caught:
        read_manifest(tmp_path / "absent")
    assert "absent" in str(caught.value)
    (tmp_path / "manifest.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no readable manifest"):
        read_manifest(tmp_path)


def test_classes_file_that_disagrees(tmp_path) -> None:
    make(root=tmp_path).write(tmp_path)
    (tmp_path / "classes.txt").write_text("Class 0\nOther\nClass 2\n")
    with pytest.raises(DataError, match=r"label 1 is 'Class 1', but classes\.txt has 'Other'"):
        read_manifest(tmp_path)


def test_select() -> None:
    manifest = make()
    assert len(manifest.select("train")) == 3 * 4 * 4
    assert len(manifest.select("test")) == 3 * 2 * 4
    assert len(manifest.select("train", fold=2)) == len(manifest.records)
    assert manifest.select("val") == ()
    with pytest.raises(ConfigError, match="folds 1 to 2"):
        manifest.select("train", fold=3)
    with pytest.raises(ConfigError, match="choose train, test or val"):
        manifest.select("training")


@given(
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**31),
    groups=st.integers(4, 9),
    clips=st.integers(1, 5),
)
def test_holdout_parts_train_by_whole_groups(fraction, seed, groups, clips) -> None:
    manifest = make(groups=groups, clips=clips)
    train, held = manifest.holdout(fraction, seed)
    assert sorted(r.path for r in (*train, *held)) == sorted(
        r.path for r in manifest.select("train")
    )
    keys = lambda records: {(r.label, r.group) for r in records}  # noqa: E731
    assert not keys(train) & keys(held)
    everything = Counter(r.label for r in manifest.select("train"))
    in_train, in_held = (Counter(r.label for r in part) for part in (train, held))
    for label, count in everything.items():
        assert in_train[label] > 0 and in_held[label] > 0
        # Nearest to the fraction that whole groups allow, with one at least on either side.
        reachable = [k * clips for k in range(1, groups - 2)]
        nearest = min(abs(k - fraction * count) for k in reachable)
        assert abs(in_held[label] - fraction * count) == pytest.approx(nearest)
    assert manifest.holdout(fraction, seed) == (train, held)


def test_holdout_depends_on_the_seed() -> None:
    manifest = make(groups=12)
    drawn = {tuple(r.path for r in manifest.holdout(0.2, seed)[1]) for seed in range(8)}
    assert len(drawn) > 4


def test_clips_without_a_group_are_held_out_one_by_one() -> None:
    manifest = make(groups=6)
    alone = replace(manifest, records=tuple(replace(r, group="") for r in manifest.records))
    train, held = alone.holdout(0.25, seed=0)
    assert Counter(r.label for r in held) == {0: 4, 1: 4, 2: 4}
    assert len(train) == 36


def test_holdout_refuses_to_remove_a_class() -> None:
    manifest = make(groups=3)  # one train group a class
    with pytest.raises(DataError, match="class Class 0 has one train group in fold 1"):
        manifest.holdout(0.2, seed=0)
    with pytest.raises(DataError, match=r"another group \(source\), or leave it$"):
        manifest.holdout(0.2, seed=0, otherwise="or leave it")
    with pytest.raises(DataError, match=r"another group \(source\)$"):
        manifest.holdout(0.2, seed=0)
    with pytest.raises(ConfigError, match="between 0 and 1"):
        make().holdout(1.0, seed=0)
