"""Text files may begin with a byte order mark, as editors on Windows write them."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from image_files import encoded, photo

from ndavid.config import parse
from ndavid.data.annotations import parse_hmdb51, parse_kinetics, parse_ucf101
from ndavid.data.coco import read_coco
from ndavid.data.image_folders import open_tree
from ndavid.data.manifest import read_manifest
from ndavid.data.voc import read_voc

ROOT = Path(__file__).resolve().parent.parent
MARK = b"\xef\xbb\xbf"

# Files that no user writes: the kernel's, and what lies in the package.
OURS = {
    ("ndavid/models/cpu_convolutions.py", "Path('/proc/cpuinfo')"),
    ("ndavid/engine/environment.py", "cpuinfo"),
    ("ndavid/evaluation/report.py", "resources.files('ndavid.evaluation')"),
}
OTHER_OPENERS = {"os", "av", "tarfile", "zipfile", "Image"}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MARK + text.encode())


def word(call: ast.Call, name: str, place: int) -> str:
    """A constant argument by name or place, "" for none."""
    given = [k.value for k in call.keywords if k.arg == name] or call.args[place : place + 1]
    value = given[0] if given else None
    return str(value.value) if isinstance(value, ast.Constant) else ""


def reads_without_mark(source: str, file: str = "") -> list[str]:
    """Calls that read text and would keep a mark as the first letter."""
    found = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        owner = call.func.value if isinstance(call.func, ast.Attribute) else None
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
        written = ast.unparse(owner) if owner is not None else ""
        if name == "read_text" and not any(
            file == place and written.startswith(start) for place, start in OURS
        ):
            encoding = word(call, "encoding", 0)
        elif name in ("open", "fdopen") and written not in OTHER_OPENERS - {"os"}:
            if name == "open" and written == "os":
                continue
            mode = word(call, "mode", 0 if owner is not None and name == "open" else 1)
            mode = mode or "r"
            if "b" in mode or set(mode) & set("wxa"):
                continue
            text = any(k.arg in ("encoding", "newline") for k in call.keywords)
            if not text and owner is not None:
                continue  # of an archive, not of a path
            encoding = word(call, "encoding", 3)
        else:
            continue
        if encoding != "utf-8-sig":
            found.append(ast.unparse(call))
    return found


def test_every_reader_of_text_drops_the_mark() -> None:
    found = {
        path.relative_to(ROOT).as_posix(): calls
        for folder in ("ndavid", "datasets", "eval", "recipes")
        for path in (ROOT / folder).rglob("*.py")
        if (calls := reads_without_mark(path.read_text(), path.relative_to(ROOT).as_posix()))
    }
    assert found == {}


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text()",
        "path.read_text('utf-8')",
        "path.read_text(encoding='utf-8')",
        "open(path)",
        "open(path, encoding='utf-8')",
        "path.open(encoding='utf-8', newline='')",
        "path.open('r', encoding='utf-8')",
    ],
)
def test_the_check_sees_plain_readers(source: str) -> None:
    assert reads_without_mark(source)


@pytest.mark.parametrize(
    "source",
    [
        "path.read_text(encoding='utf-8-sig')",
        "open(path, encoding='utf-8-sig')",
        "open(path, 'rb')",
        "path.open('w', encoding='utf-8')",
        "os.open(path, os.O_RDONLY)",
        "archive.open(member)",
    ],
)
def test_the_check_passes_others(source: str) -> None:
    assert not reads_without_mark(source)


@dataclass
class Config:
    """A config."""

    name: str = ""
    numbers: list[int] = field(default_factory=list)


def test_configs(tmp_path: Path) -> None:
    write(tmp_path / "c.yaml", "name: a\nnumbers: [1]\n")
    found = parse(Config, ["--config", str(tmp_path / "c.yaml")])
    assert found == Config("a", [1])


def test_manifests_and_classes(tmp_path: Path) -> None:
    header = "path,label,class,group,frames,fps,width,height,decord_ok,split_1\n"
    row = "a/x.mp4,0,a,,4,25.0,64,48,,train\n"
    write(tmp_path / "manifest.csv", header + row)
    write(tmp_path / "classes.txt", "a\nb\n")
    assert read_manifest(tmp_path).classes == ("a", "b")
    write(tmp_path / "manifest.csv", "# root: videos\n" + header + row)
    assert read_manifest(tmp_path).root == tmp_path / "videos"


def test_official_lists(tmp_path: Path) -> None:
    ucf = tmp_path / "ucf"
    write(ucf / "classInd.txt", "1 A\n")
    write(ucf / "trainlist01.txt", "A/v_A_g01_c01.avi 1\n")
    write(ucf / "testlist01.txt", "A/v_A_g02_c01.avi\n")
    assert parse_ucf101(ucf).paths == ("A/v_A_g01_c01.avi", "A/v_A_g02_c01.avi")
    write(tmp_path / "hmdb" / "wave_test_split1.txt", "a.avi 1\n")
    assert parse_hmdb51(tmp_path / "hmdb").paths == ("wave/a.avi",)
    header = "label,youtube_id,time_start,time_end,split\n"
    write(tmp_path / "kinetics" / "train.csv", f"{header}a,abc,1,2,train\n")
    assert parse_kinetics(tmp_path / "kinetics").classes == ("a",)


def test_lists_of_classes(tmp_path: Path) -> None:
    for name in ("n01", "n02"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        (tmp_path / "tree" / name / "1.jpg").write_bytes(encoded(photo(0, 8, 8)))
    write(tmp_path / "list.txt", "n02 dog\n")
    assert open_tree(tmp_path / "tree", "", str(tmp_path / "list.txt")).classes == ("n02",)


def test_detection_sets(tmp_path: Path) -> None:
    size = "<size><width>9</width><height>9</height></size>"
    write(tmp_path / "Annotations" / "1.xml", f"<annotation>{size}</annotation>")
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "1\n")
    write(tmp_path / "classes.txt", "dog\n")
    found = read_voc(tmp_path, "train")
    assert found.classes == ("dog",) and found.images[0].path == "JPEGImages/1.jpg"
    coco = {
        "categories": [{"id": 1, "name": "dog"}],
        "images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}],
        "annotations": [],
    }
    write(tmp_path / "annotations" / "instances_train.json", json.dumps(coco))
    assert read_coco(tmp_path, "train").classes == ("dog",)
