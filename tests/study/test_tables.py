"""Tables and the figure: what a reader is told of arms, seeds and items."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ndavid.study.collect import Collected, Row
from ndavid.study.config import ArmConfig, MeasurementConfig, MethodConfig, StudyConfig
from ndavid.study.figures import difference_figure
from ndavid.study.paired import differences
from ndavid.study.tables import measurement_tables, overview, training_table


def study(**changes: object) -> StudyConfig:
    values: dict[str, object] = {
        "seeds": [0, 1],
        "resamples": 300,
        "diagnostics": ["loss", "typo"],
        "methods": [MethodConfig(name="moco", recipe="a.py")],
        "arms": [ArmConfig(name=name) for name in ("none", "stitch", "late")],
        "measurements": [
            MeasurementConfig(name="knn", script="b.py"),
            MeasurementConfig(name="gen", script="c.py", lower_is_better=["fid"]),
        ],
    }
    return StudyConfig(**{**values, **changes})  # type: ignore[arg-type]


def row(arm: str, seed: int, value: float, **changes: object) -> Row:
    values: dict[str, object] = {
        "method": "moco",
        "measurement": "knn",
        "metric": "top1",
        "n": 4,
        "chance": 0.1,
        "percent": True,
        "training_seconds": 1.0,
        "seconds": 1.0,
        **changes,
    }
    return Row(arm=arm, seed=seed, value=value, **values)  # type: ignore[arg-type]


def collected() -> Collected:
    found = Collected(
        rows=[
            row("none", 0, 0.25, measurement="training", metric="loss_first", percent=False),
            row("none", 0, 0.125, measurement="training", metric="loss_last", percent=False),
            row("none", 0, 0.25),
            row("none", 1, 0.5),
            row("stitch", 0, 0.5),
            row("stitch", 1, 0.75),
            row("late", 1, 0.5),
            *(
                row("none", s, 30.0 + s, measurement="gen", metric="fid", percent=False)
                for s in (0, 1)
            ),
            *(
                row("stitch", s, 28.0, measurement="gen", metric="fid", percent=False)
                for s in (0, 1)
            ),
        ]
    )
    right = {
        ("none", 0): [1, 0, 0, 0],
        ("none", 1): [1, 1, 0, 0],
        ("stitch", 0): [1, 1, 0, 0],
        ("stitch", 1): [1, 1, 1, 0],
        ("late", 1): [1, 1, 0, 0],
    }
    for (arm, seed), values in right.items():
        items = {f"0:{k}": float(value) for k, value in enumerate(values)}
        found.outcomes["moco", arm, seed, "knn", "top1"] = items
    return found


def test_a_table_a_metric_with_every_seed_in_its_place() -> None:
    config, found = study(), collected()
    against = differences(found, "none", 300)
    knn, gen = measurement_tables(config, "moco", found, against)
    assert knn.title == "moco, knn: top1" and knn.note == "n = 4; chance 10.0 %."
    assert knn.header[:4] == ("arm", "mean %", "seeds 0, 1", "minus none")
    none, stitch, late = knn.rows
    assert none == ("none", "37.5", "25.0, 50.0", "", "", "", "")
    assert stitch[:4] == ("stitch", "62.5", "50.0, 75.0", "+25.0")
    assert stitch[5] == "**[+25.0, +25.0]**"
    # Its first seed is missing, and its difference is that of the second alone.
    # Four items that do not differ leave room for others that do.
    assert late == ("late", "50.0", "-, 50.0", "0.0", "[-49.0, +49.0]", "-", "-")
    assert gen.note == "n = 4; chance 0.1; lower is better; not paired by item."
    assert gen.rows[1][:4] == ("stitch", "28", "28, 28", "-2.5")
    lines = knn.markdown().splitlines()
    assert lines[0] == "### moco, knn: top1" and lines[2] == knn.note
    assert {line.count("|") for line in lines[4:]} == {len(knn.header) + 1}


def test_a_table_says_that_seeds_have_items_of_their_own() -> None:
    found = collected()
    for key, items in found.outcomes.items():
        found.outcomes[key] = {f"{key[2] + 1}{item[1:]}": v for item, v in items.items()}
    for index, one in enumerate(found.rows):
        found.rows[index] = row(one.arm, one.seed, one.value, n=4 + one.seed)
    knn, *_ = measurement_tables(study(), "moco", found, differences(found, "none", 300))
    assert knn.note.startswith("n = 4, 5; chance 10.0 %; each seed has items of its own (nested)")


def test_the_overview_has_all_measurements_side_by_side() -> None:
    config, found = study(), collected()
    table = overview(config, "moco", found, differences(found, "none", 300))
    assert table.header == ("arm", "knn: top1 %", "gen: fid")
    assert table.rows == (
        ("none", "37.5", "30.5"),
        # Two seeds do not tell a difference of -2 and -3 from none.
        ("stitch", "62.5 (+25.0)", "28 (-2.5)"),
        ("late", "50.0 (0.0; 1 of 2 seeds)", "-"),
    )
    assert "So far" not in table.note


def test_what_is_told_is_bold_and_an_unfinished_study_says_so() -> None:
    config, found = study(seeds=[0, 1, 2]), collected()
    found.rows.append(row("stitch", 2, 27.5, measurement="gen", metric="fid", percent=False))
    for index, one in enumerate(found.rows):
        if one.arm == "stitch" and one.metric == "fid" and one.seed < 2:
            changes = {"measurement": "gen", "metric": "fid", "percent": False}
            found.rows[index] = row("stitch", one.seed, 20.0 + one.seed, **changes)
    table = overview(config, "moco", found, differences(found, "none", 300))
    assert table.rows[1][2] == "**22.8 (-10 on 2)**"
    assert table.rows[0][2] == "30.5 (2 of 3 seeds)"
    found.rows[:] = [one for one in found.rows if one.seed < 2]
    table = overview(config, "moco", found, differences(found, "none", 300))
    assert table.rows[0][2] == "30.5" and table.note.endswith(" So far 2 of 3 seeds.")


def test_a_table_tells_from_how_many_sources_its_items_are() -> None:
    found = collected()
    found.rows[:] = [row(one.arm, one.seed, one.value, sources=2) for one in found.rows[2:7]]
    knn, *_ = measurement_tables(study(), "moco", found, differences(found, "none", 300))
    assert knn.note == "n = 4 (2 sources); chance 10.0 %."


def test_diagnostics_and_what_no_training_recorded() -> None:
    table = training_table(study(), collected())
    assert table is not None
    assert table.rows == (("moco, none", "0.25 → 0.125"),)
    assert table.note.endswith("No training recorded typo.")
    assert training_table(study(), Collected()) is None


def test_the_figure_grows_with_its_arms(tmp_path: Path) -> None:
    against = differences(collected(), "none", 300)
    sizes = []
    for number, part in enumerate((against, against[:1])):
        file = tmp_path / "new" / f"{number}.png"
        difference_figure(
            part,
            baseline="none",
            percent={("knn", "top1"): True, ("gen", "fid"): False},
            lower_is_better={("gen", "fid")},
            path=file,
        )
        with Image.open(file) as image:
            assert len(image.convert("RGB").getcolors(2**20) or []) > 50  # drawn, in colour
            sizes.append(image.size)
    assert sizes[0][1] > sizes[1][1]
