"""From videos and lists to a manifest: true counts, every problem reported, nothing done twice."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from ndavid.data import preparation
from ndavid.data.annotations import Annotations, Entry, parse_kinetics, parse_ucf101
from ndavid.data.changed_files import changed_files
from ndavid.data.decode import open_reader, probe
from ndavid.data.file_digests import file_facts
from ndavid.data.folder_annotations import parse_folder
from ndavid.data.manifest import read_manifest
from ndavid.data.preparation import PrepareSettings, prepare
from ndavid.data.preparation_report import summary
from ndavid.data.synthetic import write_motion_clips
from ndavid.data.verification import verify
from ndavid.data.workers import run_all
from ndavid.errors import DataError


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    return write_motion_clips(tmp_path_factory.mktemp("motion"), num_clips=20, size=32)


@pytest.fixture
def videos(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "videos"))


def run(videos: Path, output: Path, **arguments):
    return prepare(parse_ucf101(videos), videos, output, num_workers=0, progress=False, **arguments)


def rows(path: Path) -> list[list[str]]:
    with path.open(newline="") as stream:
        return list(csv.reader(stream))


def test_a_sound_set_gives_a_manifest_that_points_to_the_videos(videos: Path, tmp_path: Path):
    done = run(videos, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest.root.resolve() == videos.resolve()
    assert len(manifest.records) == 20 and manifest.num_folds == 3
    for record in manifest.records:
        info = probe(manifest.root / record.path)
        assert (record.num_frames, record.width, record.height) == (info.num_frames, 32, 32)
        assert manifest.classes[record.label] == record.path.split("/")[0]
        assert record.group in record.path and record.decord_ok is None
    assert {r.label for r in manifest.select("test", 2)} == set(range(10))
    assert not done.bad and not done.missing and not done.unlisted and not done.leaks
    for name in ("bad_files", "missing_files", "unlisted_files", "leaked_groups"):
        assert len(rows(tmp_path / "out" / f"{name}.csv")) == 1
    assert "20 clips of 10 classes" in summary(done) and "fold 3: train 10, test 10" in summary(
        done
    )


def test_reencoding_writes_small_clips_with_the_same_frames(videos: Path, tmp_path: Path):
    settings = PrepareSettings(short_side=16, gop=6)
    run(videos, tmp_path / "out", settings=settings)
    manifest = read_manifest(tmp_path / "out")
    assert manifest.root.resolve() == (tmp_path / "out").resolve()
    for record in manifest.records:
        source = videos / record.path.removeprefix("clips/")
        assert record.num_frames == probe(source).num_frames
        with open_reader(manifest.root / record.path) as reader:
            assert tuple(reader.size) == (16, 16) == (record.height, record.width)
            assert len(reader) == record.num_frames


def test_decord_is_asked_about_each_file(videos: Path, tmp_path: Path):
    pytest.importorskip("decord")
    run(videos, tmp_path / "out", settings=PrepareSettings(verify_decord=True))
    assert {record.decord_ok for record in read_manifest(tmp_path / "out").records} == {True}


def test_problems_are_reported_and_the_rest_goes_on(videos: Path, tmp_path: Path):
    clips = sorted(p.relative_to(videos).as_posix() for p in videos.glob("*/*.mp4"))
    empty, cut, text, gone = clips[:4]
    (videos / empty).write_bytes(b"")
    whole = (videos / cut).read_bytes()
    (videos / cut).write_bytes(whole[: len(whole) // 2])
    (videos / text).write_text("<html>404</html>")
    (videos / gone).unlink()
    (videos / "Approach" / "extra.avi").write_bytes(b"")
    done = run(videos, tmp_path / "out")
    assert {bad.path for bad in done.bad} == {empty, cut, text}
    reasons = dict(rows(tmp_path / "out" / "bad_files.csv")[1:])
    assert "0 bytes" in reasons[empty] and all(reasons.values())
    assert rows(tmp_path / "out" / "missing_files.csv")[1:] == [[gone]]
    assert rows(tmp_path / "out" / "unlisted_files.csv")[1:] == [["Approach/extra.avi"]]
    manifest = read_manifest(tmp_path / "out")
    assert len(manifest.records) == 16 and len(manifest.classes) == 10
    text_summary = summary(done)
    assert "bad files: 3" in text_summary and "listed but missing: 1" in text_summary


def test_leaked_groups_are_reported(videos: Path, tmp_path: Path):
    # g01 is in fold 1's test: a copy of it is listed in train.
    shutil.copy(videos / "Recede/v_Recede_g01_c01.mp4", videos / "Recede/v_Recede_g01_c02.mp4")
    label = parse_ucf101(videos).classes.index("Recede") + 1
    with (videos / "trainlist01.txt").open("a") as stream:
        stream.write(f"Recede/v_Recede_g01_c02.mp4 {label}\n")
    done = run(videos, tmp_path / "out")
    assert [(leak.class_name, leak.group) for leak in done.leaks] == [("Recede", "g01")]
    report = rows(tmp_path / "out" / "leaked_groups.csv")
    assert report[1:] == [["1", "Recede", "g01", "1", "0", "1"]]
    assert "leaked groups: 1" in summary(done)
    errors = verify(tmp_path / "out", num_workers=0, progress=False).errors
    assert any("leaked group" in error and "Recede g01" in error for error in errors)


def test_files_are_found_whatever_their_suffix(videos: Path, tmp_path: Path):
    for name in ("trainlist01.txt", "testlist01.txt", "trainlist02.txt"):
        path = videos / name
        path.write_text(path.read_text().replace(".mp4", ".avi"))
    for name in ("testlist02.txt", "trainlist03.txt", "testlist03.txt"):
        (videos / name).write_text((videos / name).read_text().replace(".mp4", ".avi"))
    done = run(videos, tmp_path / "out")
    assert len(done.manifest.records) == 20
    assert all(record.path.endswith(".mp4") for record in done.manifest.records)


def test_a_second_run_does_only_what_changed(videos: Path, tmp_path: Path):
    settings = PrepareSettings(short_side=16)
    first = run(videos, tmp_path / "out", settings=settings)
    assert first.num_reused == 0
    targets = sorted((tmp_path / "out" / "clips").glob("*/*.mp4"))
    times = {path: path.stat().st_mtime_ns for path in targets}
    targets[0].unlink()
    targets[1].write_bytes(b"cut")
    source = videos / targets[2].relative_to(tmp_path / "out" / "clips")
    os.utime(source, ns=(1, 1))
    second = run(videos, tmp_path / "out", settings=settings)
    assert second.num_reused == 17
    assert second.manifest.records == first.manifest.records
    redone = {path for path in targets if path.stat().st_mtime_ns != times[path]}
    assert redone == set(targets[:3])
    assert run(videos, tmp_path / "out", settings=PrepareSettings(short_side=24)).num_reused == 0


@pytest.mark.parametrize("full_digest", [False, True])
def test_another_new_file_of_the_same_size_is_written_anew(
    videos: Path, tmp_path: Path, full_digest: bool
):
    settings = PrepareSettings(short_side=16, full_digest=full_digest)
    first = run(videos, tmp_path / "out", settings=settings)
    target = min((tmp_path / "out" / "clips").glob("*/*.mp4"))
    whole = target.read_bytes()
    target.write_bytes(whole[:-100] + bytes(100))
    second = run(videos, tmp_path / "out", settings=settings)
    assert second.num_reused == 19 and second.manifest.records == first.manifest.records
    assert target.read_bytes() == whole


def vanish_before(monkeypatch, name: str, file: Path) -> None:
    """A file goes when `prepare` calls a function of this name on it."""
    known = getattr(preparation, name)

    def after_it_went(path, *arguments):
        if Path(path) == file:
            file.unlink(missing_ok=True)
        return known(path, *arguments)

    monkeypatch.setattr(preparation, name, after_it_went)


@pytest.mark.parametrize("work", ["probe", "file_facts", "verify_backend"])
def test_a_file_that_vanishes_meanwhile_is_one_bad_file_and_no_more(
    videos: Path, tmp_path: Path, monkeypatch, work: str
):
    settings = PrepareSettings(full_digest=work != "probe", verify_decord=work == "verify_backend")
    if work != "probe":  # what is known of all files is completed
        run(videos, tmp_path / "out")
    clip = max(videos.glob("*/*.mp4"))
    content, facts = clip.read_bytes(), clip.stat()
    with monkeypatch.context() as patched:
        # In this process, where the file can be taken away at the right moment.
        patched.setattr(
            preparation, "run_all", lambda function, items, _: run_all(function, items, 0)
        )
        vanish_before(patched, work, clip)
        done = run(videos, tmp_path / "out", settings=settings)
    assert [bad.path for bad in done.bad] == [clip.relative_to(videos).as_posix()]
    assert len(done.manifest.records) == 19 and len(summary(done).splitlines()) < 20
    # Back as it was, in its time too: the next run looks at it again.
    clip.write_bytes(content)
    os.utime(clip, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    done = run(videos, tmp_path / "out", settings=settings)
    assert not done.bad and len(done.manifest.records) == 20


def test_a_repaired_file_leaves_the_list_of_bad_ones(videos: Path, tmp_path: Path):
    clip = next(videos.glob("*/*.mp4"))
    content = clip.read_bytes()
    clip.write_bytes(b"")
    assert len(run(videos, tmp_path / "out").bad) == 1
    clip.write_bytes(content)
    done = run(videos, tmp_path / "out")
    assert not done.bad and done.num_reused == 19


def test_nothing_found_or_nothing_sound_is_an_error(videos: Path, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"none of the 20 listed clips.*such as Approach/v_"):
        prepare(parse_ucf101(videos), tmp_path / "empty", tmp_path / "out", num_workers=0)
    for path in videos.glob("*/*.mp4"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none of the 20 listed files decodes"):
        run(videos, tmp_path / "out")


def test_a_folder_of_ones_own_with_equal_stems(original: Path, tmp_path: Path):
    clips = sorted(original.glob("*/*.mp4"))
    for place in ("train/x/1.mp4", "test/x/1.mp4", "train/y/1.mp4", "train/y/1.m4v"):
        (tmp_path / "mine" / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(clips[len(place) % 7], tmp_path / "mine" / place)
    done = prepare(
        parse_folder(tmp_path / "mine"),
        tmp_path / "mine",
        tmp_path / "out",
        settings=PrepareSettings(short_side=16),
        num_workers=0,
        progress=False,
    )
    paths = [record.path for record in done.manifest.records]
    assert len(set(paths)) == 4 and not done.leaks
    assert all((tmp_path / "out" / path).exists() for path in paths)


def test_a_class_folder_without_videos_is_named(original: Path, tmp_path: Path):
    (tmp_path / "mine" / "none").mkdir(parents=True)
    (tmp_path / "mine" / "some").mkdir()
    shutil.copy(next(original.glob("*/*.mp4")), tmp_path / "mine" / "some")
    annotations = parse_folder(tmp_path / "mine")
    done = prepare(annotations, tmp_path / "mine", tmp_path / "out", num_workers=0, progress=False)
    assert "1 folder holds no videos, and no clip comes of it: none" in summary(done)


def test_an_unlabelled_folder_is_fine_for_pretraining(original: Path, tmp_path: Path):
    (tmp_path / "flat").mkdir()
    for number, clip in enumerate(sorted(original.glob("*/*.mp4"))[:3]):
        shutil.copy(clip, tmp_path / "flat" / f"{number}.mp4")
    prepare(parse_folder(tmp_path / "flat"), tmp_path / "flat", tmp_path / "out", num_workers=0)
    manifest = read_manifest(tmp_path / "out")
    assert {record.label for record in manifest.records} == {-1}
    assert len(manifest.select("train")) == 3


def test_an_output_that_cannot_be_written_stops_the_run(videos: Path, tmp_path: Path):
    (tmp_path / "out").write_text("a file stands here")
    with pytest.raises(DataError, match="out"):
        run(videos, tmp_path / "out")


# --- several files of a clip, and files with odd names --------------------------------------------


@pytest.fixture
def kinetics(original: Path, tmp_path: Path) -> Path:
    """Three clips: one in two folders of which the first in order is cut, one whose copies are
    both cut, one in two folders of which both are whole."""
    root = tmp_path / "k400"
    whole = [path.read_bytes() for path in sorted(original.glob("*/*.mp4"))[:3]]
    cut = whole[0][: len(whole[0]) // 2]
    contents = {"one": (cut, whole[0]), "two": (cut, cut), "three": (whole[1], whole[2])}
    rows = ["label,youtube_id,time_start,time_end,split"]
    for name, copies in contents.items():
        rows.append(f"wave,{name},1,11,train")
        for folder, content in zip(("replacement", "train/wave"), copies, strict=True):
            (root / folder).mkdir(parents=True, exist_ok=True)
            (root / folder / f"{name}_000001_000011.mp4").write_bytes(content)
    (root / "train.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.parametrize("short_side", [None, 16])
def test_of_several_files_the_one_that_reads_is_taken(kinetics: Path, tmp_path: Path, short_side):
    settings = PrepareSettings(short_side=short_side)

    def again(**arguments):
        return prepare(
            parse_kinetics(kinetics),
            kinetics,
            tmp_path / "out",
            settings=settings,
            num_workers=0,
            progress=False,
            **arguments,
        )

    done = again()
    assert not done.missing and not done.unlisted
    taken = {copies.clip[:3]: copies for copies in done.copies}
    assert taken["one"].taken == "train/wave/one_000001_000011.mp4"
    assert [bad.path for bad in taken["one"].left] == ["replacement/one_000001_000011.mp4"]
    assert taken["one"].left[0].reason
    assert taken["thr"].taken == "replacement/three_000001_000011.mp4"
    assert taken["thr"].left[0].reason == ""
    assert {bad.path.split("/")[0] for bad in done.bad} == {"replacement", "train"}
    assert all("two_" in bad.path for bad in done.bad)
    lines = summary(done)
    assert "with several files: 2 (all in several_files.csv)" in lines
    assert "one_000001_000011.mp4: took train/wave/one_000001_000011.mp4, not replacement/" in lines
    report = rows(tmp_path / "out" / "several_files.csv")
    assert len(report) == 3 and report[1][1] == "train/wave/one_000001_000011.mp4"
    records = read_manifest(tmp_path / "out").records
    assert len(records) == 2
    for record in records:
        assert probe(done.manifest.root / record.path).num_frames == record.num_frames
    second = again()
    assert second.num_reused == 3 and second.manifest.records == done.manifest.records
    assert second.copies == done.copies and second.bad == done.bad


def test_files_with_odd_names_are_put_aside_and_named(videos: Path, tmp_path: Path):
    odd = ["two\nlines.mp4", "red\x1b[31m.mp4", os.fsdecode(b"latin\xf6.mp4")]
    for name in odd:
        shutil.copy(next(videos.glob("Recede/*.mp4")), videos / "Recede" / name)
    for name, parse in (("ucf", parse_ucf101), ("own", parse_folder)):
        output = tmp_path / name
        done = prepare(parse(videos), videos, output, num_workers=0, progress=False)
        assert len(read_manifest(output).records) == 20
        assert {Path(bad.path).name for bad in done.bad} == set(odd)
        lines = summary(done)
        assert "bad files: 3" in lines and lines.replace("\n", "").isprintable()
        report = (output / "bad_files.csv").read_text(encoding="utf-8")
        assert r"two\nlines.mp4" in report and r"red\x1b[31m.mp4" in report
        assert r"latin\udcf6.mp4" in report and "rename it" in report
        assert report.replace("\n", "").isprintable()


def test_a_place_that_no_manifest_can_hold_is_refused_at_once(original: Path, tmp_path: Path):
    odd = Path(shutil.copytree(original, tmp_path / "two\nlines"))
    with pytest.raises(DataError, match=r"the root of the videos .*control character"):
        run(odd, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    # Copies lie in the output folder, which has a plain name.
    run(odd, tmp_path / "out", settings=PrepareSettings(short_side=16))
    assert len(read_manifest(tmp_path / "out").records) == 20


def test_several_classes_that_a_side_lacks_are_one_error(videos: Path, tmp_path: Path):
    path = videos / "testlist01.txt"
    kept = (line for line in path.open() if not line.startswith(("Recede", "Approach")))
    path.write_text("".join(kept))
    run(videos, tmp_path / "out")
    (error,) = check(tmp_path / "out").errors
    assert error == "fold 1: 2 of 10 classes have no clip in test: 'Approach', 'Recede'"


# --- what a list or a planted link could have overwritten ---------------------------------------


def test_a_list_that_climbs_cannot_overwrite_a_file_outside(videos: Path, tmp_path: Path):
    # As found: a copy lies where the list points, and the target would climb out of the output.
    victim = tmp_path / "x" / "Recede" / "v.mp4"
    victim.parent.mkdir(parents=True)
    victim.write_bytes(b"precious")
    shutil.copy(next(videos.glob("Recede/*.mp4")), videos / "Recede" / "v.mp4")
    label = parse_ucf101(videos).classes.index("Recede") + 1
    with (videos / "trainlist01.txt").open("a") as stream:
        stream.write(f"../../x/Recede/v.mp4 {label}\n")
    with pytest.raises(DataError, match=r"trainlist01\.txt: line 11: .*leaves its folder"):
        run(videos, tmp_path / "out", settings=PrepareSettings(short_side=16))
    # Whoever calls prepare with lists of their own making meets the same wall.
    entry = {"../../x/Recede/v.mp4": Entry(0, "train")}
    climbing = Annotations(("Recede",), (entry,), lambda path: "")
    with pytest.raises(DataError, match="leads out of"):
        prepare(
            climbing,
            videos,
            tmp_path / "out",
            settings=PrepareSettings(short_side=16),
            num_workers=0,
            progress=False,
        )
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("place", ["clips", "clips/Recede"])
def test_a_planted_link_leads_nothing_outside(videos: Path, tmp_path: Path, place: str):
    outside, link = tmp_path / "outside", tmp_path / "out" / place
    outside.mkdir()
    (outside / ".mine.partial.mp4").write_bytes(b"precious")
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    with pytest.raises(DataError, match=r"leads out of .*remove the link"):
        run(videos, tmp_path / "out", settings=PrepareSettings(short_side=16))
    assert [path.name for path in outside.rglob("*")] == [".mine.partial.mp4"]


def test_a_planted_file_link_is_replaced_or_refused(videos: Path, tmp_path: Path):
    victim, output = tmp_path / "victim", tmp_path / "out"
    victim.write_bytes(b"precious")
    name = next(videos.glob("Recede/*.mp4")).name
    (output / "clips" / "Recede").mkdir(parents=True)
    (output / "clips" / "Recede" / name).symlink_to(victim)
    stem = Path(name).stem
    (output / "clips" / "Recede" / f".{stem}.{os.getpid()}.partial.mp4").symlink_to(victim)
    for report in ("manifest.csv", "classes.txt", "bad_files.csv", "prepare.json"):
        (output / report).symlink_to(victim)
        (output / f".{report}.{os.getpid()}.partial").symlink_to(victim)
    run(videos, output, settings=PrepareSettings(short_side=16))
    assert victim.read_bytes() == b"precious"
    assert len(read_manifest(output).records) == 20
    (output / "journal.jsonl").unlink()
    (output / "journal.jsonl").symlink_to(victim)
    with pytest.raises(DataError, match=r"journal\.jsonl: .*it is a link; remove it"):
        run(videos, output)
    assert victim.read_bytes() == b"precious"


def test_no_video_is_overwritten_by_its_own_copy(videos: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    home = tmp_path / "out" / "clips"
    shutil.copytree(videos, home)
    before = {path: path.read_bytes() for path in home.glob("*/*.mp4")}
    with pytest.raises(DataError, match="would be overwritten; give another --output"):
        run(home, tmp_path / "out", settings=PrepareSettings(short_side=16))
    assert {path: path.read_bytes() for path in home.glob("*/*.mp4")} == before


# --- verification ---------------------------------------------------------------------------------


def check(output: Path, **arguments):
    return verify(output, num_workers=0, progress=False, **arguments)


def test_a_sound_set_is_sound(videos: Path, tmp_path: Path):
    run(videos, tmp_path / "out")
    result = check(tmp_path / "out", num_decoded=None)
    assert result.errors == result.warnings == ()
    assert result.num_decoded == result.num_clips == 20
    assert check(tmp_path / "out", num_decoded=7).num_decoded == 7


def test_what_changed_since_is_found(videos: Path, tmp_path: Path):
    run(videos, tmp_path / "out")
    gone, empty, other, broken = sorted(videos.glob("*/*.mp4"))[:4]
    gone.unlink()
    empty.write_bytes(b"")
    length = probe(other).num_frames
    donor = next(p for p in sorted(videos.glob("*/*.mp4"))[4:] if probe(p).num_frames != length)
    shutil.copy(donor, other)
    broken.write_bytes(b"no video")
    result = check(tmp_path / "out", num_decoded=None)
    found = {error.split(":")[0]: error for error in result.errors}
    names = [path.relative_to(videos).as_posix() for path in (gone, empty, other, broken)]
    assert set(found) == set(names)
    assert "no such file" in found[names[0]] and "empty" in found[names[1]]
    assert f"the manifest says {length}" in found[names[2]]
    assert result.duplicates == (tuple(sorted([names[2], donor.relative_to(videos).as_posix()])),)


def test_copies_on_both_sides_of_a_split_are_told_apart(videos: Path, tmp_path: Path):
    # Of two groups, fold 1 tests g01 and trains g02.
    shutil.copy(videos / "Recede/v_Recede_g01_c01.mp4", videos / "Recede/v_Recede_g02_c01.mp4")
    run(videos, tmp_path / "out")
    result = check(tmp_path / "out")
    assert result.errors == () and len(result.duplicates_across) == 1


def test_a_class_absent_from_test_is_found(videos: Path, tmp_path: Path):
    path = videos / "testlist01.txt"
    path.write_text("".join(line for line in path.open() if "Recede" not in line))
    run(videos, tmp_path / "out")
    assert check(tmp_path / "out").errors == ("fold 1: class 'Recede' has no clip in test",)


def test_split_folders_taken_for_classes_are_found(original: Path, tmp_path: Path):
    for number, place in enumerate(("train", "test", "extra")):
        (tmp_path / "mine" / place / "a").mkdir(parents=True)
        shutil.copy(sorted(original.glob("*/*.mp4"))[number], tmp_path / "mine" / place / "a")
    with pytest.raises(DataError, match="which of these are to be trained on"):
        parse_folder(tmp_path / "mine")
    # What was prepared before that was checked, or is meant so: nothing in the manifest tells.
    as_classes = parse_folder(tmp_path / "mine", layout="classes")
    prepare(as_classes, tmp_path / "mine", tmp_path / "out", num_workers=0, progress=False)
    result = check(tmp_path / "out")
    (warning,) = result.warnings
    assert "classes are called test, train" in warning and "prepare it again" in warning
    assert result.errors == ()


def test_no_manifest_is_a_data_error(tmp_path: Path):
    with pytest.raises(DataError, match="manifest"):
        check(tmp_path)


# --- which file it was ----------------------------------------------------------------------------


def test_the_manifest_tells_which_files_were_read(videos: Path, tmp_path: Path):
    run(videos, tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    for record in manifest.records:
        path = manifest.root / record.path
        assert record.num_bytes == path.stat().st_size
        assert record.digest == file_facts(path).digest and record.digest.startswith("ends:")
    assert changed_files(manifest.records, manifest.root) == {}
    # On request of all bytes; nothing is decoded again for it.
    again = run(videos, tmp_path / "out", settings=PrepareSettings(full_digest=True))
    assert again.num_reused == 20
    digests = {record.digest for record in again.manifest.records}
    assert all(digest.startswith("sha256:") for digest in digests)


def test_a_reencoded_clip_is_known_by_the_file_that_is_read(videos: Path, tmp_path: Path):
    run(videos, tmp_path / "out", settings=PrepareSettings(short_side=16))
    manifest = read_manifest(tmp_path / "out")
    for record in manifest.records:
        assert record.digest == file_facts(tmp_path / "out" / record.path).digest


def test_a_journal_of_an_older_version_is_completed_not_redone(videos: Path, tmp_path: Path):
    run(videos, tmp_path / "out", settings=PrepareSettings(short_side=16))
    journal = tmp_path / "out" / "journal.jsonl"
    entries = [json.loads(line) for line in journal.read_text().splitlines()]
    for entry in entries:
        del entry["bytes"], entry["digest"], entry["identity"]["settings"]["full_digest"]
        entry["decord_ok"] = None
    journal.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/clips/*/*.mp4")}
    again = run(videos, tmp_path / "out", settings=PrepareSettings(short_side=16))
    assert again.num_reused == 20 and all(record.digest for record in again.manifest.records)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_file_of_the_same_size_is_found(videos: Path, tmp_path: Path):
    run(videos, tmp_path / "out")
    path = sorted(videos.glob("*/*.mp4"))[3]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    name = path.relative_to(videos).as_posix()
    (error,) = [e for e in check(tmp_path / "out", num_decoded=0).errors if "prepared" in e]
    assert error == (
        f"{name}: is not the file that was prepared ({len(content)} bytes as before, but other "
        "ones)"
    )


def test_without_digests_verify_says_what_it_cannot_know(videos: Path, tmp_path: Path):
    run(videos, tmp_path / "out")
    old = read_manifest(tmp_path / "out")
    plain = tuple(replace(record, num_bytes=None, digest="") for record in old.records)
    replace(old, records=plain).write(tmp_path / "out")
    result = check(tmp_path / "out", num_decoded=0)
    assert result.errors == () and result.num_unknown == 20


def test_a_backend_that_crashes_makes_no_bad_file(videos: Path, tmp_path: Path, monkeypatch):
    """The verdict is found in another process, with no workers too: this one must survive."""
    folder, home = tmp_path / "few" / "A", tmp_path / "site"
    folder.mkdir(parents=True)
    shutil.copy(min(videos.glob("*/*.mp4")), folder)
    home.mkdir()
    # Spawned workers import this as `decord`.
    (home / "decord.py").write_text(
        "import os\n"
        "class DECORDError(Exception): pass\n"
        "def cpu(index): return index\n"
        "class logging:\n"
        "    QUIET = 0\n"
        "    set_level = staticmethod(lambda level: None)\n"
        "class VideoReader:\n"
        "    def __init__(self, path, **keys):\n"
        "        os.abort()\n"
    )
    monkeypatch.syspath_prepend(home)
    settings = PrepareSettings(verify_decord=True)
    arguments = (parse_folder(folder.parent), folder.parent, tmp_path / "out")
    done = prepare(*arguments, settings=settings, num_workers=0, progress=False)
    assert done.bad == () and [record.decord_ok for record in done.manifest.records] == [False]
    # Asked once: a second run knows the answers.
    asked = (tmp_path / "out" / "journal.jsonl").read_text()
    prepare(*arguments, settings=settings, num_workers=0, progress=False)
    assert (tmp_path / "out" / "journal.jsonl").read_text() == asked


@pytest.mark.slow
def test_a_real_file_that_ends_decord_is_sound_for_the_reference(shared_data: Path, tmp_path: Path):
    pytest.importorskip("decord")
    case = shared_data.parent / "cases" / "hugepts.mkv"
    if not case.exists():
        pytest.skip("no shared/cases beside the checkout")
    (tmp_path / "videos" / "A").mkdir(parents=True)
    shutil.copy(case, tmp_path / "videos" / "A")
    done = prepare(
        parse_folder(tmp_path / "videos"),
        tmp_path / "videos",
        tmp_path / "out",
        settings=PrepareSettings(verify_decord=True),
        num_workers=0,
        progress=False,
    )
    assert done.bad == () and [record.decord_ok for record in done.manifest.records] == [False]
