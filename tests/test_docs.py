"""The site is built without a warning, its links lead somewhere, and its code does what it says.

Blocks of Python are run on every page. Commands are read by bash, and each script parses its config
and its overrides for real; those about one's own videos, shards, and on the README are run, too,
at a tiny size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import doc_pages
import pytest
import scripts
import torch
from doc_pages import ROOT

from ndavid import cli, losses, nda
from ndavid.config import field_types
from ndavid.data.synthetic import motion_classes, write_motion_clips
from ndavid.errors import NdavidError
from ndavid.evaluation.intervals import Metric
from ndavid.evaluation.protocol import Protocol, Result, load_result
from ndavid.models.encoders.build import build_encoder
from ndavid.models.weights.release import save_pretrained

PAGES = doc_pages.pages()

# Pages that have a test of their own, which runs the commands.
RUN = ("docs/own_videos.md", "docs/shards.md")

_NET = ["--model.num_blocks=3", "--model.block_len=3"]
_VIEWS = ["--views.num_blocks=3", "--views.block_len=3", "--views.size=32", "--views.clips=1"]
_LOOKS = [*_VIEWS, "--views.frame_stride=1", "--views.crops=1", "--views.num_workers=0"]
_FROZEN = ["--model.encoder=resnet2d3d10_half", *_LOOKS]
_SHORT = ["--run.epochs=1", "--run.max_steps=2", "--run.num_workers=0", "--run.precision=no"]
# What makes a script small enough to run here.
SMALL: dict[str, list[str]] = {
    "datasets/prepare.py": ["--quiet", "--short-side=32"],
    "datasets/verify.py": [],
    "datasets/shard.py clips": ["--quiet", "--per-shard=4"],
    "datasets/shard.py check": [],
    "recipes/pretrain_dpc.py": [
        *("--model.encoder=resnet2d3d10_half", *_NET, "--model.pred_steps=1", "--augment.size=32"),
        *("--data.frame_stride=1", "--run.batch_size=4", *_SHORT),
    ],
    "recipes/export.py": ["--kinds=[folder,program]", "--size=32", "--frames=3"],
    "eval/retrieval.py": _FROZEN,
    "eval/linear.py": [*_FROZEN, "--weight_decays=[0.1]"],
    "eval/motion.py": [*_FROZEN, "--weight_decays=[0.1]"],
    "eval/finetune.py": [*_FROZEN, "--augment.size=32", "--run.batch_size=4", *_SHORT],
}
# Options and arguments that name what a command reads.
_READS = re.compile(
    r"--(?:videos|annotations|input|root|manifest|checkpoint|data\.manifest|data\.shards)(?:=(.*))?"
)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, write_clip: Callable[..., Path]) -> Path:
    """A folder that looks like a checkout in which somebody has videos."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("recipes", "eval", "datasets", "docs", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    for split, names in {"train": "abcdef", "test": "gh"}.items():
        for label in ("first_class", "second_class"):
            for name in names:
                write_clip(folder / "my_videos" / split / label / f"{name}.mp4", 24, (48, 64))
    first = folder / "my_videos" / "train" / "first_class"
    (first / "a.mp4").rename(first / "clip.mp4")
    write_motion_clips(folder / "UCF-101", num_clips=4 * len(motion_classes()), size=32)
    (folder / "ucfTrainTestlist").symlink_to("UCF-101")
    return folder


@pytest.fixture(scope="module", autouse=True)
def root_stays_as_it_is() -> Iterator[None]:
    """Nothing that this module does leaves files in the checkout."""
    before = status_of_root()
    yield
    assert status_of_root() - before == set()


def status_of_root() -> set[str]:
    """What git sees beside the commit: changed files, and new ones that it does not ignore."""
    status = ["git", "status", "--porcelain", "--untracked-files=all"]
    return set(subprocess.run(status, cwd=ROOT, capture_output=True, text=True).stdout.splitlines())


def is_ignored(name: str) -> bool:
    """Whether git ignores a path below the root, be it there or not."""
    return not subprocess.run(["git", "check-ignore", "-q", name], cwd=ROOT).returncode


@pytest.fixture
def at_place(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same as the working directory; what scripts set is set back."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", sys.argv)
    return place


@pytest.fixture
def prepared(at_place: Path) -> Path:
    """``data/mine``, which the pages take for granted."""
    if not (at_place / "data" / "mine" / "manifest.csv").exists():
        arguments = ["folder", "--videos", "my_videos", "--output", "data/mine"]
        run_script("datasets/prepare.py", [*arguments, *SMALL["datasets/prepare.py"]])
    return at_place


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html"]
    command += ["docs", str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    built = subprocess.run(
        [sys.executable, *command], cwd=ROOT, capture_output=True, text=True, env=environment
    )
    assert built.returncode == 0, built.stderr
    names = {page for page in PAGES if page.startswith("docs/")}
    assert all((tmp_path / Path(page).relative_to("docs").with_suffix(".html")).exists()
               for page in names)  # fmt: skip
    documented = (tmp_path / "api" / "nda.html").read_text()
    assert [name for name in nda.__all__ if f">{name}<" not in documented] == []
    documented = (tmp_path / "api" / "losses.html").read_text()
    assert [name for name in losses.__all__ if f">{name}<" not in documented] == []
    # Read as types by mistake, help texts would be gone.
    assert "evenly spaced clips a test video" in (tmp_path / "api" / "evaluation.html").read_text()


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    broken = []
    for target in doc_pages.links(page):
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if not file.exists() or (anchor and anchor not in doc_pages.anchors(file)):
            broken.append(target)
    assert not broken


def test_no_block_is_left_out() -> None:
    found = {page: doc_pages.blocks(page) for page in PAGES}
    left_out = [(page, b.line, b.reason) for page in PAGES for b in found[page] if b.reason]
    assert left_out == []
    counts = {
        language: sum(block.language == language for blocks in found.values() for block in blocks)
        for language in ("bash", "python")
    }
    assert counts["bash"] > 40 and counts["python"] > 18, counts


def with_code() -> list[Any]:
    """The pages with code but for those of ``RUN``; one writes hundreds of clips."""
    long = {"datasets/cards/synthetic_motion.md"}
    return [
        pytest.param(page, marks=[pytest.mark.slow] if page in long else [])
        for page in PAGES
        if page not in RUN and doc_pages.blocks(page)
    ]


@pytest.mark.parametrize("page", with_code())
def test_the_code_of_a_page_runs(page: str, prepared: Path, tmp_path: Path) -> None:
    assert follow(page, prepared, tmp_path, run=False) == []


def test_your_own_op_is_drawn_in_an_empty_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "page"}
    with registered_ops():
        for block in doc_pages.blocks("docs/own_ops.md"):
            if "recipes/" not in block.text:  # which needs a checkout
                exec(compile(block.text, "own_ops", "exec", dont_inherit=True), names)
    assert (tmp_path / "runs" / "freeze.png").stat().st_size > 0


def test_your_own_videos_from_files_to_numbers(prepared: Path, tmp_path: Path) -> None:
    done = follow("docs/own_videos.md", prepared, tmp_path, run=True)
    elsewhere = {"datasets/shard.py clips", "datasets/shard.py check", "eval/motion.py"}
    assert set(done) == SMALL.keys() - elsewhere
    assert (prepared / "runs" / "mine-negatives.png").stat().st_size > 0
    assert (prepared / "runs" / "mine-stitch" / "checkpoints" / "step_2").is_dir()
    for name in ("mine-stitch-linear", "mine-stitch-retrieval", "mine-stitch-finetune"):
        result = load_result(prepared / "runs" / name / "result.json")
        assert result.protocol.num_videos == 4 and result.checkpoint
    assert not load_result(prepared / "runs" / "mine-scratch" / "result.json").checkpoint
    assert (prepared / "runs" / "mine-exported" / "encoder.pt2").exists()


def test_shards_are_written_checked_and_trained_from(prepared: Path, tmp_path: Path) -> None:
    done = follow("docs/shards.md", prepared, tmp_path, run=True)
    assert set(done) == {
        "datasets/shard.py clips",
        "datasets/shard.py check",
        "recipes/pretrain_dpc.py",
    }
    assert (prepared / "runs" / "mine-shards" / "checkpoints" / "step_2").is_dir()


@pytest.mark.slow
def test_the_readme_from_videos_to_numbers(prepared: Path, tmp_path: Path) -> None:
    shutil.rmtree(prepared / "runs" / "ucf101-stitch", ignore_errors=True)
    done = follow("README.md", prepared, tmp_path, run=True)
    assert set(done) >= {name for name in SMALL if name.startswith(("datasets/p", "eval"))}
    result = load_result(prepared / "runs" / "ucf101-stitch-linear" / "result.json")
    assert result.checkpoint and result.protocol.num_videos > 0


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("python eval/linear.py --config eval/configs/ucf101_linear.yaml --vews.clips 1", "views"),
        ("python eval/linear.py --config eval/configs/ucf102_linear.yaml", "ucf102_linear.yaml"),
        ("python eval/linear.py --config eval/configs/ucf101_linear.yaml --seed one", "seed"),
        ("torchrun --nproc_per_node 2 recipes/pretrain_dcp.py", "pretrain_dcp.py"),
        ("python datasets/verify.py data/mine --decode-al", "refused"),
        ("accelerate launch --config_file recipes/launch/gpu3.yaml eval/knn.py", "gpu3.yaml"),
        ("make tests", "make tests"),
        ("ndavd preview", "127"),
    ],
)
def test_a_wrong_command_is_found(command: str, found: str, at_place: Path, tmp_path: Path) -> None:
    block = doc_pages.Block("bash", f"for x in 1; do\n  {command}\ndone\n", "", 1)
    with pytest.raises((AssertionError, NdavidError, OSError, subprocess.SubprocessError)) as error:
        take_all(block, "here", tmp_path, run=False)
    assert found in str(error.value)


def test_commands_are_what_bash_makes_of_them(tmp_path: Path) -> None:
    text = 'for n in a b; do\n  python eval/x.py "$n c" \\\n    --k {1..2} # said\ndone\n'
    block = doc_pages.Block("bash", text, "", 1)
    expected = [["python", "eval/x.py", f"{n} c", "--k", "1", "2"] for n in "ab"]
    assert doc_pages.commands(block, tmp_path) == expected


@pytest.mark.parametrize("page", PAGES)
def test_what_commands_write_lies_where_git_does_not_look(page: str) -> None:
    """Shown in blocks or in the text: given as they are, they leave nothing in the root."""
    text = (ROOT / page).read_text()
    written = set(re.findall(r"--(?:run\.)?output[= ]+[\"']?([\w./{}$-]+)", text))
    # DIR, OUT and FILE.npz are for the reader to fill in; a shell's variable has a path in front.
    named = {path for path in written if not re.match(r"[A-Z]{3,}|\$", path)}
    assert [path for path in sorted(named) if not is_ignored(path)] == []


def test_the_keys_that_pages_name_exist() -> None:
    """Dotted keys in backticks, such as `nda.weight`, are keys of some script's config."""
    paths = [path for f in ("recipes", "eval") for path in sorted((ROOT / f).glob("*.py"))]
    known = set()
    for path in paths:
        for value in vars(scripts.load(path)).values():
            if not (isinstance(value, type) and dataclasses.is_dataclass(value)):
                continue
            if value.__name__.endswith("Config"):
                known |= field_types(value).keys()
    groups = {key.partition(".")[0] for key in known if "." in key}
    unknown = set()
    for page in PAGES:
        for code in re.findall(r"`(?:--)?([a-z_]+\.[a-z_.]+)(?=[ :`])", (ROOT / page).read_text()):
            group, _, name = code.partition(".")
            if group in groups and code not in known and not hasattr(nda, name):
                unknown.add((page, code))
    assert len(known) > 100 and not unknown


def follow(page: str, place: Path, folder: Path, *, run: bool) -> list[str]:
    """Takes a page's blocks in turn: runs Python, checks commands, with ``run`` runs them too.

    Returns the names, in ``SMALL``, of the scripts that were run.
    """
    names: dict[str, Any] = {"__name__": "page"}
    done: list[str] = []
    for number, block in enumerate(doc_pages.blocks(page)):
        if block.language == "bash":
            done += take_all(block, page, folder, run=run)
            continue
        names |= stand_ins(page, number, place)
        code = compile("\n" * block.line + block.text, page, "exec", dont_inherit=True)
        with registered_ops(), nothing_left_in(place):
            exec(code, names)
    return done


def take_all(block: doc_pages.Block, page: str, folder: Path, *, run: bool) -> list[str]:
    """Takes the commands of a block in turn; returns the names of those that ran."""
    done = []
    with nothing_left_in(Path.cwd()):
        for words in doc_pages.commands(block, folder):
            done += take(words, f"{page}, line {block.line}: {' '.join(words)}", run=run)
    return done


@contextlib.contextmanager
def nothing_left_in(folder: Path) -> Iterator[None]:
    """In what stands for the root nothing new lies afterwards but what git ignores there."""
    before = set(os.listdir(folder))
    yield
    new = {name for name in set(os.listdir(folder)) - before if not is_ignored(f"{name}/x")}
    assert not new, f"left in the root: {new}"


def take(words: list[str], where: str, *, run: bool) -> list[str]:
    """Checks one command, and runs it if asked to and able to; returns the name of what ran."""
    started = doc_pages.script_of(words)
    if started is None:
        check_program(words, where)
        if run and words[0] == "ndavid":
            assert cli.main(words[1:]) == 0, where
        return []
    check_launcher(words, where)
    scripts.check(*started, where)
    name = runnable(*started) if run else None
    if name is None:
        return []
    run_script(started[0], [*started[1], *SMALL[name]])
    return [name]


def check_program(words: list[str], where: str) -> None:
    """Commands that are no scripts of ours: the target, option or extra must exist."""
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(words[1:]) <= set(targets), where
    elif words[0] == "ndavid":
        cli.build_parser().parse_args(words[1:])
    else:
        assert words[:2] == ["pip", "install"], where
        project = (ROOT / "pyproject.toml").read_text()
        for extra in re.findall(r"\[(\w+)\]", " ".join(words)):
            assert re.search(rf"^{extra} = \[", project, flags=re.MULTILINE), where


def check_launcher(words: list[str], where: str) -> None:
    """The launch file that accelerate is given is there."""
    if "--config_file" in words:
        assert Path(words[words.index("--config_file") + 1]).exists(), where


def runnable(script: str, arguments: list[str]) -> str | None:
    """The script's name in ``SMALL``, if it has one and all that the command reads is there."""
    names = [name for name in (script, f"{script} {arguments[0]}") if name in SMALL]
    reads = []
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        if match := _READS.fullmatch(word):
            reads.append(following if match[1] is None else match[1])
    if script == "datasets/verify.py" or names == ["datasets/shard.py check"]:
        reads.append(arguments[-1])
    there = all(not read or Path(read).exists() for read in reads)
    return names[0] if names and there else None


def run_script(script: str, arguments: list[str]) -> None:
    """Runs a script to its end in this process."""
    sys.argv = [script, *arguments]
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert not end.value.code, f"{script} {' '.join(arguments)}: exit code {end.value.code}"


@contextlib.contextmanager
def registered_ops() -> Iterator[None]:
    """What a page adds to the ops is taken away again."""
    before = dict(nda.OPS)
    try:
        yield
    finally:
        nda.OPS.clear()
        nda.OPS.update(before)


def stand_ins(page: str, number: int, place: Path) -> dict[str, Any]:
    """Names that a page's block takes for granted; files it reads are written."""
    if page == "docs/gan.md":
        return gan_stand_ins(place)[number]
    if page == "docs/negatives_theory.md":
        network = torch.nn.Linear(12, 1)
        images = {"real": torch.rand(4, 3, 2, 2), "fake": torch.rand(4, 3, 2, 2)}
        return {**images, "D": lambda x: network(x.flatten(1)).squeeze(1), "op": nda.Jigsaw()}
    if page == "docs/protocols.md":
        metrics = {"top1": Metric(value=0.5, n=4, low=0.15, high=0.85)}
        result = Result(task="linear_probe", metrics=metrics, protocol=Protocol())
        result.save(place / "runs" / "ucf101-stitch-linear" / "result.json")
    if page == "README.md":
        write_released_weights(place)
        if not (place / "runs" / "ucf101-stitch").exists():
            save_pretrained(build_encoder("resnet2d3d10_half"), place / "runs" / "ucf101-stitch")
    return {}


def gan_stand_ins(place: Path) -> dict[int, dict[str, Any]]:
    """Of the two blocks of Python on the page about GANs, by their number among all blocks."""
    write_released_weights(place)
    loading, looping = (
        k for k, block in enumerate(doc_pages.blocks("docs/gan.md")) if block.language == "python"
    )
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 1))
    return {
        loading: {"latents": torch.randn(2, 12), "labels": torch.tensor([0, 2])},
        looping: {
            "torch": torch,
            "real": torch.rand(4, 3, 8, 8),
            "fake": torch.rand(4, 3, 8, 8),
            "discriminator": lambda x: network(x).squeeze(1),
            "generator": torch.Generator().manual_seed(0),
        },
    }


def write_released_weights(place: Path) -> None:
    """Files laid out as the originals', with random weights."""
    if (place / "G_ema_best.pth").exists():
        return
    originals = {
        name: scripts.load(ROOT / "tests" / "models" / f"test_original_{name}.py")
        for name in ("dpc", "moco", "biggan")
    }
    state = originals["dpc"].original_state(18, running_stats=False)
    file = place / "k400_128_r18_dpc-rnn.pth.tar"
    torch.save({"epoch": 1, "state_dict": state}, file)
    nets = [originals["moco"].original_net("resnet18", 2) for _ in range(2)]
    state = originals["moco"].original_state(*nets)
    originals["moco"].write(place / "moco_v2_800ep_pretrain.pth.tar", state, "resnet18")
    torch.save(originals["biggan"].generator_state(), place / "G_ema_best.pth")
