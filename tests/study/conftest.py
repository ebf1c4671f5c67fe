"""Studies of tiny scripts: seconds instead of hours, with real processes, results and kills."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ndavid.study import steps
from ndavid.study.config import ArmConfig, MeasurementConfig, MethodConfig, StudyConfig

# Walks to a number in saved steps, as a training does; what it executes it notes in trace.txt.
TRAIN = """
import argparse, json, os, signal, sys, time
from pathlib import Path
parser = argparse.ArgumentParser()
for name in ("--run.output", "--run.seed", "--nda.spec", "--fold", "--gate"):
    parser.add_argument(name, default="")
parser.add_argument("--steps", type=int, default=3)
parser.add_argument("--pause", type=float, default=0.0)
given = vars(parser.parse_args())
folder = Path(given["run.output"])
folder.mkdir(parents=True, exist_ok=True)
if given["nda.spec"] == "broken":
    print("loss is nan")
    raise SystemExit("error: nothing to learn")
stop = []
def note(number, frame):
    stop.append(number)
    (folder / "told_to_stop").touch()
signal.signal(signal.SIGTERM, note)
state, trace = folder / "state.json", folder / "trace.txt"
step, total = json.loads(state.read_text()) if state.exists() else (0, 0)
with trace.open("a") as log:
    while step < given["steps"]:
        # Nobody goes on past the second step while the gate is there.
        while step == 2 and given["gate"] and Path(given["gate"]).exists():
            time.sleep(0.02)
        step += 1
        total = (31 * total + step + int(given["run.seed"]) + len(given["nda.spec"])) % 9973
        time.sleep(given["pause"])
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
        print(step, "gpu", gpu, "process", os.getpid(), file=log, flush=True)
        partial = folder / "state.partial"
        partial.write_text(json.dumps([step, total]))
        partial.replace(state)
        if stop:
            raise SystemExit(143)
lines = [json.dumps({"step": k, "loss": 10.0 - k}) for k in range(1, step + 1)]
(folder / "metrics.jsonl").write_text("".join(line + "\\n" for line in lines))
(folder / "weights.txt").write_text(str(total))
"""

# Twenty items, each right or wrong by the weights; writes what an evaluator writes.
MEASURE = """
import argparse, os, signal
from pathlib import Path
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.outcomes import Outcome, write_outcomes
from ndavid.evaluation.protocol import Protocol, Result
parser = argparse.ArgumentParser()
for name in ("--checkpoint", "--output", "--seed", "--die_once", "--split"):
    parser.add_argument(name, default="")
given = parser.parse_args()
folder = Path(given.output)
if given.die_once and not (folder / "result.json").exists():
    (folder / "result.json").write_text('{"schema": 1, "metr')
    os.kill(os.getpid(), signal.SIGKILL)
weights = 0
if given.checkpoint:
    weights = int((Path(given.checkpoint) / "weights.txt").read_text())
right = [float((weights + 7 * k) % 5 > 1) for k in range(20)]
fold = int(given.split or 0)
write_outcomes(
    [Outcome(f"v{k}", "top1", value, fold) for k, value in enumerate(right)],
    folder / "outcomes.csv",
)
metrics = {
    "top1": Metric(sum(right) / 20, 20, 0.0, 1.0),
    "loss": Metric(weights / 100, 20, 0.0, 1.0, percent=False),
}
Result(task="toy", metrics=metrics, protocol=Protocol(), chance=0.5).save(folder / "result.json")
"""


@pytest.fixture(autouse=True)
def quick_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps here need none of what the warm process imports for recipes and evaluators."""
    monkeypatch.setattr(steps, "PRELOADED", ("ndavid.study.runner",))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # set back: a runner sets it


@pytest.fixture
def tiny_study(tmp_path: Path) -> Callable[..., StudyConfig]:
    """`tiny_study(**changes)`: one method, arms none and more, one measurement; in tmp_path/out."""
    train, measure = tmp_path / "train.py", tmp_path / "measure.py"
    train.write_text(TRAIN)
    measure.write_text(MEASURE)

    def make(**changes: Any) -> StudyConfig:
        values: dict[str, Any] = {
            "title": "Tiny",
            "output": str(tmp_path / "out"),
            "seeds": [0],
            "jobs": 1,
            "resamples": 200,
            "methods": [MethodConfig(name="walk", recipe=str(train))],
            "arms": [
                ArmConfig(name="none"),
                ArmConfig(name="more", overrides={"nda.spec": "stitch"}),
            ],
            "measurements": [MeasurementConfig(name="toy", script=str(measure))],
        }
        return StudyConfig(**{**values, **changes})

    return make


@pytest.fixture
def mark_done() -> Callable[..., None]:
    """`mark_done(step, seconds)`: leaves the record of a step that has finished."""

    def mark(step: Any, seconds: float = 1.0) -> None:
        step.folder.mkdir(parents=True, exist_ok=True)
        record = {"command": step.command, "seconds": seconds}
        (step.folder / steps.RECORD).write_text(json.dumps(record))

    return mark
