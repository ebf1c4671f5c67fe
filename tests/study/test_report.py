"""The page and the files of a study: what was done, what is missing, and of which code."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from ndavid.study.config import ArmConfig, MeasurementConfig, MethodConfig, StudyConfig
from ndavid.study.report import write_report
from ndavid.study.runner import run_steps

Make = Callable[..., StudyConfig]
COMMAND = ["python", "recipes/study.py", "--title", "two words"]


def test_the_page_of_a_study_that_is_half_done(tiny_study: Make) -> None:
    config = tiny_study(
        seeds=[0, 1], arms=[ArmConfig(name="none"), ArmConfig(name="random", trained=False)]
    )
    run_steps(config)
    config.arms.append(ArmConfig(name="more", overrides={"nda.spec": "stitch"}))
    page = write_report(config, COMMAND)
    text = page.read_text()
    assert text.startswith("# Tiny\n\n```bash\npython recipes/study.py --title 'two words'\n```\n")
    assert "2 trainings (0.00 h of wall time, added up) and 4 measurements (0.00 h)." in text
    missing = ", ".join(f"walk/more/seed{s}/{name}" for s in (0, 1) for name in ("training", "toy"))
    assert f"**Missing: 4 steps** ({missing})." in text
    # Random weights are told in the tables only.
    assert "### walk, toy: top1" in text and "| random |" in text
    assert not list(page.parent.glob("*.png"))
    assert run_steps(config).failures == []
    text = write_report(config, COMMAND).read_text()
    assert "Missing" not in text
    # top1 has items, loss has not; of both arms.
    assert "Of the 4 intervals that decide" in text and "about 0.2, at most, would" in text
    assert "![Differences of walk to none](differences_walk.png)" in text
    content = json.loads((page.parent / "differences.json").read_text())
    assert [d["arm"] for d in content["differences"]] == ["random", "random", "more", "more"]
    assert {d["design"] for d in content["differences"]} == {"crossed", ""}
    assert content["config"]["methods"][0]["name"] == "walk"
    assert content["environments"] == [] and len(content["commits"]) == 1


def test_a_page_of_chosen_arms_names_those_left_out(tiny_study: Make) -> None:
    arms = [ArmConfig(name=name) for name in ("none", "more")]
    run_steps(tiny_study(seeds=[0], arms=arms))
    whole = write_report(tiny_study(seeds=[0], arms=arms), COMMAND).read_text()
    assert "left out" not in whole and "| more |" in whole
    part = write_report(tiny_study(seeds=[0], arms=arms, only_arms=["none"]), COMMAND).read_text()
    assert "Arms left out (`only_arms`): more." in part
    assert "| more |" not in part and "1 trainings" in part


def test_a_report_names_some_of_what_is_missing_and_counts_the_rest(tiny_study: Make) -> None:
    config = tiny_study(seeds=[0, 1])
    Path(config.output).mkdir()
    text = write_report(config, COMMAND).read_text()
    assert "**Missing: 8 steps** (walk/none/seed0/training, " in text
    assert "walk/none/seed1/training and 3 more)." in text
    assert "0 trainings" in text and "Of " not in text


def test_what_results_warn_of_is_told_once_with_whom_it_concerns(tiny_study: Make) -> None:
    config = tiny_study(seeds=[*range(6)], arms=[ArmConfig(name="none")])
    run_steps(config)
    for seed in config.seeds:
        file = Path(config.output) / f"walk/none/seed{seed}/toy/result.json"
        result = json.loads(file.read_text())
        result["protocol"]["num_dropped"] = 5
        if seed == 3:
            result["protocol"]["notes"] = ["LEAK: of 2 videos."]
            result["protocol"]["num_videos"] = 20
        file.write_text(json.dumps(result))
    lines = write_report(config, COMMAND).read_text().splitlines()
    told = [line for line in lines if " measurements (walk/" in line]
    names = ", ".join(f"walk/none/seed{seed}/toy" for seed in range(5))
    assert told[0] == "**LEAK: of 2 videos.** In 1 measurements (walk/none/seed3/toy)."
    assert told[1] == (
        f"Left out as shorter than a clip: 5 videos. In 6 measurements ({names} and 1 more)."
    )
    assert told[2].startswith("The videos' sources are unknown") and len(told) == 3


def test_splits_are_told_and_items_are_nested(tiny_study: Make) -> None:
    script = tiny_study().measurements[0].script
    toy = MeasurementConfig(name="toy", script=script, overrides={"split": "{split}"})
    walk = MethodConfig(
        name="walk", recipe=tiny_study().methods[0].recipe, overrides={"fold": "{split}"}
    )
    config = tiny_study(seeds=[4, 5, 6], splits=[1, 2], methods=[walk], measurements=[toy])
    run_steps(config)
    text = write_report(config, COMMAND).read_text()
    assert "Official splits: seed 4 on 1, seed 5 on 2, seed 6 on 1." in text
    assert "seeds of one split share their items, others do not (mixed)" in text
    two = tiny_study(seeds=[4, 5], splits=[1, 2], methods=[walk], measurements=[toy])
    assert "each seed has items of its own (nested)" in write_report(two, COMMAND).read_text()


@pytest.mark.parametrize("commits", [["a"], ["a", "b-changed"]])
def test_results_of_several_commits_are_told(commits: list[str], tiny_study: Make) -> None:
    config = tiny_study(seeds=[*range(len(commits))], arms=[ArmConfig(name="none")])
    run_steps(config)
    for record in Path(config.output).rglob("training/step.json"):
        record.write_text(json.dumps({**json.loads(record.read_text()), "git": None}))
    for seed, commit in enumerate(commits):
        file = Path(config.output) / f"walk/none/seed{seed}/toy/result.json"
        result = json.loads(file.read_text())
        name, _, changed = commit.partition("-")
        result["environment"] = {"git": {"commit": name, "changed": bool(changed)}}
        file.write_text(json.dumps(result))
    text = write_report(config, COMMAND).read_text()
    assert ("several commits: a, b-changed." in text) == (len(commits) > 1)
