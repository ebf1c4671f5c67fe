"""The detection configs parse, say how to run them, and hold the schedules they are named after."""

from __future__ import annotations

from pathlib import Path

import pytest

from ndavid.config import from_yaml
from ndavid.engine.optim import lr_factor
from ndavid.evaluation.detection import DetectionConfig, _schedule

FOLDER = Path(__file__).resolve().parents[2] / "eval" / "configs"
CONFIGS = sorted(FOLDER.glob("*_detection.yaml"))


def config(name: str) -> DetectionConfig:
    return from_yaml(DetectionConfig, FOLDER / f"{name}_detection.yaml")


def test_they_are_all_there() -> None:
    names = {path.stem.removesuffix("_detection") for path in CONFIGS}
    assert names == {"voc0712", "voc0712_fpn", "coco", "shapes"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_header_and_output(path: Path) -> None:
    lines = path.read_text().splitlines()
    header = "\n".join(line for line in lines if line.startswith("# "))
    assert "eval/detection.py" in header and f"--config eval/configs/{path.name}" in header
    assert "Hardware: " in header and "Number: " in header
    parsed = from_yaml(DetectionConfig, path)
    assert not parsed.output and parsed.model.encoder


@pytest.mark.parametrize("name", ["voc0712", "voc0712_fpn"])
def test_mocos_schedule_on_voc(name: str) -> None:
    voc = config(name)
    assert voc.data.train == ["VOC2007/trainval", "VOC2012/trainval"]
    assert voc.data.test == ["VOC2007/test"]
    assert (voc.steps, voc.milestones, voc.optim.warmup_steps) == (24000, [18000, 22000], 100)
    assert (voc.optim.name, voc.optim.lr, voc.optim.gamma) == ("sgd", 0.02, 0.1)
    assert 8 * voc.run.batch_size * voc.optim.accumulate_steps == 16
    assert voc.train_sizes == list(range(480, 801, 32)) and voc.test_size == 800
    assert voc.detector.layout == ("fpn" if "fpn" in name else "c4")
    assert voc.detector.head_norm and voc.detector.norm == "sync"


def test_mocos_schedule_on_coco() -> None:
    coco = config("coco")
    assert coco.data.format == "coco" and coco.detector.layout == "c4"
    assert (coco.steps, coco.milestones) == (180000, [120000, 160000])
    assert coco.train_sizes == [640, 672, 704, 736, 768, 800]


@pytest.mark.parametrize("steps_per_epoch", [1, 7, 1034, 7393])
def test_milestones_fall_on_their_very_step(steps_per_epoch: int) -> None:
    voc = config("voc0712")
    optim = _schedule(voc, steps_per_epoch)
    expected = {99: 100 / 101, 100: 1, 17999: 1, 18000: 0.1, 21999: 0.1, 22000: 0.01, 23999: 0.01}
    for step, factor in expected.items():
        found = lr_factor(step, optim, steps_per_epoch=steps_per_epoch, total_steps=voc.steps)
        assert found == pytest.approx(factor), step
