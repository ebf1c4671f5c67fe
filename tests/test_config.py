"""Configs: what is typed wrong is named with its file and the key that was meant."""

from __future__ import annotations

import argparse
import errno
import math
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ndavid import locks
from ndavid.config import (
    changeable,
    changeable_keys,
    from_yaml,
    given_keys,
    parse,
    run_main,
    to_yaml,
)
from ndavid.engine.optim import OptimConfig
from ndavid.engine.run_config import RunConfig
from ndavid.errors import ConfigError, DataError
from ndavid.ranges import (
    AT_LEAST_1,
    POSITIVE,
    SHARE_BELOW_1,
    at_least,
    check_ranges,
    check_workers,
    fraction,
    most_workers,
    percent,
)


@dataclass(kw_only=True)
class Inner:
    """Inner settings."""

    lr: float = 1e-3
    """learning rate"""
    kind: Literal["constant", "cosine"] = "constant"
    milestones: list[int] = field(default_factory=list)
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    clip: float | None = None


@dataclass(kw_only=True)
class Config:
    """A config for these tests."""

    optim: Inner = field(default_factory=Inner)
    extra: Inner | None = None
    name: str = "x"
    seed: int = 0
    """the seed"""
    fast: bool = False


@dataclass(kw_only=True)
class Tabled:
    """A config with a dict and with a list of configs."""

    places: dict[str, str] = field(default_factory=dict)
    parts: list[Inner] = field(default_factory=list)
    seed: int = 0


def test_defaults_need_no_file() -> None:
    assert parse(Config, []) == Config()


def test_exponents_without_a_dot_are_floats_where_the_field_is() -> None:
    config = from_yaml(Config, "optim: {lr: 1e-4, clip: 1e-2, betas: [1e-1, 5e-1]}\nname: '1e-4'")
    assert config.optim == Inner(lr=1e-4, clip=1e-2, betas=[0.1, 0.5])
    assert config.name == "1e-4"


def test_an_override_wins_over_the_file_wherever_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("optim: {lr: 5.0, kind: cosine}\nseed: 3\n")
    before = parse(Config, ["--optim.lr", "1e-4", "--config", str(file)])
    after = parse(Config, ["--config", str(file), "--optim.lr=1e-4"])
    assert before == after == Config(optim=Inner(lr=1e-4, kind="cosine"), seed=3)


def test_a_later_file_wins_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("optim: {lr: 5.0, kind: cosine}")
    (tmp_path / "b.yaml").write_text("optim: {lr: 7.0}")
    files = [f"--config={tmp_path / name}" for name in ("a.yaml", "b.yaml")]
    assert parse(Config, files).optim == Inner(lr=7.0, kind="cosine")


def test_lists_and_optionals_on_the_command_line() -> None:
    words = ["--optim.milestones", "[60, 80]", "--extra.lr", "2", "--optim.clip", "-1"]
    config = parse(Config, words)
    assert config.optim.milestones == [60, 80]
    assert config.extra == Inner(lr=2.0)
    assert config.optim.clip == -1.0
    assert parse(Config, ["--extra", "null"]).extra is None


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("optim: {learning_rat: 1}", "optim.learning_rat"),
        ("optim: {lrr: 1}", "did you mean 'optim.lr'"),
        ("lr: 1", "did you mean 'optim.lr'"),
        ("sede: 1", "did you mean 'seed'"),
        ("extra: {mile_stones: []}", "did you mean 'extra.milestones'"),
        ("seed: abc", "'seed' must be int, not abc"),
        ("seed: 1.5", "'seed' must be int"),
        ("seed: true", "'seed' must be int"),
        ("fast: 1", "'fast' must be bool"),
        ("name: 3", "'name' must be str"),
        ("optim: {lr: fast}", "'optim.lr' must be float"),
        ("optim: {clip: x}", "'optim.clip' must be float | None"),
        ("optim: {milestones: 60}", "'optim.milestones' must be list[int]"),
        ("optim: {milestones: [a]}", "'optim.milestones' must be list[int]"),
        ("optim: {kind: cosin}", "did you mean 'cosine'"),
        ("optim: 3", "'optim' must be a block"),
        ("optim:", "'optim' has no value"),
        ("seed: null", "'seed' has no value"),
        ("seed: 1\nseed: 2", "'seed' is given twice"),
        ("[1, 2]", "a block of keys"),
        ("seed: [", "not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
    ],
)
def test_a_bad_file_is_one_line_naming_file_and_key(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    for read in (lambda: from_yaml(Config, file), lambda: parse(Config, ["--config", str(file)])):
        with pytest.raises(ConfigError) as error:
            read()
        message = str(error.value)
        assert str(file) in message and named in message and "\n" not in message


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--sed", "1"], "did you mean 'seed'"),
        (["--lr", "1"], "did you mean 'optim.lr'"),
        (["--optim.l", "1"], "unknown option '--optim.l'"),
        (["--seed", "x"], "'seed' must be int, not x"),
        (["--seed"], "--seed"),
        (["stray"], "stray"),
        (["--config"], "--config needs a file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: cannot read the config"),
    ],
)
def test_a_bad_command_line_is_one_line_naming_the_option(words: list[str], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(Config, words)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_an_entry_of_a_dict_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("places: {clips: data/a, other: data/b}")
    config = parse(Tabled, ["--places.clips", "/data/c d", f"--config={file}", "--places.new=1e3"])
    assert config.places == {"clips": "/data/c d", "other": "data/b", "new": "1e3"}


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("--plces.a_long_name_of_mine", "did you mean 'places.a_long_name_of_mine'"),
        ("--seed.clips", "unknown option '--seed.clips'; did you mean 'seed'"),
        ("--place", "did you mean 'places'"),
        ("--clips", "valid: places, parts, seed"),
    ],
)
def test_an_entry_of_no_dict_is_refused(word: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse(Tabled, [word, "x"])
    assert named in str(error.value)


def test_a_list_of_configs_is_built_and_read_back(tmp_path: Path) -> None:
    text = "parts:\n- lr: 1e-4\n- {kind: cosine, milestones: [3]}\nseed: 2"
    config = from_yaml(Tabled, text)
    assert config.parts == [Inner(lr=1e-4), Inner(kind="cosine", milestones=[3])]
    assert from_yaml(Tabled, to_yaml(config)) == config
    file = tmp_path / "run.yaml"
    file.write_text(text)
    assert parse(Tabled, [f"--config={file}", "--seed=2"]) == config


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("parts: [{lr: 1}, {lrr: 1}]", "unknown key 'parts[1].lrr'; did you mean 'parts[1].lr'"),
        ("parts: [{lr: fast}]", "parts[0]: 'lr' must be float, not fast"),
        ("parts: [{lr: 1}, {kind: cosin}]", "parts[1]: 'kind' is 'cosin'"),
        ("parts: [3]", "'parts[0]' must be a block of keys, not 3"),
        ("parts: {lr: 1}", "'parts' must be a list, not {'lr': 1}"),
        ("parts:", "'parts' has no value"),
    ],
)
def test_what_is_wrong_in_a_list_of_configs_is_named(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_yaml(Tabled, text)
    assert named in str(error.value) and "\n" not in str(error.value)


def test_a_config_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="not a text file"):
        from_yaml(Config, file)
    with pytest.raises(ConfigError, match="Is a directory"):
        from_yaml(Config, tmp_path)


def test_checks_of_the_dataclass_see_the_final_values(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lr: -1.0")
    assert parse(OptimConfig, ["--config", str(file), "--lr", "1"]).lr == 1.0
    with pytest.raises(ConfigError, match="lr must be above 0"):
        parse(OptimConfig, ["--config", str(file)])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("optim: {lr: .nan}", "'optim.lr' must be a finite number, not nan"),
        ("optim: {lr: -.inf}", "'optim.lr' must be a finite number, not -inf"),
        ("optim: {betas: [0.9, .nan]}", "'optim.betas' must be a finite number"),
        ("seed: 9223372036854775808", "'seed' must be a number of at most 64 bits"),
        ("optim: {milestones: [1, -99999999999999999999]}", "'optim.milestones' must be a number"),
    ],
)
def test_numbers_that_mean_nothing_are_refused(text: str, named: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_yaml(Config, text)
    assert named in str(error.value)


@dataclass(kw_only=True)
class Checked:
    """A part that checks its own numbers."""

    count: int = 1
    share: float | None = None
    rates: list[float] = field(default_factory=list)
    workers: int = 0

    def __post_init__(self) -> None:
        check_ranges(self, count=AT_LEAST_1, share=SHARE_BELOW_1, rates=POSITIVE)
        check_workers(self, name="workers")


@dataclass(kw_only=True)
class Whole:
    """A config of such parts."""

    part: Checked = field(default_factory=Checked)
    parts: list[Checked] = field(default_factory=list)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("part: {count: 0}", "part.count must be at least 1, not 0"),
        ("part: {share: 1.0}", "part.share must be in [0, 1), not 1.0"),
        ("part: {rates: [1, 0]}", "part.rates must be above 0, not 0"),
        ("parts: [{}, {count: -1}]", "parts[1].count must be at least 1, not -1"),
        ("part: {workers: -1}", "part.workers must be at least 0, not -1"),
        ("part: {workers: 1000000}", f"part.workers must be at most {most_workers()} on this"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_group(text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        from_yaml(Whole, text)
    assert str(error.value).startswith(said)


@pytest.mark.parametrize(
    ("kind", "sound", "wrong"),
    [
        (at_least(16), ["16", "400"], {"15": "at least 16", "1.5": "whole number", "x": "number"}),
        (percent, ["1", "100"], {"0": r"in \[1, 100\]", "101": r"in \[1, 100\]"}),
        (fraction, ["0", "0.5"], {"1": r"in \[0, 1\)", "-0.1": "in", "nan": "in", "x": "number"}),
    ],
    ids=["at_least", "percent", "fraction"],
)
def test_numbers_of_commands_are_held_to_their_range(capsys, kind, sound, wrong) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--value", type=kind)
    for text in sound:
        assert parser.parse_args([f"--value={text}"]).value == float(text)
    for text, reason in wrong.items():
        with pytest.raises(SystemExit):
            parser.parse_args([f"--value={text}"])
        assert re.search(f"argument --value: .*{reason}", capsys.readouterr().err)


def test_ranges_hold_at_their_ends() -> None:
    check_ranges(Checked(count=1, share=0.0, rates=[1e-9]), share=SHARE_BELOW_1)
    for run in ({"num_workers": 10**6}, {"num_workers": -1}, {"data_timeout": -1.0}, {"seed": -1}):
        with pytest.raises(ConfigError, match=f"run.{next(iter(run))} must be at"):
            RunConfig(**run)
    for optim in ({"momentum": 1.5}, {"betas": [0.9, 1.0]}, {"lr": math.nan}, {"gamma": 0.0}):
        with pytest.raises(ConfigError, match=f"optim.{next(iter(optim))} must be"):
            OptimConfig(**optim)


@settings(deadline=None)
@given(
    st.builds(
        Config,
        optim=st.builds(
            Inner,
            lr=st.floats(allow_nan=False, allow_infinity=False),
            kind=st.sampled_from(["constant", "cosine"]),
            milestones=st.lists(st.integers(0, 500), max_size=4),
            clip=st.none() | st.floats(1e-9, 1e9),
        ),
        extra=st.none() | st.builds(Inner, lr=st.floats(0, 1)),
        name=st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc"))),
        seed=st.integers(0, 2**40),
        fast=st.booleans(),
    )
)
def test_yaml_round_trip(config: Config) -> None:
    assert from_yaml(Config, to_yaml(config)) == config


@pytest.mark.parametrize("config", [RunConfig(), OptimConfig(name="lars", clip_grad_norm=1.0)])
def test_the_engines_configs_round_trip(config: RunConfig | OptimConfig) -> None:
    assert from_yaml(type(config), to_yaml(config)) == config


def test_help_keeps_the_lines_of_the_description(capsys: pytest.CaptureFixture[str]) -> None:
    text = "Trains a thing.\n\n    python train.py --config FILE \\\\\n        --seed 1\n\nOr not."
    with pytest.raises(SystemExit):
        parse(Config, ["--help"], description=text)
    assert f"\n{text}\n" in capsys.readouterr().out


def test_help_shows_every_key_with_its_meaning(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        parse(Config, ["--help"], description="Trains a thing.")
    text = capsys.readouterr().out
    assert leaving.value.code == 0
    for part in ("Trains a thing.", "--config FILE", "--optim.lr", "learning rate", "the seed"):
        assert part in text


def test_run_main_turns_our_errors_into_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise DataError("a.mp4", "broken\nin two")

    with pytest.raises(SystemExit) as leaving:
        run_main(fail)
    captured = capsys.readouterr()
    assert leaving.value.code == 2
    assert captured.err == "error: a.mp4: broken in two\n" and captured.out == ""


def test_run_main_keeps_other_exit_codes() -> None:
    def leave(code: int) -> None:
        raise SystemExit(code)

    def interrupt() -> None:
        raise KeyboardInterrupt

    for main, expected in [
        (lambda: leave(143), 143),
        (interrupt, 130),
        (lambda: "fine", 0),
    ]:
        with pytest.raises(SystemExit) as leaving:
            run_main(main)
        assert leaving.value.code == expected


def raising(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x/a.json"),
            "runs/x/a.json: No space left on device: free some space",
        ),
        (
            PermissionError(errno.EROFS, "Read-only file system", "/ro"),
            "/ro: Read-only file system: choose a folder that can be written",
        ),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "lower num_workers"),
        (ValueError("size must be\n even"), "size must be even"),
        (OverflowError("int too large to convert"), "int too large to convert"),
        (MemoryError(), "out of memory (no more is to be had): lower the batch size"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 B"),
            "out of memory (DefaultCPUAllocator: can't allocate",
        ),
        (
            RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [::1]:1"),
            "lost contact with another rank",
        ),
        (
            OSError("Caught OSError in DataLoader worker process 0.\nTraceback\nOSError: gone"),
            "error: OSError: gone",
        ),
    ],
)
def test_run_main_turns_what_a_user_can_cause_into_one_line(
    error: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as leaving:
        run_main(raising(error))
    line = capsys.readouterr().err
    assert leaving.value.code == 2
    assert said in line and line.startswith("error: ") and line.count("\n") == 1


def test_the_line_says_which_of_our_lines_met_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_main(lambda: locks.hold("a\0b").__enter__())
    said = capsys.readouterr().err
    assert re.search(r"\(ValueError at ndavid/locks.py:\d+; --debug shows more\)", said)


def test_debug_shows_the_traceback_too_and_is_no_option_of_the_script(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NDAVID_DEBUG", "0")
    monkeypatch.setattr(sys, "argv", ["script.py", "--seed", "3", "--debug"])
    seen: list[Config] = []

    def main() -> None:
        seen.append(parse(Config))
        raise OSError(errno.ENOSPC, "No space left on device", "x")

    for _ in range(2):  # the second time by the environment, as a child process has it
        with pytest.raises(SystemExit) as leaving:
            run_main(main)
        lines = capsys.readouterr().err.splitlines()
        assert leaving.value.code == 2 and seen.pop().seed == 3
        assert lines[0].startswith("Traceback") and lines[-1].startswith("error: x: No space")


@pytest.mark.parametrize("kind", [ZeroDivisionError, TypeError, KeyError, AssertionError])
def test_run_main_hides_no_programming_error(kind: type[Exception]) -> None:
    with pytest.raises(kind):
        run_main(raising(kind("a fault of ours")))
    with pytest.raises(RuntimeError, match="shapes"):
        run_main(raising(RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


def test_a_script_with_a_misspelt_key_ends_with_2_and_no_traceback() -> None:
    script = (
        "from ndavid.config import parse, run_main\n"
        "from dataclasses import dataclass\n"
        "@dataclass(kw_only=True)\n"
        "class C:\n    epochs: int = 1\n"
        "run_main(lambda: parse(C))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--epoch", "3"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == "error: command line: unknown option '--epoch'; did you mean 'epochs'?\n"


def test_what_was_given_is_known_whatever_its_value(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("nda: {spec: reverse}\nrun: {epochs: 1}\n")
    words = ["--optim.lr=0.1", "--run.seed", "-1", "--model", "{depth: 3, head: {dim: 2}}"]
    words += ["--data.split", "a: [", "--trackers+=x", "--config", str(file)]
    assert given_keys(words) == {
        *("nda.spec", "run.epochs", "optim.lr", "run.seed"),
        *("model.depth", "model.head.dim", "data.split", "trackers"),
    }
    assert given_keys([]) == set()


def test_the_keys_that_a_resumed_run_may_change_are_told_by_their_fields() -> None:
    @dataclass
    class Whole:
        run: RunConfig = field(default_factory=RunConfig)
        place: str = changeable("here", when="with the same data")
        size: int = 3

    found = changeable_keys(Whole)
    assert found["place"] == "with the same data" and "size" not in found
    assert found["run.epochs"] == "always" and found["run.device"] == "elsewhere"
    assert found["run.batch_size"] == "elsewhere, in other batches"
    assert "run.seed" not in found and "run.deterministic" not in found
