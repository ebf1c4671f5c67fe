"""Odd command lines and configs: every script says one line and ends with 2, or understands.

Seeded and bounded. A script is stopped where it has understood its config, so nothing is trained;
those of datasets/ take plain arguments and run on folders that are not there.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import pytest
import scripts
import yaml

from ndavid.config import run_main

ROOT = Path(__file__).resolve().parent.parent
PER_SCRIPT = 12
CONFIGS = {
    "recipes/pretrain_dpc.py": "recipes/configs/dpc/ucf101_r18_nda-stitch.yaml",
    "recipes/pretrain_moco.py": "recipes/configs/moco/jhmdb21_r10_nda-mixed.yaml",
    "recipes/train_gan.py": "recipes/configs/gan/cifar10_biggan_nda-jigsaw.yaml",
    "recipes/train_classifier.py": "recipes/configs/classifier/cifar10_resnet20.yaml",
    "recipes/study.py": "recipes/configs/studies/motion_cpu.yaml",
    "eval/finetune.py": "eval/configs/ucf101_finetune.yaml",
    "eval/linear.py": "eval/configs/ucf101_linear.yaml",
    "eval/retrieval.py": "eval/configs/ucf101_retrieval.yaml",
    "eval/motion.py": "eval/configs/ucf101_motion.yaml",
    "eval/image_knn.py": "eval/configs/cifar10_image-knn.yaml",
    "eval/ood.py": "eval/configs/cifar10_ood.yaml",
    "eval/anomaly.py": "eval/configs/cifar10_anomaly.yaml",
    "eval/generation.py": "eval/configs/cifar10_generation.yaml",
}
ODD_VALUES: list[Any] = [
    *(None, True, "", " ", "nan", float("nan"), float("inf"), -1, 0, 10**30, -(2**63) - 1, 1e308),
    *([], [[]], {}, {"a": {"b": 1}}, "\x1b[2J", "two\nlines", "../../etc/passwd", "a" * 5000),
    *("pipe:touch ran", "!!python/object/apply:os.system ['true']", "\N{SNOWMAN}", [None, -3]),
]
ODD_TEXTS = ["\t- a: [", "\x00\x01", "a: 1\na: 2\n", "&a [*a, *a]", "[]", "just words", "{", ": :"]


def leaves(values: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if not isinstance(values, dict):
        return [path]
    return [leaf for key, value in values.items() for leaf in leaves(value, (*path, key))]


def mutated(values: dict[str, Any], draw: random.Random) -> str:
    """The YAML of a config in which one thing is odd."""
    if draw.random() < 0.15:
        return draw.choice(ODD_TEXTS)
    path = draw.choice(leaves(values))
    place: Any = values
    for key in path[:-1]:
        place = place[key]
    if draw.random() < 0.25:
        place[draw.choice(["\x1b]0;", "", path[-1] + "x", path[-1][:-1], 7])] = place.pop(path[-1])
    else:
        place[path[-1]] = draw.choice(ODD_VALUES)
    return yaml.dump(values, allow_unicode=True)


def outcome(script: str, words: list[str], monkeypatch, capsys) -> int | None:
    """Its exit code; None where it understood. Any other exception passes through: a traceback."""
    with monkeypatch.context() as patch:
        patch.syspath_prepend(ROOT / script.rpartition("/")[0])
        module = scripts.load(ROOT / script)
        patch.setattr(sys, "argv", [script, *words])
        if hasattr(module, "parse"):
            patch.setattr(module, "parse", scripts._stop_after(module.parse))
        capsys.readouterr()
        try:
            run_main(module.main)
        except scripts.Parsed:
            return None
        except SystemExit as error:
            return int(error.code or 0)


def assert_one_line(code: int | None, text: str, case: object) -> None:
    assert code in (None, 2), (case, code, text)
    if code == 2:
        lines = [line for line in text.splitlines() if "error:" in line]
        assert len(lines) == 1 and "Traceback" not in text, (case, text)
        assert lines[0].isprintable() and len(lines[0]) < 8000, (case, lines)


@pytest.mark.slow
@pytest.mark.parametrize("script", CONFIGS)
def test_an_odd_config_or_option_is_one_line(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    draw = random.Random(script)
    source = yaml.safe_load((ROOT / CONFIGS[script]).read_text())
    refused = 0
    for number in range(PER_SCRIPT):
        file = tmp_path / f"{number}.yaml"
        if number % 3:
            text = mutated(yaml.safe_load(yaml.dump(source)), draw)
            file.write_bytes(text.encode("utf-8", "surrogateescape"))
            words = [f"--config={file}"]
        else:
            key = ".".join(draw.choice(leaves(source)))
            word = draw.choice(
                [f"--{key}={draw.choice(ODD_VALUES)}", f"--{key}x=1", f"--{key}", "--="]
            )
            words = [f"--config={ROOT / CONFIGS[script]}", word]
        code = outcome(script, words, monkeypatch, capsys)
        assert_one_line(code, capsys.readouterr().err, (words, file.exists() and file.read_bytes()))
        refused += code == 2
    assert refused >= 3
    assert not Path("ran").exists()


DATASETS = {
    "datasets/prepare.py": [
        ["folder", "--videos", "gone", "--output", "out"],
        ["ucf101", "--videos", "gone", "--annotations", "gone", "--output", "out"],
        ["folder", "--videos", "gone", "--output", "out", "--workers", "1000000"],
        ["folder", "--videos", "gone", "--output", "out", "--workers", "-3"],
        ["folder", "--videos", "gone", "--output", "out", "--short-side", "0"],
        ["folder", "--videos", "gone\x1b[2J", "--output", "out"],
        ["nonsense"],
        [],
    ],
    "datasets/verify.py": [["gone"], [""], ["gone\n"], ["--workers", "x", "gone"], []],
    "datasets/shard.py": [["check", "gone"], ["check", "pipe:touch ran"], ["nonsense"], []],
    "datasets/combine.py": [["gone", "gone2", "--output", "out"], []],
    "datasets/pack_images.py": [["gone", "--output", "out.npz"], []],
}


@pytest.mark.slow
@pytest.mark.parametrize("script", DATASETS)
def test_odd_arguments_of_a_datasets_script_end_in_one_line(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in DATASETS[script]:
        code = outcome(script, words, monkeypatch, capsys)
        assert code in (1, 2), (words, code)
        said = capsys.readouterr()
        assert "Traceback" not in said.err + said.out, (words, said)
