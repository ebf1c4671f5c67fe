"""Each file below a folder is listed once, and what is left out is accounted for."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from image_files import encoded, photo
from torchvision.datasets.folder import make_dataset

from ndavid.data.annotations import parse_hmdb51, parse_kinetics
from ndavid.data.cifar_c import corruption_files
from ndavid.data.decode import open_reader, probe
from ndavid.data.file_tree import find_files
from ndavid.data.folder_annotations import parse_folder
from ndavid.data.image_folders import open_flat, open_tree
from ndavid.data.image_reading import IMAGE_SUFFIXES
from ndavid.data.image_sources import FileImages, listing_notes
from ndavid.data.image_subsets import class_subset
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.preparation import prepare
from ndavid.data.preparation_report import summary
from ndavid.data.verification import verify
from ndavid.data.video_files import VIDEO_SUFFIXES, find_videos, list_videos
from ndavid.errors import DataError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "A/1.mp4", "A/._1.mp4", "A/.2.mp4", ".git/3.mp4", "__MACOSX/A/4.mp4")
    found = find_videos(tmp_path)
    assert found.files == ("A/1.mp4",)
    assert found.repeats == () and found.passed_over == {} and found.notes("videos") == ()


def test_one_link_back_up_changes_nothing(tmp_path: Path) -> None:
    folder = touch(tmp_path / "set", "A/1.mp4", "B/2.mp4")
    (folder / "A" / "up").symlink_to(folder)
    (folder / "B" / "out").symlink_to(tmp_path)
    (folder / "B" / "self.mp4").symlink_to("self.mp4")
    (folder / "B" / "here").symlink_to(".")
    touch(tmp_path, "other/3.mp4")
    found = find_videos(folder)
    # Not what lies above the folder either.
    assert found.files == ("A/1.mp4", "B/2.mp4")
    assert found.repeats == ("A/up/", "B/here/", "B/out/", "B/self.mp4")
    assert found.notes("videos") == (
        "links and second names left out, whose videos are there already: 4 (such as A/up/)",
    )


def test_links_between_linked_folders_end(tmp_path: Path) -> None:
    touch(tmp_path, "x/sub/1.mp4", "x/2.mp4", "set/A/3.mp4")
    (tmp_path / "x" / "sub" / "up").symlink_to(tmp_path / "x")
    (tmp_path / "set" / "b").symlink_to(tmp_path / "x" / "sub")
    # A folder around one that was linked before is no loop: it holds more.
    (tmp_path / "set" / "c").symlink_to(tmp_path / "x")
    found = find_videos(tmp_path / "set")
    assert found.files == ("A/3.mp4", "b/1.mp4", "c/2.mp4")
    assert found.repeats == ("b/up/", "c/sub/")


def test_a_file_of_several_names_is_one(tmp_path: Path) -> None:
    folder = touch(tmp_path / "set", "B/1.mp4", "B/2.mp4", "C/3.mp4")
    (folder / "A").mkdir()
    (folder / "A" / "1.mp4").symlink_to(folder / "B" / "1.mp4")  # the way without links counts
    os.link(folder / "C" / "3.mp4", folder / "C" / "4.mp4")
    (folder / "D").symlink_to(folder / "B")
    found = find_videos(folder)
    assert found.files == ("B/1.mp4", "B/2.mp4", "C/3.mp4")
    assert found.repeats == ("A/1.mp4", "C/4.mp4", "D/")


def test_links_to_other_places_are_followed_once(tmp_path: Path) -> None:
    store = touch(tmp_path / "store", ".objects/abc.mp4", "E/5.mp4")
    folder = touch(tmp_path / "set", "A/1.mp4")
    for name in ("2.mp4", "3.mp4"):
        (folder / "A" / name).symlink_to(store / ".objects" / "abc.mp4")
    (folder / "A" / "gone.mp4").symlink_to(store / "nothing.mp4")
    (folder / "E").symlink_to(store / "E")
    (folder / "F").symlink_to(store / "E")
    found = find_videos(folder)
    # A link to nothing stays, to be reported as a bad file.
    assert found.files == ("A/1.mp4", "A/2.mp4", "A/gone.mp4", "E/5.mp4")
    assert found.repeats == ("A/3.mp4", "F/")


def test_links_to_a_second_name_of_a_file_are_repeats(tmp_path: Path) -> None:
    """A hard link outside of the folder is a name that no path in it shows."""
    store, folder = touch(tmp_path / "store", "5.mp4"), touch(tmp_path / "set", "A/1.mp4")
    os.link(folder / "A" / "1.mp4", store / "1.mp4")
    os.link(store / "5.mp4", store / "6.mp4")
    (folder / "B").mkdir()
    for name in ("1.mp4", "5.mp4", "6.mp4", "gone.mp4", "lost.mp4"):
        (folder / "B" / name).symlink_to(store / name)
    found = find_videos(folder)
    assert found.files == ("A/1.mp4", "B/5.mp4", "B/gone.mp4", "B/lost.mp4")
    assert found.repeats == ("B/1.mp4", "B/6.mp4")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    touch(tmp_path, "A/1.mp4")
    os.mkfifo(tmp_path / "A" / "pipe.mp4")
    (tmp_path / "A" / "device.mp4").symlink_to("/dev/zero")
    found = find_videos(tmp_path)
    assert found.files == ("A/1.mp4",) and found.passed_over == {".mp4": 2}


def test_what_is_passed_over_is_counted_by_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "A/1.MP4", "A/2.txt", "3.TXT", "A/readme", "A/x.part of a sentence", "b.z\x1b")
    found = find_videos(tmp_path)
    assert found.passed_over == {".txt": 2, "": 2, ".z\x1b": 1}
    assert found.notes("videos") == (
        "files passed over, which are no videos by their suffix: 5 (2 without a suffix, 2 .txt, "
        "1 .z\\x1b)",
    )


def test_only_some_folders(tmp_path: Path) -> None:
    touch(tmp_path, "A/x/1.mp4", "B/2.mp4", "3.mp4", "4.txt", "B/5.txt")
    (tmp_path / "C").symlink_to(tmp_path / "B")
    assert find_files(tmp_path, VIDEO_SUFFIXES, tops=["A"]).files == ("A/x/1.mp4",)
    found = find_files(tmp_path, VIDEO_SUFFIXES, tops=["", "C"])
    assert found.files == ("3.mp4", "C/2.mp4") and found.passed_over == {".txt": 2}


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        find_videos(tmp_path / "absent")


def test_lists_that_are_hidden_are_none(tmp_path: Path) -> None:
    """macOS lays ._NAME beside each file of an archive, in bytes that are no text."""
    texts = {
        "wave_test_split1.txt": "a.avi 1\n",
        "train.csv": "label,youtube_id,time_start,time_end,split\na,abc,1,2,train\n",
    }
    for name, text in texts.items():
        for place in ("lists", "__MACOSX/lists"):
            (tmp_path / place).mkdir(parents=True, exist_ok=True)
            (tmp_path / place / f"._{name}").write_bytes(b"\0\x05\x16\x07\xff")
        (tmp_path / "lists" / name).write_text(text)
    assert parse_hmdb51(tmp_path).classes == ("wave",)
    assert parse_kinetics(tmp_path / "lists").classes == ("a",)
    (tmp_path / "lists" / "fog.npy").touch()
    (tmp_path / "lists" / "._fog.npy").touch()
    assert corruption_files(tmp_path / "lists") == ["fog"]


# --- videos ---------------------------------------------------------------------------------------

# Suffix -> (muxer, encoder, pixel format), as such files come.
KINDS = {
    "gif": ("gif", "gif", "rgb8"),
    "mts": ("mpegts", "libx264", "yuv420p"),
    "m2ts": ("mpegts", "libx264", "yuv420p"),
    "ogv": ("ogg", "libvpx", "yuv420p"),  # few encoders of Theora are left
    "vob": ("vob", "mpeg2video", "yuv420p"),
}


def write(path: Path, kind: str, num_frames: int = 12) -> None:
    muxer, encoder, pixels = KINDS.get(kind, ("mp4", "libx264", "yuv420p"))
    if encoder not in av.codecs_available:
        pytest.skip(f"this PyAV has no {encoder}")
    with av.open(str(path), "w", format=muxer) as container:
        stream = container.add_stream(encoder, rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, pixels
        for k in range(num_frames):
            image = np.full((48, 64, 3), 20 * k, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("kind", KINDS)
def test_every_new_suffix_is_listed_and_read(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind.upper()}"
    write(path, kind)
    assert list_videos(tmp_path) == [path.name]
    info = probe(path)
    assert (info.num_frames, info.width, info.height) == (12, 64, 48)
    with open_reader(path) as reader:
        frames = reader.read([0, 5, 11])
    assert frames.float().mean((1, 2, 3)).tolist() == pytest.approx([0, 100, 220], abs=12)


def test_prepare_and_verify_say_what_they_passed_over(tmp_path: Path) -> None:
    videos, output = tmp_path / "videos", tmp_path / "out"
    for name in ("A", "B"):
        (videos / name).mkdir(parents=True)
        for k in range(2):
            write(videos / name / f"{k}.mp4", "mp4", 4 + k)
    touch(videos, "A/notes.txt", "B/x.json", "A/._0.mp4")
    (videos / "B" / "loop").symlink_to(videos)
    done = prepare(parse_folder(videos), videos, output, num_workers=0, progress=False)
    assert sorted(record.path for record in done.manifest.records) == [
        *("A/0.mp4", "A/1.mp4", "B/0.mp4", "B/1.mp4")
    ]
    over = "files passed over, which are no videos by their suffix: 2 (1 .json, 1 .txt)"
    link = "links and second names left out, whose videos are there already: 1 (such as B/loop/)"
    assert f"  {over}\n  {link}\n" in summary(done)
    assert (
        '"passed_over": {\n    ".json": 1,\n    ".txt": 1\n  }'
        in (output / "prepare.json").read_text()
    )
    write(videos / "B" / "new.mp4", "mp4")
    found = verify(output, num_workers=0, progress=False)
    new = "videos that it does not list: 1 (such as B/new.mp4)"
    assert found.notes == (over, link, new)


def test_verify_leaves_the_reports_beside_the_clips_alone(tmp_path: Path) -> None:
    touch(tmp_path, "prepare.json", "clips/A/1.mp4")
    record = ClipRecord("clips/A/1.mp4", 0, "", 4, 25.0, 64, 48, ("train",))
    Manifest(tmp_path, ("A",), (record,)).write(tmp_path)
    assert verify(tmp_path, num_decoded=0, num_workers=0, progress=False).notes == ()


# --- images ---------------------------------------------------------------------------------------


def pictures(folder: Path, *names: str) -> Path:
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(photo(k, 8, 8)))
    return folder


def test_trees_of_images_keep_their_order(tmp_path: Path) -> None:
    """An index means what it meant, or old runs would go on with other images."""
    names = [
        "b/2.jpg",
        "a/z.jpg",
        "a/B/1.png",
        "a/b.c/1.jpg",
        "a/b/1.jpg",
        "a/b/c/0.jpg",
        "a.b/1.jpg",
    ]
    pictures(tmp_path, *names)
    labels = {"a": 0, "a.b": 1, "b": 2}
    expected = make_dataset(str(tmp_path), labels, IMAGE_SUFFIXES)
    source = open_tree(tmp_path, "")
    assert source.classes == ("a", "a.b", "b")
    found = [(source.name(k), int(source.labels[k])) for k in range(len(source))]
    assert found == sorted(expected, key=lambda item: item[1])


def test_trees_of_images_leave_out_what_is_none(tmp_path: Path) -> None:
    pictures(tmp_path, "a/1.jpg", "a/._1.jpg", "a/.cache/2.jpg", ".thumbs/3.jpg", "b/x.jfif")
    touch(tmp_path, "a/notes.txt", "a/4.svg")
    (tmp_path / "empty").mkdir()
    (tmp_path / "b" / "loop").symlink_to(tmp_path)
    (tmp_path / "b" / "again.jpg").symlink_to(tmp_path / "a" / "1.jpg")
    source = open_tree(tmp_path, "")
    assert source.classes == ("a", "b", "empty")
    assert [Path(source.name(k)).name for k in range(len(source))] == ["1.jpg", "x.jfif"]
    notes = (
        "files passed over, which are no images by their suffix: 2 (1 .svg, 1 .txt)",
        "links and second names left out, whose images are there already: 2 (such as b/again.jpg)",
        "classes without images: 1 (empty)",
    )
    assert source.notes == notes
    assert listing_notes(class_subset(source, ["a"])) == notes
    flat = open_flat(tmp_path, "")
    assert (len(flat), flat.notes) == (2, notes[:2])
    assert listing_notes(FileImages(tmp_path, ["a/1.jpg"], torch.tensor([0]), ["a"])) == ()
