from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from ndavid.engine.resume_rules import superseded
from ndavid.errors import ConfigError
from ndavid.methods.nda_config import (
    MOCO_DEFAULTS_BEFORE,
    MocoNdaConfig,
    NdaConfig,
    NegativesConfig,
)


@pytest.mark.parametrize("kind", [NdaConfig, MocoNdaConfig])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": "xyz"}, r"nda\.share must be one of own, batch"),
        ({"weight": -0.5}, r"nda\.weight must be >= 0"),
        ({"weight": float("nan")}, r"nda\.weight"),
        ({"weight": float("inf")}, r"nda\.weight"),
        ({"scale": 0.0}, r"nda\.scale"),
        ({"per_sample": 0}, r"nda\.per_sample"),
        ({"warmup_steps": -1}, r"nda\.warmup_steps"),
    ],
)
def test_bad_values_of_any_method_are_named(
    kind: type[NegativesConfig], change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**change)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (NdaConfig, {"where": "futur"}, r"nda\.where .* did you mean 'future'"),
        (NdaConfig, {"entry": "pool"}, r"nda\.entry .* did you mean 'pooled'"),
        (NdaConfig, {"span": "clips"}, r"nda\.span .* did you mean 'clip'"),
        (NdaConfig, {"align": "same"}, r"nda\.align .* did you mean 'same_cell'"),
        (NdaConfig, {"min_changed": -0.1}, r"nda\.min_changed"),
        (NdaConfig, {"min_changed": 1.5}, r"nda\.min_changed"),
        (MocoNdaConfig, {"view": "quary"}, r"nda\.view .* query, key, .* did you mean 'query'"),
        (MocoNdaConfig, {"encoder": "keys"}, r"nda\.encoder .* did you mean 'key'"),
        (MocoNdaConfig, {"norm": "runing"}, r"nda\.norm .* did you mean 'running'"),
    ],
)
def test_bad_values_are_named_with_the_nearest_good_one(
    kind: type[NegativesConfig], change: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**change)


def test_a_fresh_view_is_a_third_one_if_anything_is_broken() -> None:
    assert MocoNdaConfig(view="fresh", spec="jigsaw").num_views == 3
    assert MocoNdaConfig(view="fresh", spec=" ").num_views == 2
    assert MocoNdaConfig(view="key", spec="jigsaw").num_views == 2


def test_empty_spec_is_no_operation() -> None:
    assert NdaConfig().operation() is None
    assert MocoNdaConfig().operation() is None
    assert NdaConfig(spec="  ").operation() is None


def test_spec_is_read() -> None:
    operation = NdaConfig(spec="jigsaw:grid=3").operation()
    assert operation is not None and operation.name == "jigsaw"


def test_misspelt_spec_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="jigsaw"):
        NdaConfig(spec="jigsow").operation()


def test_weight_rises_linearly_from_zero() -> None:
    config = NdaConfig(weight=2.0, warmup_steps=4)
    assert [config.weight_at(step) for step in range(6)] == [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    assert NdaConfig(weight=0.3).weight_at(0) == 0.3


NOTHING: set[str] = set()


def test_least_change_goes_by_the_entry_unless_given() -> None:
    assert NdaConfig().least_changed == 0.5
    assert NdaConfig(entry="pooled").least_changed == 0.05
    assert NdaConfig(entry="pooled", min_changed=0.7).least_changed == 0.7


def test_mocos_defaults_are_those_that_taught_order() -> None:
    config = MocoNdaConfig(spec="reverse")
    assert (config.view, config.encoder, config.norm) == ("key", "query", "shared")
    assert (config.weight, config.share) == (16.0, "own")


def test_a_run_begun_under_old_defaults_keeps_them(tmp_path: Path) -> None:
    def text(**nda: object) -> str:
        return yaml.safe_dump({"nda": {"spec": "reverse"} | nda})

    @dataclass
    class Config:
        nda: MocoNdaConfig = field(default_factory=MocoNdaConfig)

    now = {"encoder": "query", "norm": "shared", "weight": 16.0}
    old = {"encoder": "key", "norm": "own", "weight": 1.0}

    def kept(folder: Path = tmp_path, given: set[str] = NOTHING, **nda: float) -> set[str]:
        config = Config(MocoNdaConfig(spec="reverse", **nda))
        found = superseded(folder, config, MOCO_DEFAULTS_BEFORE, given=given, since=1)
        assert found.items() <= MOCO_DEFAULTS_BEFORE.items()
        return set(found)

    (tmp_path / "config.yaml").write_text(text(**old))
    assert kept() == set()  # nothing was done with them yet
    (tmp_path / "checkpoints" / "step_3").mkdir(parents=True)
    assert kept() == set(MOCO_DEFAULTS_BEFORE)
    # What was chosen otherwise, then or now, is left to be refused where it differs.
    assert "nda.weight" not in kept(weight=4.0)
    # So is today's default where somebody says it, and where the run knew it and was told another.
    assert kept(given={"nda.weight"}) == {"nda.encoder", "nda.norm"}
    assert kept(given={"nda"}) == set()
    environment = tmp_path / "environment.json"
    environment.write_text('{"defaults": 1}')
    assert kept() == set()
    environment.write_text('{"defaults": 0}')
    (tmp_path / "config.yaml").write_text(text(**now))
    assert kept() == set()
    assert kept(folder=tmp_path / "new") == set()
