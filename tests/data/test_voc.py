"""VOC's layout, on annotations written by hand; what is broken names its file and the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndavid.data.detection import join
from ndavid.data.voc import VOC_CLASSES, read_voc
from ndavid.errors import DataError

# As the development kit writes them: more tags than anybody reads, a part with a box of its own.
WHOLE = """<annotation>
  <folder>VOC2007</folder><filename>000012.jpg</filename>
  <source><database>The VOC2007 Database</database></source>
  <size><width>500</width><height>333</height><depth>3</depth></size>
  <segmented>0</segmented>
  <object>
    <name>person</name><pose>Rear</pose><truncated>0</truncated><difficult>0</difficult>
    <bndbox><xmin>1</xmin><ymin>1</ymin><xmax>500</xmax><ymax>333</ymax></bndbox>
    <part><name>head</name>
      <bndbox><xmin>9</xmin><ymin>9</ymin><xmax>20</xmax><ymax>20</ymax></bndbox></part>
  </object>
  <object>
    <name>car</name><truncated>1</truncated><difficult>1</difficult>
    <bndbox><xmax>351</xmax><ymin>97</ymin><xmin>156.70001</xmin><ymax>270</ymax></bndbox>
  </object>
</annotation>
"""


def write_set(root: Path, annotations: dict[str, str | bytes], listed: str | None = None) -> None:
    """A year's folder in which only the annotations and the list are real."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name, content in annotations.items():
        data = content if isinstance(content, bytes) else content.encode()
        (root / "Annotations" / f"{name}.xml").write_bytes(data)
    lines = "".join(f"{name}\n" for name in annotations) if listed is None else listed
    (root / "ImageSets" / "Main" / "trainval.txt").write_text(lines)


def test_boxes_labels_and_difficult(tmp_path: Path) -> None:
    write_set(tmp_path / "VOC2007", {"000012": WHOLE})
    found = read_voc(tmp_path, "VOC2007/trainval")
    assert found.name == "VOC2007/trainval" and found.classes == VOC_CLASSES
    assert len(VOC_CLASSES) == 20
    (image,) = found.images
    assert image.path == "VOC2007/JPEGImages/000012.jpg"
    assert (image.width, image.height) == (500, 333)
    # The whole image: pixels 1 to 500 are the continuous range 0 to 500.
    assert image.boxes[0].tolist() == [0, 0, 500, 333]
    assert image.boxes[1].tolist() == pytest.approx([155.70001, 96, 351, 270])
    assert [found.classes[label] for label in image.labels] == ["person", "car"]
    assert image.difficult.tolist() == [False, True] and not image.crowd.any()
    assert image.counted.tolist() == [True, False] and found.num_objects == 1


def test_a_root_that_is_the_set_and_its_own_classes(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": WHOLE.replace("person", "cat").replace("car", "dog")})
    (tmp_path / "classes.txt").write_text("dog\ncat\n\n")
    found = read_voc(tmp_path, "trainval")
    assert found.classes == ("dog", "cat")
    assert found.images[0].path == "JPEGImages/a.jpg"
    assert found.images[0].labels.tolist() == [1, 0]


def test_an_object_without_difficult_is_not_difficult(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": WHOLE.replace("<difficult>1</difficult>", "")})
    assert not read_voc(tmp_path, "trainval").images[0].difficult.any()


def test_an_image_without_objects(tmp_path: Path) -> None:
    empty = WHOLE[: WHOLE.index("<object>")] + "</annotation>"
    write_set(tmp_path, {"a": empty, "b": WHOLE})
    found = read_voc(tmp_path, "trainval")
    assert found.images[0].boxes.shape == (0, 4)
    assert [image.path for image in found.with_objects().images] == ["JPEGImages/b.jpg"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("</annotation>", "", "not XML"),
        ("<name>car</name>", "<name>dragon</name>", "object 2 is a 'dragon'"),
        ("<name>car</name>", "", "object 2 has no <name>"),
        ("<name>car</name>", "<name/>", "object 2 is a ''"),
        ("<xmin>156.70001</xmin>", "", "object 2 has no <xmin>"),
        ("<xmin>156.70001</xmin>", "<xmin>left</xmin>", "object 2 has 'left' for <xmin>"),
        ("<xmin>156.70001</xmin>", "<xmin>nan</xmin>", "object 2 has 'nan' for <xmin>"),
        ("<xmin>1</xmin>", "<xmin>1e9</xmin>", "object 1 has '1e9' for <xmin>"),
        ("<xmin>1</xmin>", "<xmin>-1e9</xmin>", "object 1 has '-1e9' for <xmin>"),
        ("<width>500</width>", "<width>-5</width>", "the image has '-5' for <width>"),
        ("<width>500</width>", "", "the image has no <width>"),
        ("<width>500</width>", "<width>wide</width>", "the image has 'wide' for <width>"),
        ("<difficult>1</difficult>", "<difficult>very</difficult>", "'very' for <difficult>"),
    ],
)
def test_a_broken_annotation_names_its_file_and_the_reason(
    tmp_path: Path, old: str, new: str, reason: str
) -> None:
    assert WHOLE.count(old) == 1
    write_set(tmp_path, {"good": WHOLE, "bad": WHOLE.replace(old, new)})
    with pytest.raises(DataError, match=reason) as caught:
        read_voc(tmp_path, "trainval")
    assert caught.value.path == str(tmp_path / "Annotations" / "bad.xml")


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a\x1b[2J", "a/../../x"])
def test_no_name_of_a_list_leaves_the_folder(tmp_path: Path, name: str) -> None:
    write_set(tmp_path, {"good": WHOLE}, listed=f"good\n{name}\n")
    with pytest.raises(DataError, match=r"trainval\.txt: line 2: the name ") as caught:
        read_voc(tmp_path, "trainval")
    assert str(caught.value).isprintable()


def test_no_class_commands_a_terminal(tmp_path: Path) -> None:
    write_set(tmp_path, {"a": WHOLE})
    (tmp_path / "classes.txt").write_text("person\nc\x1bar\n")
    with pytest.raises(DataError, match=r"classes\.txt: the class name"):
        read_voc(tmp_path, "trainval")


BOMB = """<?xml version="1.0"{encoding}?>
<!DOCTYPE lolz [<!ENTITY a "car"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
<annotation><object><name>&b;</name></object></annotation>
"""
OUTSIDE = '<!DOCTYPE annotation [<!ENTITY x SYSTEM "classes.txt">]>' + WHOLE.replace("car", "&x;")


@pytest.mark.parametrize(
    "content",
    [
        BOMB.format(encoding="").encode(),
        # In an encoding in which no search for "<!DOCTYPE" in the bytes would find it.
        BOMB.format(encoding=' encoding="UTF-16"').encode("utf-16"),
        OUTSIDE.encode(),
    ],
    ids=["entities", "utf-16", "external"],
)
def test_a_document_type_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "classes.txt").write_text("car\nperson\n")
    write_set(tmp_path, {"bad": content})
    with pytest.raises(DataError, match="declares a document type") as caught:
        read_voc(tmp_path, "trainval")
    assert caught.value.path.endswith("bad.xml")


@pytest.mark.parametrize(
    ("listed", "reason"),
    [
        ("", "names no image"),
        ("a\na\n", "names an image twice"),
        ("a  1\n", "line 1 holds more than an image's name"),
        ("b\n", "cannot read: No such file"),
    ],
)
def test_a_broken_list(tmp_path: Path, listed: str, reason: str) -> None:
    write_set(tmp_path, {"a": WHOLE}, listed)
    with pytest.raises(DataError, match=reason):
        read_voc(tmp_path, "trainval")


def test_a_missing_list_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read: No such file") as caught:
        read_voc(tmp_path, "VOC2012/trainval")
    expected = tmp_path / "VOC2012" / "ImageSets" / "Main" / "trainval.txt"
    assert caught.value.path == str(expected)


@pytest.mark.parametrize("names", ["", "car\ncar\n"])
def test_classes_are_there_once_each(tmp_path: Path, names: str) -> None:
    write_set(tmp_path, {"a": WHOLE})
    (tmp_path / "classes.txt").write_text(names)
    with pytest.raises(DataError, match="each class once"):
        read_voc(tmp_path, "trainval")


@pytest.mark.parametrize(
    ("old", "new", "boxes", "cut", "empty"),
    [
        # Counted from 0, one beyond the last row, and far out on two sides.
        ("<xmin>1</xmin>", "<xmin>0</xmin>", 2, 1, 0),
        ("<ymax>333</ymax>", "<ymax>334</ymax>", 2, 1, 0),
        ("<xmin>1</xmin><ymin>1</ymin>", "<xmin>-40</xmin><ymin>-7.5</ymin>", 2, 1, 0),
        ("<ymax>333</ymax>", "<ymax>333.05</ymax>", 2, 0, 0),
        # Corners that are the wrong way round, and a box beside its image.
        ("<xmin>156.70001</xmin>", "<xmin>353</xmin>", 1, 0, 1),
        (
            "<xmin>1</xmin><ymin>1</ymin><xmax>500",
            "<xmin>501</xmin><ymin>1</ymin><xmax>600",
            1,
            0,
            1,
        ),
    ],
)
def test_boxes_over_the_edge_are_cut_and_counted(
    tmp_path: Path, old: str, new: str, boxes: int, cut: int, empty: int
) -> None:
    assert WHOLE.count(old) == 1
    write_set(tmp_path, {"a": WHOLE, "b": WHOLE.replace(old, new)})
    found = read_voc(tmp_path, "trainval")
    assert [len(image.boxes) for image in found.images] == [2, boxes]
    assert (found.num_cut_boxes, found.num_empty_boxes) == (cut, empty)
    assert len(found.notes) == bool(cut) + bool(empty)
    if boxes == 2:
        assert found.images[1].boxes[0].tolist() == [0, 0, 500, 333]
    assert found.with_objects().notes == join([found]).notes == found.notes


def test_images_of_other_suffixes(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d", "e.v2", "sub/f"]
    (tmp_path / "Annotations" / "sub").mkdir(parents=True)
    write_set(tmp_path, dict.fromkeys(names, WHOLE))
    (tmp_path / "JPEGImages" / "sub").mkdir(parents=True)
    for name in ("a.png", "b.JPG", "c.jpg", "c.png", "._d.png", "d.txt", "e.v2.bmp", "sub/f.webp"):
        (tmp_path / "JPEGImages" / name).touch()
    found = [image.path for image in read_voc(tmp_path, "trainval").images]
    # What is not there is called .jpg, and missed when it is read.
    expected = ["a.png", "b.JPG", "c.jpg", "d.jpg", "e.v2.bmp", "sub/f.webp"]
    assert found == [f"JPEGImages/{name}" for name in expected]
