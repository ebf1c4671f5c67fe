"""The recipe as a user starts it: real clips, a run directory, kills, two ranks, bad input."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path

import forked
import processes
import pytest

from ndavid.data.manifest import ClipRecord, Manifest

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "recipes" / "pretrain_dpc.py"
CONFIG = ROOT / "recipes" / "configs" / "dpc" / "demo_r10_nda-temporal.yaml"
TINY = [
    f"--config={CONFIG}",
    "--augment.size=32",
    "--model.encoder=resnet2d3d10_half",
    "--model.num_blocks=3",
    "--model.block_len=3",
    "--model.pred_steps=1",
    "--run.batch_size=2",
    "--run.log_every=1",
    "--run.epochs=2",
    "--run.num_workers=0",
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Path:
    """Eight real mp4 clips and their manifest."""
    root = tmp_path_factory.mktemp("prepared")
    for index in range(8):
        write_clip(root / "A" / f"v_A_g{index:02d}_c01.mp4", num_frames=24, size=(48, 64))
    write_manifest(root, [f"A/v_A_g{index:02d}_c01.mp4" for index in range(8)])
    return root


def write_manifest(root: Path, paths: list[str]) -> None:
    records = tuple(
        ClipRecord(
            path=path,
            label=0,
            group=path,
            num_frames=24,
            fps=25.0,
            width=64,
            height=48,
            splits=("train",),
            decord_ok=None,
        )
        for path in paths
    )
    Manifest(root=root, classes=("A",), records=records).write(root / "manifest.csv")


def call(script: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return forked.call(script, *arguments, cwd=cwd)


def assert_one_clear_line(outcome: subprocess.CompletedProcess[str], *named: str) -> None:
    """A non-zero exit and one line that names what and where; no traceback."""
    assert outcome.returncode == 2, outcome.stderr
    assert "Traceback" not in outcome.stderr
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, outcome.stderr
    for word in named:
        assert word in errors[0], errors[0]


def test_a_run_leaves_what_the_readme_promises(prepared: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    outcome = call(RECIPE, *TINY, f"--data.root={prepared}", f"--run.output={output}")
    assert outcome.returncode == 0, outcome.stderr
    for name in ("config.yaml", "environment.json", "metrics.jsonl", "tensorboard", "report.html"):
        assert (output / name).exists(), name
    records = processes.records(output)
    assert [record["step"] for record in records] == list(range(1, 9))
    for key in ("loss", "top1", "top5", "nda_accuracy", "nda_outrank", "grad_norm"):
        assert key in records[-1], key
    timed = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert timed["samples_per_s"] > 0 and timed["seconds_compute"] > 0
    again = call(RECIPE, *TINY, f"--data.root={prepared}", f"--run.output={output}")
    assert again.returncode == 0 and len(processes.records(output)) == 8


def test_two_ranks_train_save_die_and_resume_to_the_same_bits(
    prepared: Path, tmp_path: Path
) -> None:
    options = [*TINY, f"--data.root={prepared}", "--run.save_every_steps=1"]
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    processes.run(RECIPE, options, whole, ranks=2)
    processes.kill_at(processes.start(RECIPE, options, broken, ranks=2), 2)
    processes.run(RECIPE, options, broken, ranks=2)
    processes.assert_same_run(whole, broken)


def test_bad_configs_give_one_clear_line(prepared: Path, tmp_path: Path) -> None:
    misspelt = tmp_path / "misspelt.yaml"
    misspelt.write_text(CONFIG.read_text().replace("pred_steps:", "pred_step:"))
    assert_one_clear_line(
        call(RECIPE, f"--config={misspelt}"), "pred_step", "pred_steps", "misspelt.yaml"
    )
    data = [f"--data.root={prepared}", f"--run.output={tmp_path / 'run'}"]
    assert_one_clear_line(
        call(RECIPE, *TINY, *data, "--model.encoder=resnet2d3d81"), "resnet2d3d81", "resnet2d3d18"
    )
    assert_one_clear_line(call(RECIPE, *TINY, *data, "--nda.spec=jigsow"), "jigsow", "jigsaw")


def test_unreadable_clips_stop_training_with_their_names(
    prepared: Path, tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    write_clip(tmp_path / "good.mp4", num_frames=24, size=(48, 64))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("not a video")
    whole = (tmp_path / "good.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_manifest(tmp_path, ["good.mp4", "empty.mp4", "text.mp4", "cut.mp4", "gone.mp4"])
    output = tmp_path / "run"
    data = [f"--data.root={tmp_path}", f"--run.output={output}"]
    outcome = call(RECIPE, *TINY, *data)
    assert_one_clear_line(outcome, "max_bad_fraction")
    allowed = call(RECIPE, *TINY, *data, "--run.max_bad_fraction=1.0", "--run.resume=never")
    assert allowed.returncode == 0, allowed.stderr
    listed = (output / "bad_clips.csv").read_text()
    for name in ("empty.mp4", "text.mp4", "cut.mp4", "gone.mp4"):
        assert name in listed, listed
    assert "good.mp4" not in listed


class Payload:
    """What a hostile checkpoint holds: unpickling it would run a command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, (f"touch {self.witness}",)


def test_what_is_no_checkpoint_is_refused(prepared: Path, tmp_path: Path) -> None:
    witness, hostile = tmp_path / "ran", tmp_path / "hostile.pt"
    hostile.write_bytes(pickle.dumps(Payload(witness)))
    text = tmp_path / "notes.pt"
    text.write_text("no checkpoint")
    data = [f"--data.root={prepared}", f"--run.output={tmp_path / 'run'}"]
    for path in (hostile, text, tmp_path / "nowhere"):
        assert_one_clear_line(call(RECIPE, *TINY, *data, f"--run.resume={path}"), path.name)
    assert not witness.exists()
