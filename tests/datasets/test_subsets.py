"""Lists of 101 classes of which six have clips: prepared, verified and measured as six."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch

from ndavid.data import preparation, verification
from ndavid.data.config import DataConfig
from ndavid.data.encode import write_video
from ndavid.data.manifest import read_manifest
from ndavid.data.workers import run_all
from ndavid.evaluation import knn
from ndavid.evaluation.knn import KnnConfig
from ndavid.evaluation.pretrained import ClassifierConfig
from ndavid.evaluation.views import ViewsConfig

HAVE = ("Archery", "BasketballDunk", "HorseRace", "PlayingPiano", "PlayingViolin", "Surfing")
QUIET = ("--quiet", "--workers", "1")


def classes() -> list[str]:
    return sorted([*HAVE, *(f"Absent{number:02d}" for number in range(95))])


def write_lists(folder: Path) -> Path:
    """UCF101's three folds: four groups of each of the 101 classes, g01 and g02 tested in turn."""
    folder.mkdir(parents=True)
    numbered = list(enumerate(classes(), start=1))
    (folder / "classInd.txt").write_text("".join(f"{k} {name}\n" for k, name in numbered))
    for fold in (1, 2, 3):
        sides: dict[str, list[str]] = {"train": [], "test": []}
        for number, name in numbered:
            for group in (1, 2, 3, 4):
                clip = f"{name}/v_{name}_g{group:02d}_c01.avi"
                if group == fold:
                    sides["test"].append(clip)
                else:
                    sides["train"].append(f"{clip} {number}")
        for side, lines in sides.items():
            (folder / f"{side}list{fold:02d}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lists` of 101 classes, and `videos` of six of them, a colour each."""
    root = tmp_path_factory.mktemp("six_of_101")
    write_lists(root / "lists")
    generator = torch.Generator().manual_seed(0)
    for label, name in enumerate(HAVE):
        for group in (1, 2, 3, 4):
            frames = torch.randint(0, 60, (10, 3, 32, 32), generator=generator, dtype=torch.uint8)
            frames[:, label % 3] += 60 + 60 * (label // 3)
            write_video(root / "videos" / name / f"v_{name}_g{group:02d}_c01.mp4", frames)
    return root


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at in this process: a new one takes seconds, and no decoder crashes here."""
    for room in (preparation, verification):
        monkeypatch.setattr(room, "run_all", lambda function, items, _: run_all(function, items, 0))


def words(home: Path, output: Path, *more: str | Path) -> tuple[str | Path, ...]:
    places = ("--videos", home / "videos", "--annotations", home / "lists", "--output", output)
    return ("ucf101", *places, *QUIET, *more)


def measured(manifest: Path, output: Path):
    config = KnnConfig(
        data=DataConfig(root=str(manifest)),
        output=str(output),
        model=ClassifierConfig(encoder="resnet2d3d10_half", head="pool"),
        views=ViewsConfig(num_frames=4, frame_stride=1, size=32, clips=1, crops=1, num_workers=0),
        ks=[1],
    )
    return knn.run(config)


@pytest.mark.usefixtures("in_process")
def test_six_of_101_classes_end_to_end(call, home: Path, tmp_path: Path):
    output = tmp_path / "six"
    prepared = call("prepare", *words(home, output, "--present-only"))
    assert prepared.code == 0 and prepared.stderr == ""
    assert prepared.stdout.startswith("24 clips of 6 classes -> ")
    assert "95 of 101 classes have no clip (Absent00, " in prepared.stdout.splitlines()[2]
    assert "listed but missing: 0\n" in prepared.stdout
    manifest = read_manifest(output)
    assert manifest.classes == HAVE
    for record in manifest.records:
        assert HAVE[record.label] == record.path.split("/")[0]
    checked = call("verify", output, *QUIET)
    assert checked.code == 0 and checked.stdout.endswith("sound\n")
    assert "warning" not in checked.stdout and "error" not in checked.stdout
    result = measured(output, tmp_path / "knn")
    assert result.metrics["top1_k1"].n == 6
    assert result.chance == pytest.approx(1 / 6)
    confusion = result.details["confusion"]
    assert len(confusion) == 6 and sum(map(sum, confusion)) == 6


@pytest.mark.usefixtures("in_process")
def test_without_the_option_it_is_said_and_the_way_on(call, home: Path, tmp_path: Path):
    output = tmp_path / "all"
    prepared = call("prepare", *words(home, output))
    assert prepared.code == 0 and prepared.stdout.startswith("24 clips of 101 classes -> ")
    note = prepared.stdout.splitlines()[2]
    assert "95 of 101 classes have no clip (Absent00, " in note and "--present-only" in note
    assert "listed but missing: 380 " in prepared.stdout
    assert len(read_manifest(output).classes) == 101
    checked = call("verify", output, *QUIET)
    assert checked.code == 0
    assert len(checked.stdout.splitlines()) == 3, "one line on what is not there, not 570"
    assert "warning: 95 of 101 classes have no clip (Absent00, " in checked.stdout
    assert "--present-only" in checked.stdout
    # Prepared again with the option, nothing is decoded twice.
    again = call("prepare", *words(home, output, "--present-only"))
    assert "24 were done before" in again.stdout and read_manifest(output).classes == HAVE


@pytest.mark.usefixtures("in_process")
def test_named_classes_alone(call, home: Path, tmp_path: Path):
    output = tmp_path / "three"
    lost = tmp_path / "videos"
    shutil.copytree(home / "videos", lost)
    (lost / "Surfing" / "v_Surfing_g03_c01.mp4").unlink()
    (lost / "Archery" / "v_Archery_g03_c01.mp4").unlink()
    call_words = ["--classes", "Surfing", "HorseRace", "Absent07"]
    places = ("--videos", lost, "--annotations", home / "lists", "--output", output)
    done = call("prepare", "ucf101", *places, *QUIET, *call_words)
    assert done.code == 0, done.stderr
    assert done.stdout.startswith("7 clips of 3 classes -> ")
    assert "1 of 3 classes has no clip (Absent07); --present-only" in done.stdout
    manifest = read_manifest(output)
    assert manifest.classes == ("Absent07", "HorseRace", "Surfing"), "in the order of the lists"
    with (output / "missing_files.csv").open() as stream:
        missing = {Path(clip).stem for (clip,) in list(csv.reader(stream))[1:]}
    # Of the classes that were left out nothing is missing, and nothing there is unlisted.
    assert missing == {"v_Surfing_g03_c01", *(f"v_Absent07_g{g:02d}_c01" for g in (1, 2, 3, 4))}
    assert "there but not listed: 0" in done.stdout
    done = call("prepare", "ucf101", *places, *QUIET, *call_words, "--present-only")
    assert done.stdout.startswith("7 clips of 2 classes -> ")
    assert read_manifest(output).classes == ("HorseRace", "Surfing")
    assert "listed but missing: 1 " in done.stdout
    wrong = call("prepare", "ucf101", *places, *QUIET, "--classes", "Surfin")
    assert wrong.code == 2 and "no class 'Surfin'; did you mean 'Surfing'?" in wrong.stderr


@pytest.mark.usefixtures("in_process")
def test_classes_of_a_folder_and_of_kinetics(call, home: Path, tmp_path: Path):
    output = tmp_path / "out"
    one = ("--videos", home / "videos", "--output", output, *QUIET)
    done = call("prepare", "folder", *one, "--classes", "Archery", "Surfing")
    assert done.code == 0 and done.stdout.startswith("8 clips of 2 classes -> ")
    assert "there but not listed: 0" in done.stdout
    lists, videos = tmp_path / "k400", tmp_path / "clips"
    videos.mkdir()
    lists.mkdir()
    clip = next((home / "videos").glob("*/*.mp4"))
    rows = ["label,youtube_id,time_start,time_end,split"]
    for number in range(20):
        rows.append(f"class {number:02d},id{number},1,11,train")
        if number < 2:
            shutil.copy(clip, videos / f"id{number}_000001_000011.mp4")
    (lists / "train.csv").write_text("\n".join(rows) + "\n")
    (lists / "test.csv").write_text("youtube_id,time_start,time_end,split\nzz,1,11,test\n")
    shutil.copy(clip, videos / "zz_000001_000011.mp4")
    places = ("--videos", videos, "--annotations", lists, "--output", tmp_path / "k")
    done = call("prepare", "kinetics", *places, *QUIET, "--present-only")
    assert done.code == 0 and "18 of 20 classes have no clip" in done.stdout
    manifest = read_manifest(tmp_path / "k")
    assert manifest.classes == ("class 00", "class 01")
    assert sorted(record.label for record in manifest.records) == [-1, 0, 1]
    done = call("prepare", "kinetics", *places, *QUIET, "--classes", "class 01")
    assert [record.label for record in read_manifest(tmp_path / "k").records] == [0]
    assert "there but not listed: 0" in done.stdout


@pytest.mark.slow
def test_six_real_classes_in_lists_of_101(call, shared_data: Path, tmp_path: Path):
    lists = tmp_path / "lists"
    lists.mkdir()
    source = shared_data / "ucf101_6class"
    for path in source.glob("*list0*.txt"):
        shutil.copy(path, lists)
    known = (source / "classInd.txt").read_text().splitlines()
    added = [f"{number} Absent{number}" for number in range(7, 102)]
    (lists / "classInd.txt").write_text("\n".join([*known, *added]) + "\n")
    for fold in (1, 2, 3):
        for side in ("train", "test"):
            with (lists / f"{side}list{fold:02d}.txt").open("a") as stream:
                for number in range(7, 102):
                    clip = f"Absent{number}/v_Absent{number}_g0{1 + (side == 'test')}_c01.avi"
                    stream.write(clip + (f" {number}\n" if side == "train" else "\n"))
    places = ("--videos", source, "--annotations", lists, "--output", tmp_path / "out")
    done = call("prepare", "ucf101", *places, "--quiet", "--present-only")
    assert done.code == 0 and done.stdout.startswith("731 clips of 6 classes -> ")
    assert "95 of 101 classes have no clip" in done.stdout
    checked = call("verify", tmp_path / "out", "--quiet")
    assert checked.code == 0 and checked.stdout.endswith("sound\n")
    result = measured(tmp_path / "out", tmp_path / "knn")
    assert result.metrics["top1_k1"].n == 202 and result.chance == pytest.approx(1 / 6)
