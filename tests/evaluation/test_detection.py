"""Detection transfer from end to end on generated shapes: real files, a real run, a real kill."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from ndavid.checkpoint_files import MODEL_FILE
from ndavid.config import from_yaml, to_yaml
from ndavid.data.detection import DetectionDataset
from ndavid.data.detection_sets import DetectionDataConfig
from ndavid.data.detection_transforms import DetectionTransform
from ndavid.data.shapes import write_shapes
from ndavid.data.voc import read_voc
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import seeded
from ndavid.engine.run_config import RunConfig
from ndavid.errors import CheckpointError, ConfigError, DataError, TrainingError
from ndavid.evaluation import detection_inference
from ndavid.evaluation.detection import RUN_FOLDER, DetectionConfig, parameter_groups, run
from ndavid.evaluation.detection_encoder import BackboneConfig
from ndavid.evaluation.detection_inference import detect_all
from ndavid.evaluation.protocol import load_result
from ndavid.methods.detection import DetectionMethod
from ndavid.models.detector import DetectorConfig, build_detector
from ndavid.models.encoders.build import build_encoder
from ndavid.models.weights.release import load_encoder, save_pretrained

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "eval" / "detection.py"


def _processes() -> ModuleType:
    path = ROOT / "tests" / "processes.py"
    spec = importlib.util.spec_from_file_location("detection_processes", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["detection_processes"] = module
    spec.loader.exec_module(module)
    return module


processes = _processes()


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), num_images=32, size=48)


def config(shapes: Path, output: Path, **changes: Any) -> DetectionConfig:
    """A run of six steps: whether it learns is not the question."""
    values = {
        "output": str(output),
        "data": DetectionDataConfig(root=str(shapes), train=["trainval"], test=["test"]),
        "model": BackboneConfig(encoder="cifar:resnet20"),
        "detector": DetectorConfig(
            layout="single",
            head_norm=False,
            anchor_sizes=[12, 24],
            head_width=16,
            proposals=20,
            regions=8,
            score_threshold=0.0,
        ),
        "train_sizes": [40, 48],
        "test_size": 64,
        "max_size": 80,
        "steps": 6,
        "milestones": [3, 5],
        "test_batch_size": 3,
        "bootstrap": 20,
        "optim": OptimConfig(name="sgd", lr=0.01, warmup_steps=1),
        "run": RunConfig(batch_size=4, device="cpu", num_workers=0, log_every=1),
    }
    return DetectionConfig(**(values | changes))


@pytest.fixture(scope="module")
def finished(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a whole evaluation from a saved encoder."""
    folder = tmp_path_factory.mktemp("finished")
    with seeded(5, "pretrained"):
        save_pretrained(build_encoder("cifar:resnet20"), folder / "encoder")
    changed = {"checkpoint": str(folder / "encoder"), "model": BackboneConfig()}
    run(config(shapes, folder / "out", **changed))
    return folder / "out"


def test_the_result_has_numbers_counts_and_protocol(finished: Path, shapes: Path) -> None:
    result = load_result(finished / "result.json")
    assert result.task == "detection"
    names = [f"{ap}{kind}" for kind in ("", "_voc07") for ap in ("AP", "AP50", "AP75")]
    assert list(result.metrics) == names
    for metric in result.metrics.values():
        assert metric.n == 8 and 0 <= metric.low <= metric.value <= metric.high <= 1
    test = read_voc(shapes, "test")
    assert result.protocol.num_images == result.details["images"] == 8
    assert result.protocol.split == "test" and result.protocol.num_classes == 4
    assert result.details["boxes"] == test.num_objects
    assert result.details["data_digest"] == test.digest
    assert [row["class"] for row in result.details["ap_by_class"]] == list(test.classes)
    assert any("11 recalls" in note for note in result.protocol.notes)
    training = result.details["training"]
    assert (training["steps"], training["images"], training["bad_images"]) == (6, 24, 0)
    assert training["last_metrics"].keys() >= {"loss", "loss_box_reg", "loss_objectness"}
    assert result.config["detector"]["layout"] == "single"


def test_the_encoder_is_provably_the_checkpoints(finished: Path) -> None:
    result = load_result(finished / "result.json")
    weights = Path(result.checkpoint["path"])
    assert weights == finished.parent / "encoder" / MODEL_FILE
    report = result.details["key_report"]
    assert report["fraction"] == 1.0 and not report["missing"] and len(report["matched"]) > 90
    assert Path(result.tested["path"]).parent.name == "step_6"


def test_a_trained_detector_gives_its_encoder_back(finished: Path) -> None:
    trained = load_encoder(finished / RUN_FOLDER)
    started = load_encoder(finished.parent / "encoder")
    assert trained.name == started.name == "cifar:resnet20"
    before, after = started.state_dict(), trained.state_dict()
    assert before.keys() == after.keys()
    assert not torch.equal(before["conv1.weight"], after["conv1.weight"])


def test_the_report_shows_images_and_curves(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "Detections" in page and "data:image/jpeg;base64," in page
    assert "Training curves" in page and "short side 64" in page


def test_the_schedule_counts_steps(finished: Path) -> None:
    lines = (finished / "training" / "metrics.jsonl").read_text().splitlines()
    rates = [json.loads(line)["lr"] for line in lines]
    # Warm-up in step 1; milestones after steps 3 and 5, of which 6 make an epoch.
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.001, 0.001, 0.0001])


def test_a_finished_training_is_only_tested_again(finished: Path, shapes: Path) -> None:
    encoder = {"checkpoint": str(finished.parent / "encoder"), "model": BackboneConfig()}
    weights = finished / RUN_FOLDER / "checkpoints" / "step_6" / MODEL_FILE
    stamp = weights.stat().st_mtime_ns
    before = load_result(finished / "result.json")
    again = run(config(shapes, finished, bootstrap=10, **encoder))
    assert weights.stat().st_mtime_ns == stamp
    values = [{k: m.value for k, m in one.metrics.items()} for one in (before, again)]
    assert values[0] == values[1] and values[0]["AP50"] > 0
    larger = dataclasses.replace(config(shapes, finished).detector, head_width=32)
    other = config(shapes, finished, detector=larger, **encoder)
    with pytest.raises(ConfigError, match="detector"):
        run(other)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many threads as the processes of `processes.start` have: sums depend on them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_training_goes_on_to_the_bit(shapes: Path, tmp_path: Path) -> None:
    saved = RunConfig(batch_size=4, device="cpu", num_workers=0, log_every=1, save_every_steps=3)
    whole = config(shapes, tmp_path / "whole", steps=14, run=saved)
    run(whole)
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(whole))
    output = tmp_path / "cut"
    arguments, folder = [f"--config={path}", f"--output={output}"], output / RUN_FOLDER
    processes.kill_at(processes.start(SCRIPT, arguments, folder), 5)
    assert not (output / "result.json").exists()
    processes.run(SCRIPT, arguments, folder)
    processes.assert_same_run(folder, tmp_path / "whole" / RUN_FOLDER)
    results = [load_result(place / "result.json") for place in (output, tmp_path / "whole")]
    assert results[0].metrics == results[1].metrics


def test_what_was_not_trained_on_or_sought_stands_before_the_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = write_shapes(tmp_path / "shapes", num_images=32, size=48)
    parts = [read_voc(root, part) for part in ("trainval", "test")]
    (root / parts[0].images[2].path).write_bytes(b"no image")
    # One class is only trained on, another only sought.
    learnt, sought = parts[0].classes[:2]
    for part, name in zip(parts, (sought, learnt), strict=True):
        for image in part.images:
            path = root / "Annotations" / f"{Path(image.path).stem}.xml"
            tree = ElementTree.parse(path)
            for thing in tree.getroot().findall("object"):
                if thing.findtext("name") == name:
                    tree.getroot().remove(thing)
            tree.write(path)
    allowed = RunConfig(
        batch_size=4, device="cpu", num_workers=0, log_every=1, max_bad_fraction=0.1
    )
    result = run(config(root, tmp_path / "out", run=allowed))
    assert result.details["training"]["bad_images"] == 1
    assert result.protocol.warnings == [
        "1 training images could not be read; others stood in for them.",
        f"1 of 4 classes have no training boxes, and are never found: {sought}.",
        f"1 of 4 classes have no test boxes, and are no part of AP: {learnt}.",
    ]
    lines = capsys.readouterr().out.splitlines()
    first = [f"warning: {warning}" for warning in result.protocol.warnings]
    place = lines.index(first[0])
    assert lines[place : place + 3] == first and lines[place + 3].startswith("AP ")
    with pytest.raises(TrainingError, match="max_bad_fraction"):
        run(config(root, tmp_path / "strict"))


def test_a_test_image_that_cannot_be_read_is_an_error(tmp_path: Path, shapes: Path) -> None:
    root = write_shapes(tmp_path / "shapes", num_images=8, size=48)
    images = read_voc(root, "test")
    (root / images.images[1].path).unlink()
    dataset = DetectionDataset(images, DetectionTransform([48], 48, 80))
    with pytest.raises(DataError, match="no such file"):
        detect_all(DetectionMethod(Everywhere()), dataset, device=torch.device("cpu"))


class Everywhere(nn.Module):
    """Finds the whole image and a box in its middle, in pixels of what it is shown."""

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            height, width = image.shape[1:]
            whole = torch.tensor([0.0, 0, width, height])
            middle = torch.tensor([width / 4, height / 4, width / 2, height / 2])
            labels, scores = torch.tensor([1, 2]), torch.tensor([0.9, 0.4])
            found.append(
                {"boxes": torch.stack([whole, middle]), "scores": scores, "labels": labels}
            )
        return found


@pytest.mark.parametrize("batch_size", [1, 3])
def test_boxes_come_back_in_original_pixels(tmp_path: Path, batch_size: int) -> None:
    root = write_shapes(tmp_path, num_images=8, size=64)
    images = read_voc(root, "trainval")
    # One of another shape, so that it is resized by another factor than its neighbours.
    path = root / images.images[1].path
    Image.open(path).resize((120, 64)).save(path)
    wide = dataclasses.replace(images.images[1], width=120)
    images = dataclasses.replace(images, images=(images.images[0], wide, *images.images[2:]))
    dataset = DetectionDataset(images, DetectionTransform([32], 48, 70))
    method = DetectionMethod(Everywhere()).train()
    results = detect_all(method, dataset, device=torch.device("cpu"), batch_size=batch_size)
    assert method.training and len(results) == 6
    for image, one in zip(images.images, results, strict=True):
        w, h = image.width, image.height
        expected = [[0, 0, w, h], [w / 4, h / 4, w / 2, h / 2]]
        assert torch.allclose(one.found_boxes, torch.tensor(expected, dtype=torch.float32))
        assert one.found_labels.tolist() == [0, 1]
        assert torch.equal(one.boxes, image.boxes)


def test_ranks_share_the_images(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = DetectionDataset(read_voc(shapes, "trainval"), DetectionTransform([48], 48, 80))
    method, device = DetectionMethod(Everywhere()), torch.device("cpu")
    alone = detect_all(method, dataset, device=device)
    shares: list[dict[int, Any]] = []
    monkeypatch.setattr(detection_inference, "world_size", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(detection_inference, "rank", lambda rank=rank: rank)
        shares.append(detection_inference._detect_mine(method, dataset, device, 4, 0))
    assert sorted(index for share in shares for index in share) == list(range(24))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    monkeypatch.setattr(detection_inference, "gather_objects", lambda mine: shares)
    monkeypatch.setattr(detection_inference, "together", lambda work: {})
    for one, other in zip(alone, detect_all(method, dataset, device=device), strict=True):
        assert torch.equal(one.found_boxes, other.found_boxes)
    del shares[1][1]
    with pytest.raises(AssertionError, match="an image was not looked at"):
        detect_all(method, dataset, device=device)


def test_a_broken_detector_is_an_error(shapes: Path) -> None:
    class Broken(Everywhere):
        def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
            return [one | {"scores": one["scores"] * torch.nan} for one in super().forward(images)]

    dataset = DetectionDataset(read_voc(shapes, "test"), DetectionTransform([48], 48, 80))
    with pytest.raises(TrainingError, match="not finite"):
        detect_all(DetectionMethod(Broken()), dataset, device=torch.device("cpu"))


def test_the_encoder_has_its_own_rate() -> None:
    encoder = build_encoder("cifar:resnet20")
    small = DetectorConfig(layout="c4", anchor_sizes=[16], proposals=20, regions=8)
    method = DetectionMethod(build_detector(encoder, small, 2))
    groups = list(parameter_groups(method, 0.1))
    assert [group["lr_scale"] for group in groups] == [0.1, 1.0]
    assert {id(p) for p in groups[0]["params"]} == {id(p) for p in encoder.parameters()}
    both = [id(p) for group in groups for p in group["params"]]
    assert sorted(both) == sorted(id(p) for p in method.parameters())


@pytest.mark.parametrize(
    ("changes", "error", "reason"),
    [
        ({"model": BackboneConfig()}, ConfigError, "name the encoder to start from random"),
        ({"checkpoint": "nowhere"}, CheckpointError, "no such file or folder"),
        (
            {"model": BackboneConfig(library_weights=True)},
            ConfigError,
            r"library_weights: needs model\.encoder",
        ),
        (
            {"run": RunConfig(batch_size=25, device="cpu", num_workers=0)},
            ConfigError,
            "an epoch of 24 images makes no step",
        ),
    ],
)
def test_what_cannot_work_is_said_before_training(
    shapes: Path, tmp_path: Path, changes: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        run(config(shapes, tmp_path, **changes))
    assert not (tmp_path / "training").exists()


def test_training_on_test_images_is_an_error(shapes: Path, tmp_path: Path) -> None:
    data = DetectionDataConfig(root=str(shapes), train=["trainval", "test"], test=["test"])
    with pytest.raises(ConfigError, match=r"8 images are in data\.train and data\.test"):
        run(config(shapes, tmp_path, data=data))


def test_another_encoder_than_the_checkpoints_is_an_error(finished: Path, shapes: Path) -> None:
    other = {
        "checkpoint": str(finished.parent / "encoder"),
        "model": BackboneConfig(encoder="cifar:resnet32"),
    }
    with pytest.raises(CheckpointError, match=r"holds the encoder cifar:resnet20"):
        run(config(shapes, finished.parent / "other", **other))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"milestones": [5, 3]}, "milestones must increase"),
        ({"optim": OptimConfig(milestones=[3])}, r"optim\.milestones counts epochs"),
        ({"train_sizes": []}, "at least 32 pixels"),
        ({"steps": 0}, "must be at least 1"),
    ],
)
def test_a_config_that_cannot_work(
    shapes: Path, tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        config(shapes, tmp_path, **changes)


def test_coco_has_no_voc_numbers(shapes: Path, tmp_path: Path) -> None:
    """The same shapes in COCO's layout, with a crowd."""
    images = read_voc(shapes, "trainval").images
    for part, members in (("train", images[:16]), ("val", images[16:20])):
        write_as_coco(tmp_path, part, shapes, members)
    data = DetectionDataConfig(format="coco", root=str(tmp_path), train=["train"], test=["val"])
    result = run(config(shapes, tmp_path / "out", data=data))
    assert list(result.metrics) == ["AP", "AP50", "AP75"]
    assert result.protocol.notes == [
        "The encoder's weights are random.",
        "2 of 4 classes have no test boxes, and are no part of AP: shape 2, shape 3.",
    ]
    assert result.details["boxes_not_counted"] == 4


def write_as_coco(root: Path, part: str, shapes: Path, images: Any) -> None:
    """Each image's objects, and one crowd over the whole of it."""
    entries: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    (root / part).mkdir(parents=True)
    for number, image in enumerate(images):
        name = Path(image.path).name
        (root / part / name).write_bytes((shapes / image.path).read_bytes())
        entries["images"].append(
            {"id": number, "file_name": name, "width": image.width, "height": image.height}
        )
        boxes = [[*box[:2], box[2] - box[0], box[3] - box[1]] for box in image.boxes.tolist()]
        rows = [(box, int(label), 0) for box, label in zip(boxes, image.labels, strict=True)]
        for box, label, crowd in [*rows, ([0, 0, image.width, image.height], 0, 1)]:
            entries["annotations"].append(
                {
                    "id": len(entries["annotations"]),
                    "image_id": number,
                    "category_id": 10 * label + 1,
                    "bbox": box,
                    "iscrowd": crowd,
                }
            )
    entries["categories"] = [{"id": 10 * k + 1, "name": f"shape {k}"} for k in range(4)]
    path = root / "annotations" / f"instances_{part}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(entries))


@pytest.mark.timeout(1800)
@pytest.mark.slow
def test_shapes_are_learnt_in_a_few_hundred_steps(tmp_path: Path) -> None:
    """eval/configs/shapes_detection.yaml as it is: about 2 minutes of one core."""
    root = write_shapes(tmp_path / "shapes")
    path = ROOT / "eval" / "configs" / "shapes_detection.yaml"
    values = yaml.safe_load(path.read_text()) | {"output": str(tmp_path / "out")}
    values["data"]["root"] = str(root)
    result = run(from_yaml(DetectionConfig, yaml.safe_dump(values)))
    assert result.details["training"]["steps"] == 400
    assert result.metrics["AP50"].value > 0.5 and result.metrics["AP50"].n == 100
    assert result.metrics["AP50_voc07"].value > 0.5
