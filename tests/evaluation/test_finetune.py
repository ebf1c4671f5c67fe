"""Fine-tuning on real mp4 files, end to end: what it learns, freezes, resumes and refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ndavid.config import to_yaml
from ndavid.data.config import DataConfig
from ndavid.data.transforms import AugmentConfig
from ndavid.engine import checkpoint as engine_checkpoint
from ndavid.engine.optim import OptimConfig, build_optimizer, set_lr
from ndavid.engine.run_config import RunConfig
from ndavid.errors import CheckpointError, ConfigError, DataError
from ndavid.evaluation.classify import classify, confusion_matrix
from ndavid.evaluation.finetune import FinetuneConfig, run
from ndavid.evaluation.outcomes import read_outcomes
from ndavid.evaluation.pretrained import ClassifierConfig, load_classifier
from ndavid.evaluation.protocol import Result, load_result
from ndavid.evaluation.training import FrozenEncoderMethod, parameter_groups
from ndavid.evaluation.views import ViewsConfig, open_manifest, views_dataset
from ndavid.files import file_sha256
from ndavid.methods.classification import ClassificationMethod
from ndavid.models.dpc import DPC, DpcConfig
from ndavid.models.weights.checkpoint import open_checkpoint
from ndavid.models.weights.release import save_pretrained

ROOT = Path(__file__).resolve().parents[2]
VIEWS = ViewsConfig(
    num_blocks=2, block_len=3, frame_stride=2, size=32, clips=2, crops=1, num_workers=0
)

Build = Callable[..., FinetuneConfig]


@pytest.fixture
def config(coloured: Path, tmp_path: Path) -> Build:
    """`config(epochs=.., optim=.., **changes)`: a run of seconds on the coloured clips."""

    def build(epochs: int = 1, **changes: object) -> FinetuneConfig:
        base = FinetuneConfig(
            output=str(tmp_path / "out"),
            data=DataConfig(root=str(coloured)),
            model=ClassifierConfig(encoder="resnet2d3d10_half", head="dpc", dropout=0.1),
            views=VIEWS,
            augment=AugmentConfig(preset="none", size=32),
            optim=OptimConfig(name="adamw", lr=2e-3, weight_decay=1e-3),
            run=RunConfig(epochs=epochs, batch_size=4, num_workers=0, log_every=1, device="cpu"),
        )
        return dataclasses.replace(base, **changes)  # type: ignore[arg-type]

    return build


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(0)
    config = DpcConfig(encoder="resnet2d3d10_half", num_blocks=4, block_len=3, pred_steps=1)
    save_pretrained(DPC(config), folder)
    return folder


def weights_of(output: Path) -> dict[str, torch.Tensor]:
    return engine_checkpoint.load(output).model


def test_it_learns_colours_and_writes_everything_down(config: Build, tmp_path: Path) -> None:
    optim = OptimConfig(name="adamw", lr=1e-3, weight_decay=1e-3, schedule="cosine")
    length = RunConfig(epochs=16, batch_size=6, num_workers=0, device="cpu")
    result = run(config(optim=optim, run=length))
    assert result.task == "scratch" and result.checkpoint == {}
    assert result.metrics["top1"].value == 1.0
    assert result.metrics["top1"].n == result.protocol.num_videos == 6
    assert result.chance == pytest.approx(1 / 3)
    assert result.protocol.selection == "last step (32)"
    assert result.protocol.clips == 2 and result.protocol.manifest.endswith("/manifest.csv")
    assert result.details["confusion"] == [[2, 0, 0], [0, 2, 0], [0, 0, 2]]
    assert load_result(tmp_path / "out" / "result.json") == result
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Confusion matrix" in page and "Training curves" in page


def test_from_a_checkpoint_with_its_digest_and_keys(
    config: Build, pretrained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = run(config(checkpoint=str(pretrained)))
    assert result.task == "finetune"
    assert result.checkpoint["path"] == str(pretrained / "model.safetensors")
    assert len(result.checkpoint["sha256"]) == 64
    assert result.details["key_report"]["fraction"] == 1.0
    assert "100.0% of the model's keys loaded" in capsys.readouterr().out
    stored = yaml.safe_load((tmp_path / "out" / "fold_1" / "config.yaml").read_text())
    assert stored["checkpoint_sha256"] == result.checkpoint["sha256"]


@pytest.mark.parametrize("head", ["dpc", "pool"])
def test_a_linear_probe_leaves_the_encoder_to_the_bit(
    config: Build, pretrained: Path, tmp_path: Path, head: str
) -> None:
    model = ClassifierConfig(head=head)  # type: ignore[arg-type]
    run(config(epochs=2, checkpoint=str(pretrained), mode="linear", model=model))
    trained = weights_of(tmp_path / "out" / "fold_1")
    before = load_file(pretrained / "model.safetensors")
    frozen = [name for name in trained if not name.startswith("classifier.head.")]
    assert any(name.endswith("running_mean") for name in frozen)
    for name in frozen:
        assert torch.equal(trained[name], before[name.removeprefix("classifier.")]), name
    loaded = load_classifier(open_checkpoint(pretrained), model, VIEWS, 3, seed=0)
    fresh = loaded.classifier.head.fc.weight
    assert not torch.equal(trained["classifier.head.fc.weight"], fresh)


def test_a_frozen_encoder_stays_in_eval_mode() -> None:
    config = ClassifierConfig(encoder="resnet2d3d10_half", head="dpc")
    method = FrozenEncoderMethod(load_classifier(None, config, VIEWS, 3, seed=0).classifier)
    method.train()
    modes = {name: module.training for name, module in method.classifier.named_modules() if name}
    assert all(training == name.startswith("head") for name, training in modes.items())


@pytest.mark.parametrize("head", ["dpc", "pool"])
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0])
def test_the_encoders_learning_rate_really_applies(head: str, scale: float) -> None:
    config = ClassifierConfig(encoder="resnet2d3d10_half", head=head)  # type: ignore[arg-type]
    method = ClassificationMethod(load_classifier(None, config, VIEWS, 3, seed=0).classifier)
    before = {name: tensor.clone() for name, tensor in method.named_parameters()}
    groups = parameter_groups(method, scale)
    # No weight decay, no momentum: a step moves a parameter by minus its rate times its gradient.
    plain = OptimConfig(name="momentum", lr=1.0, momentum=0.0, weight_decay=0.0)
    optimizer = build_optimizer(method, plain, groups)
    set_lr(optimizer, 1.0)
    for parameter in method.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in method.named_parameters():
        rate = 1.0 if name.startswith("classifier.head") else scale
        torch.testing.assert_close(parameter.detach(), before[name] - rate, msg=name)


def test_a_scale_of_zero_moves_only_the_head_in_a_real_run(
    config: Build, pretrained: Path, tmp_path: Path
) -> None:
    optim = OptimConfig(name="adamw", lr=1e-2, encoder_lr_scale=0.0)
    run(config(checkpoint=str(pretrained), optim=optim))
    trained = weights_of(tmp_path / "out" / "fold_1")
    before = load_file(pretrained / "model.safetensors")
    assert torch.equal(trained["classifier.encoder.conv1.weight"], before["encoder.conv1.weight"])
    gate = "agg.cell.update_gate.weight"
    assert torch.equal(trained[f"classifier.{gate}"], before[gate])


def test_validation_comes_from_train_groups_and_picks_the_epoch(
    config: Build, tmp_path: Path
) -> None:
    result = run(config(epochs=3, validation=0.25))
    assert "3 videos of held-out train groups" in result.protocol.selection
    assert result.details["training"]["items"] == 9
    records = [
        json.loads(line)
        for line in (tmp_path / "out" / "fold_1" / "metrics.jsonl").read_text().splitlines()
    ]
    scores = [record["val/top1"] for record in records if "val/top1" in record]
    assert len(scores) == 3
    best = 1 + scores.index(max(scores))
    assert result.protocol.selection.startswith(f"epoch {best}, ")


def test_the_result_names_the_weights_that_were_scored(
    config: Build, pretrained: Path, tmp_path: Path
) -> None:
    def check(result: Result, file: Path, selection: str) -> dict[str, torch.Tensor]:
        assert result.tested == {"path": str(file), "sha256": file_sha256(file)}
        assert result.tested["sha256"] != result.checkpoint["sha256"]
        assert selection in result.protocol.selection
        page = (Path(result.config["output"]) / "report.html").read_text()
        assert "tested weights" in page and result.tested["sha256"][:16] in page
        return load_file(file)

    averaging = RunConfig(epochs=2, batch_size=4, num_workers=0, device="cpu", ema_decay=0.9)
    common = {"checkpoint": str(pretrained), "epochs": 2}
    for name, changes in {
        "last": {},
        "average": {"run": averaging},
        "best": {"validation": 0.25},
    }.items():
        output = tmp_path / name
        result = run(config(**common, output=str(output), **changes))
        fold = output / "fold_1"
        step = Path(result.details["training"]["checkpoint"])
        expected = {
            "last": (step / "model.safetensors", "last step"),
            "average": (step / "ema.safetensors", "averaged weights"),
            "best": (fold / "best.safetensors", "the best of those scored"),
        }[name]
        weights = check(result, *expected)
        # The file's weights give the result's numbers.
        opened = open_checkpoint(pretrained)
        loaded = load_classifier(opened, ClassifierConfig(), VIEWS, 3, seed=0)
        method = ClassificationMethod(loaded.classifier)
        method.load_state_dict(weights)
        manifest = open_manifest(DataConfig(**result.config["data"]))
        dataset, _ = views_dataset(manifest.select("test", 1), manifest, VIEWS)
        predictions = classify(method, dataset, device=torch.device("cpu"))
        assert confusion_matrix(predictions).tolist() == result.details["confusion"]


def pretraining(folder: Path, manifest: Path, fold: int, seed: int) -> Path:
    """A pretraining run on the train split of a fold, with its picture of negatives."""
    torch.manual_seed(seed)
    dpc = DPC(DpcConfig(encoder="resnet2d3d10_half", num_blocks=4, block_len=3, pred_steps=1))
    state = {f"dpc.{name}": tensor for name, tensor in dpc.state_dict().items()}
    engine_checkpoint.save(folder, 3, model=state, state={"step": 3})
    model = {"encoder": "resnet2d3d10_half", "num_blocks": 4, "block_len": 3, "pred_steps": 1}
    data = {"source": "clips", "root": str(manifest), "fold": fold, "split": "train"}
    values = {"data": data, "model": model, "nda": {"spec": "stitch"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    Image.new("RGB", (8, 8), "red").save(folder / "negatives.png")
    return folder


def test_one_pretraining_for_two_folds_is_reported_as_a_leak(
    config: Build, coloured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = pretraining(tmp_path / "pre1", coloured, fold=1, seed=1)
    result = run(config(checkpoint=str(source), folds=[1, 2]))
    (leak,) = [note for note in result.protocol.notes if "LEAK" in note]
    assert "6 of the 6 test videos of fold 2" in leak
    seen = [fold["pretraining"]["test_videos_seen"] for fold in result.details["folds"]]
    assert seen == [0, 6]
    assert leak in capsys.readouterr().out
    page = (tmp_path / "out" / "report.html").read_text()
    assert "LEAK" in page and "Negatives of the pretraining" in page and "stitch" in page


def test_one_pretraining_a_fold_is_clean(config: Build, coloured: Path, tmp_path: Path) -> None:
    each = [pretraining(tmp_path / f"pre{fold}", coloured, fold, seed=fold) for fold in (1, 2)]
    result = run(config(checkpoint=str(tmp_path / "pre{fold}"), folds=[1, 2]))
    assert not [note for note in result.protocol.notes if "LEAK" in note]
    sources = [fold["checkpoint"]["path"] for fold in result.details["folds"]]
    assert sources == [str(p / "checkpoints" / "step_3" / "model.safetensors") for p in each]
    assert result.checkpoint["path"] == ", ".join(sources)
    with pytest.raises(CheckpointError, match="pre3"):
        run(
            config(checkpoint=str(tmp_path / "pre{fold}"), folds=[1, 3], output=str(tmp_path / "x"))
        )
    assert not (tmp_path / "x").exists(), "looked for before the first fold is trained"


def test_the_test_split_cannot_choose_the_epoch(
    config: Build, coloured: Path, tmp_path: Path
) -> None:
    # With every test label changed, the same epoch with the same weights is chosen.
    honest = run(config(epochs=2, validation=0.25))
    lines = (coloured / "manifest.csv").read_text().splitlines()
    swapped = [
        line.replace(",0,Red,", ",1,Green,") if ",test,train" in line else line for line in lines
    ]
    assert swapped != lines
    other = tmp_path / "other"
    other.mkdir()
    (other / "manifest.csv").write_text("\n".join([f"# root: {coloured}", *swapped]) + "\n")
    (other / "classes.txt").write_text((coloured / "classes.txt").read_text())
    changed = run(
        config(
            epochs=2,
            validation=0.25,
            data=DataConfig(root=str(other)),
            output=str(tmp_path / "out2"),
        )
    )
    assert changed.protocol.selection == honest.protocol.selection
    first, second = weights_of(tmp_path / "out/fold_1"), weights_of(tmp_path / "out2/fold_1")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert changed.metrics != honest.metrics


def test_folds_are_trained_apart_and_averaged(config: Build, tmp_path: Path) -> None:
    result = run(config(folds=[1, 2]))
    each = [fold["metrics"]["top1"]["value"] for fold in result.details["folds"]]
    assert result.metrics["top1"].value == pytest.approx(sum(each) / 2)
    assert result.metrics["top1"].n == 12
    assert sum(map(sum, result.details["confusion"])) == 12
    assert (tmp_path / "out" / "fold_2" / "metrics.jsonl").exists()


def test_paper_compat_is_labelled_and_scores_full_batches_only(config: Build) -> None:
    # 6 test videos of 14 frames over a span of 12: 2 are drawn (30%), in batches of 2.
    result = run(config(epochs=2, protocol="paper_compat", paper_batch_size=2))
    assert result.protocol.name == "paper_compat"
    assert result.metrics["top1"].n == 2
    assert "6 test videos -> 6 longer than a clip -> 2 drawn" in " ".join(result.protocol.notes)
    assert "test subset itself (questionable)" in result.protocol.selection
    # The number reported is the one that chose the epoch.
    assert result.protocol.selection.endswith(f"{100 * result.metrics['top1'].value:.2f}%")


def test_a_run_again_only_tests_again(config: Build, tmp_path: Path) -> None:
    first = run(config(epochs=2))
    saved = weights_of(tmp_path / "out" / "fold_1")
    views = dataclasses.replace(VIEWS, clips=1, crops=3)
    again = run(config(epochs=2, views=views))
    assert again.details["training"] == first.details["training"]
    assert (again.protocol.clips, again.protocol.crops) == (1, 3)
    assert all(
        torch.equal(tensor, saved[name])
        for name, tensor in weights_of(tmp_path / "out" / "fold_1").items()
    )


def test_other_weights_under_the_same_output_are_refused(config: Build, pretrained: Path) -> None:
    run(config())
    with pytest.raises(ConfigError, match="checkpoint"):
        run(config(checkpoint=str(pretrained)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "scratch", "checkpoint": "x"}, "takes no checkpoint"),
        ({"folds": []}, "folds"),
        ({"folds": [1, 1]}, "once"),
        ({"augment": AugmentConfig(size=64)}, "augment.size is 64 and views.size 32"),
        ({"protocol": "paper_compat", "validation": 0.2}, "paper_compat"),
    ],
)
def test_settings_that_contradict_each_other(
    config: Build, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_a_fold_that_does_not_exist(config: Build) -> None:
    with pytest.raises(ConfigError, match="no fold 7"):
        run(config(folds=[7]))


def test_a_test_video_that_is_gone_is_named_before_it_can_change_a_number(
    config: Build, coloured: Path, tmp_path: Path
) -> None:
    text = (coloured / "manifest.csv").read_text()
    other = tmp_path / "manifest.csv"
    other.write_text(f"# root: {coloured}\n" + text.replace("v_Red_g00_c01.mp4", "gone.mp4"))
    with pytest.raises(DataError, match=r"gone\.mp4: cannot be evaluated"):
        run(config(data=DataConfig(root=str(other))))
    views = dataclasses.replace(VIEWS, on_bad="skip")
    result = run(config(data=DataConfig(root=str(other)), views=views))
    assert (result.protocol.num_videos, result.protocol.num_bad) == (5, 1)
    assert result.metrics["top1"].n == 5


def test_the_script_says_one_line_and_exits_with_2(tmp_path: Path, coloured: Path) -> None:
    where = ("--data.root", str(coloured), "--output", str(tmp_path / "out"))
    gone = ("--checkpoint", str(tmp_path / "gone"))
    done = forked.call(ROOT / "eval" / "finetune.py", *where, *gone, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    assert done.stderr == f"error: {tmp_path / 'gone'}: no such file or folder\n"


@pytest.mark.slow
def test_two_ranks_train_and_score_each_video_once(
    coloured: Path, tmp_path: Path, config: Build
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config(epochs=2, validation=0.25)))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc_per_node", "2", "eval/finetune.py"),
            *("--config", str(path), "--run.batch_size", "2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert done.returncode == 0, done.stderr
    result = load_result(tmp_path / "out" / "result.json")
    assert result.metrics["top1"].n == 6
    assert result.environment["world_size"] == 2
    assert done.stdout.count("top1 ") == 1
    tested = [record.path for record in open_manifest(str(coloured)).select("test", 1)]
    assert [outcome.item for outcome in read_outcomes(tmp_path / "out" / "outcomes.csv")] == tested


def test_every_trained_parameter_is_in_a_group() -> None:
    config = ClassifierConfig(encoder="resnet2d3d10_half", head="dpc")
    method = ClassificationMethod(load_classifier(None, config, VIEWS, 3, seed=0).classifier)
    method.classifier.extra = nn.Linear(1, 1)
    with pytest.raises(AssertionError):
        parameter_groups(method, 1.0)
