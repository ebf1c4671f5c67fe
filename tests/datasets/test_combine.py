"""`combine.py` writes a manifest that the recipes read, out of those of prepared datasets."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from ndavid.data.manifest import ClipRecord, Manifest, read_manifest

SCRIPT = Path(__file__).resolve().parents[2] / "datasets" / "combine.py"


def write(folder: Path, name: str, splits: tuple[str, ...]) -> Path:
    record = ClipRecord(f"{name}.mp4", 0, "", 9, 25.0, 4, 2, splits)
    Manifest(folder, (name,), (record,)).write(folder / "manifest.csv")
    return folder


def test_a_fold_is_given_after_a_colon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write(tmp_path / "one", "run", ("test", "train"))
    three = write(tmp_path / "three", "jump", ("train", "test", "val"))
    words = [f"--manifests=[{one}:2, {three / 'manifest.csv'}]", f"--output={tmp_path / 'u'}"]
    monkeypatch.setattr(sys, "argv", ["combine.py", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code in (0, None)
    union = read_manifest(tmp_path / "u")
    assert [record.splits for record in union.records] == [("train",) * 3, ("train", "test", "val")]
    assert "fold 3: train 1, val 1, test 0" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["combine.py", f"--manifests=[{one}:7, {three}]", words[1]])
    with pytest.raises(SystemExit) as refused:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert refused.value.code == 2
    assert "one: no fold 7; it has folds 1 to 2" in capsys.readouterr().err
