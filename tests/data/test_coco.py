"""COCO's layout, on a JSON written by hand; what is broken names its entry."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from ndavid.data.coco import read_coco
from ndavid.errors import DataError

Content = dict[str, Any]

WHOLE: Content = {
    "info": {"year": 2017},
    # Ids with gaps, not in order, as COCO's.
    "categories": [
        {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
        {"id": 1, "name": "person", "supercategory": "person"},
    ],
    "images": [
        {"id": 7, "file_name": "000000000007.jpg", "width": 100, "height": 50},
        {"id": 3, "file_name": "000000000003.jpg", "width": 20, "height": 20},
    ],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 5, 20.5, 30], "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 100, 50], "iscrowd": 1},
        {"id": 3, "image_id": 7, "category_id": 1, "bbox": [90, 40, 30, 30], "iscrowd": 0},
        {"id": 4, "image_id": 7, "category_id": 1, "bbox": [5, 5, 0, 3], "iscrowd": 0},
    ],
}


def write(root: Path, content: Any) -> Path:
    path = root / "annotations" / "instances_val2017.json"
    path.parent.mkdir(parents=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_boxes_labels_and_crowds(tmp_path: Path) -> None:
    write(tmp_path, WHOLE)
    found = read_coco(tmp_path, "val2017")
    assert found.classes == ("person", "toothbrush")
    first, second = found.images
    assert (first.path, first.width, first.height) == ("val2017/000000000007.jpg", 100, 50)
    # The third box is cut at the image's edge, the fourth has no area.
    expected = [[10, 5, 30.5, 35], [0, 0, 100, 50], [90, 40, 100, 50]]
    assert first.boxes.tolist() == expected
    assert first.labels.tolist() == [1, 0, 0]
    assert first.crowd.tolist() == [False, True, False] and not first.difficult.any()
    assert found.num_empty_boxes == 1 and found.num_objects == 2
    assert found.num_cut_boxes == 1
    assert found.notes == (
        "val2017: annotated boxes cut at the edge of their image: 1",
        "val2017: annotated boxes left out, which have no area in their image: 1",
    )
    assert second.boxes.shape == (0, 4)


def test_training_sees_no_crowd_and_no_empty_image(tmp_path: Path) -> None:
    write(tmp_path, WHOLE)
    (image,) = read_coco(tmp_path, "val2017").with_objects().images
    assert image.boxes.tolist() == [[10, 5, 30.5, 35], [90, 40, 100, 50]]
    assert image.labels.tolist() == [1, 0]


def changed(kind: str, place: int, **values: Any) -> Content:
    content = copy.deepcopy(WHOLE)
    content[kind][place].update(values)
    return content


def without(kind: str, place: int, key: str) -> Content:
    content = copy.deepcopy(WHOLE)
    del content[kind][place][key]
    return content


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not an object"),
        ({**WHOLE, "images": None}, "has no list of images"),
        ({**WHOLE, "images": []}, "annotates the image 7, which it does not list"),
        ({**WHOLE, "images": [], "annotations": []}, "lists no image or no category"),
        ({**WHOLE, "annotations": [3]}, r"annotations\[0\] is no object"),
        (without("annotations", 1, "bbox"), r"annotations\[1\] has no 'bbox'"),
        (changed("images", 0, width="100"), r"images\[0\] has '100' for 'width'"),
        (changed("images", 0, width=0), "image 7 is 0x50 pixels"),
        (changed("images", 1, id=7), "an id is there twice among the images"),
        (changed("annotations", 0, category_id=2), "annotation 1 is of category 2"),
        (changed("annotations", 0, bbox=[1, 2, 3]), "annotation 1 has the box"),
        (changed("annotations", 0, bbox=[1, 2, 3, None]), "annotation 1 has the box"),
        (changed("annotations", 0, bbox=[1, 2, 3, float("nan")]), "annotation 1 has the box"),
    ],
)
def test_a_broken_file_names_its_entry(tmp_path: Path, content: Any, reason: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=reason) as caught:
        read_coco(tmp_path, "val2017")
    assert caught.value.path == str(path)


@pytest.mark.parametrize("name", ["../../x.jpg", "/etc/x.jpg", "a\x1b[2J.jpg", "a\n.jpg", ""])
def test_no_file_name_leaves_the_images_folder(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, changed("images", 0, file_name=name))
    with pytest.raises(DataError, match=r"image 7: (the|a) name ") as caught:
        read_coco(tmp_path, "val2017")
    assert caught.value.path == str(path) and str(caught.value).isprintable()


def test_no_category_commands_a_terminal(tmp_path: Path) -> None:
    write(tmp_path, changed("categories", 1, name="per\x1bson"))
    with pytest.raises(DataError, match="category 1: the class name"):
        read_coco(tmp_path, "val2017")


def test_a_missing_file_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"instances_train2017\.json: cannot read: No such file"):
        read_coco(tmp_path, "train2017")
