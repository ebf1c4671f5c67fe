"""A discriminator's scores, and its evaluation end to end on real files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from ndavid.checkpoint_files import COMPLETE_FILE, FOLDER, MODEL_FILE
from ndavid.config import from_yaml, to_yaml
from ndavid.data.config import DataConfig
from ndavid.data.images import open_images
from ndavid.errors import CheckpointError, ConfigError, DataError
from ndavid.evaluation.anomaly import SCORES_FILE, AnomalyConfig, run
from ndavid.evaluation.anomaly_score import AnomalyScore
from ndavid.evaluation.image_views import ImageViews, ImageViewsConfig
from ndavid.evaluation.other_images import CorruptedImages, parse_others, parse_source
from ndavid.evaluation.protocol import load_result
from ndavid.models.gan.model import Gan, GanConfig

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "eval" / "configs").glob("*_anomaly.yaml"))
SMALL = GanConfig(
    architecture="sngan", latent_dim=4, generator_channels=2, discriminator_channels=4
)
VIEWS = ImageViewsConfig(size=32, resize=32, num_workers=0)


def drawn_gan(config: GanConfig, seed: int = 0) -> Gan:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Gan(config)


def write_run(folder: Path, gan: Gan, config: GanConfig, data: dict, nda: str = "") -> Path:
    """A run's folder as the engine leaves it, with one checkpoint."""
    step = folder / FOLDER / "step_7"
    step.mkdir(parents=True)
    state = {f"gan.{name}": tensor.clone() for name, tensor in gan.state_dict().items()}
    save_file(state, step / MODEL_FILE)
    content = (step / MODEL_FILE).read_bytes()
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (step / COMPLETE_FILE).write_text(json.dumps({"step": 7, "files": {MODEL_FILE: entry}}))
    values = {"model": dataclasses.asdict(config), "data": data, "nda": {"spec": nda}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


@pytest.fixture(scope="module")
def trained(coloured_images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose discriminator has been taught coloured squares against white noise."""
    gan = drawn_gan(SMALL)
    source = open_images(DataConfig(source="folder", root=str(coloured_images)))
    real = torch.stack([source.read(k) for k in range(len(source))]) / 127.5 - 1
    draws = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(gan.discriminator.parameters(), lr=2e-3, betas=(0.0, 0.9))
    for _ in range(25):
        noise = torch.rand(real.shape, generator=draws) * 2 - 1
        loss = (1 - gan.discriminator(real)).relu().mean()
        loss = loss + (1 + gan.discriminator(noise)).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    data = {"source": "folder", "root": str(coloured_images), "split": "train"}
    return write_run(tmp_path_factory.mktemp("runs") / "gan", gan, SMALL, data, "jigsaw:grid=4")


def config(trained: Path, coloured_images: Path, output: Path, **changes: object) -> AnomalyConfig:
    base = AnomalyConfig(
        output=str(output),
        checkpoint=str(trained),
        data=DataConfig(source="folder", root=str(coloured_images), split="test"),
        others=[f"flat:root={coloured_images},split=far"],
        nda=["jigsaw:grid=4"],
        resamples=50,
        device="cpu",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


# ---- scores -------------------------------------------------------------------------------------


def test_the_score_is_minus_d_under_the_training_normalisation() -> None:
    net = drawn_gan(SMALL).discriminator.eval()
    images = torch.randint(256, (5, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    with torch.inference_mode():
        found = AnomalyScore(net)(images)
        assert found.shape == (5, 1)
        torch.testing.assert_close(found[:, 0], -net(images / 127.5 - 1))
        # What the paper's code does instead is another number.
        assert not torch.allclose(found[:, 0], -net(images / 255), rtol=1e-3)


@pytest.mark.parametrize("over_labels", ["max", "mean"])
def test_a_conditional_discriminator_is_asked_about_every_class(over_labels) -> None:
    net = drawn_gan(dataclasses.replace(SMALL, num_classes=3)).discriminator.eval()
    images = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(1))
    images = images.to(torch.uint8)
    with torch.inference_mode():
        logits = torch.stack(
            [net(images / 127.5 - 1, torch.full((4,), label)) for label in range(3)], dim=1
        )
        wanted = logits.amax(1) if over_labels == "max" else logits.mean(1)
        torch.testing.assert_close(AnomalyScore(net, over_labels)(images)[:, 0], -wanted)


def test_corrupted_images_depend_on_seed_and_index_only(coloured_images: Path) -> None:
    source = open_images(DataConfig(source="folder", root=str(coloured_images), split="test"))
    whole = ImageViews(source, VIEWS)
    first, again, other = (
        CorruptedImages(source, VIEWS, "gaussian_noise", 3, seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first[4]["image"], again[4]["image"])
    assert not torch.equal(first[4]["image"], other[4]["image"])
    assert not torch.equal(first[4]["image"], whole[4]["image"])
    assert (first[4]["label"], first[4]["index"]) == (whole[4]["label"], 4)


# ---- end to end ---------------------------------------------------------------------------------


def test_noise_is_told_from_squares(trained: Path, coloured_images: Path, tmp_path: Path) -> None:
    result = run(config(trained, coloured_images, tmp_path))
    assert load_result(tmp_path / "result.json") == result
    far = f"{coloured_images.stem} far"
    columns = (far, "NDA jigsaw:grid=4")
    assert set(result.metrics) == {f"{m} {c}" for m in ("AUROC", "AUPR", "FPR95") for c in columns}
    assert result.metrics[f"AUROC {far}"].value > 0.95
    assert result.metrics[f"FPR95 {far}"].value < 0.2
    assert result.metrics[f"AUROC {far}"].n == 18 + 24
    assert result.details["sets"][far]["AUPR of guessing"] == pytest.approx(24 / 42)
    assert result.checkpoint["sha256"] and result.details["step"] == 7
    assert "pixels in [-1, 1]" in result.protocol.averaging
    notes = " ".join(result.protocol.notes)
    assert "trained on jigsaw:grid=4 as negatives" in notes and "in no mean" in notes
    assert "LEAK" not in notes
    scores = load_file(tmp_path / SCORES_FILE)
    assert {name: len(rows) for name, rows in scores.items()} == {
        "test": 18,
        far: 24,
        "NDA jigsaw:grid=4": 18,
    }
    assert float(scores[far].median()) > float(scores["test"].median())
    page = (tmp_path / "report.html").read_text()
    assert f"Scores: {far}" in page and "Scores: NDA jigsaw:grid=4" in page


def test_means_are_of_other_sets_alone(
    trained: Path, coloured_images: Path, tmp_path: Path
) -> None:
    others = [f"flat:root={coloured_images},split={split}" for split in ("far", "test")]
    result = run(config(trained, coloured_images, tmp_path, others=others))
    name = coloured_images.stem
    mean = result.metrics["AUROC mean of the other sets"].value
    both = [result.metrics[f"AUROC {name} {split}"].value for split in ("far", "test")]
    assert both[1] == 0.5 and mean == pytest.approx(sum(both) / 2)


def test_corruptions_made_here(trained: Path, coloured_images: Path, tmp_path: Path) -> None:
    changes = {
        "others": [],
        "nda": [],
        "corruptions": ["gaussian_noise", "contrast"],
        "severities": [1, 5],
        "max_images": 12,
    }
    result = run(config(trained, coloured_images, tmp_path, **changes))
    assert set(result.metrics) == {
        f"{m} mean of made corruptions" for m in ("AUROC", "AUPR", "FPR95")
    }
    grid = result.details["corruptions"]
    assert set(grid) == {"gaussian_noise", "contrast"}
    values = [grid[name][severity]["AUROC"]["value"] for name in grid for severity in ("1", "5")]
    assert values[1] > values[0], "white noise is what it was taught to tell"
    headline = result.metrics["AUROC mean of made corruptions"]
    assert headline.value == pytest.approx(sum(values) / 4) and headline.n == 12
    by_severity = result.details["severities"]["5"]["AUROC"]["value"]
    assert by_severity == pytest.approx((values[1] + values[3]) / 2)
    assert any("must not be compared" in note for note in result.protocol.notes)
    assert any("At most 12 images" in note for note in result.protocol.notes)
    assert "AUROC by severity" in (tmp_path / "report.html").read_text()


def write_cifar_c(folder: Path, source: DataConfig) -> Path:
    """CIFAR-10-C's layout: the test images, noisier at each severity."""
    images = open_images(source)
    pixels = torch.stack([images.read(k) for k in range(len(images))]).permute(0, 2, 3, 1).numpy()
    draws = np.random.default_rng(0)
    noisy = [
        np.clip(pixels + draws.normal(0, 25 * severity, pixels.shape), 0, 255).astype(np.uint8)
        for severity in range(5)
    ]
    folder.mkdir()
    np.save(folder / "noise.npy", np.concatenate(noisy))
    np.save(folder / "labels.npy", np.tile(images.labels.numpy(), 5))
    return folder


def test_cifar_c_by_corruption_and_severity(
    trained: Path, coloured_images: Path, tmp_path: Path
) -> None:
    data = DataConfig(source="folder", root=str(coloured_images), split="test")
    folder = write_cifar_c(tmp_path / "CIFAR-10-C", data)
    changes = {"others": [], "nda": [], "cifar_c": str(folder), "corruptions": ["all"]}
    settings = config(trained, coloured_images, tmp_path / "out", **changes)
    result = run(settings)
    by_severity = [result.details["severities"][str(s)]["AUROC"]["value"] for s in range(1, 6)]
    assert by_severity[0] == 0.5, "the files' first severity is the test set itself"
    assert by_severity[4] > 0.8
    assert "AUROC mean of CIFAR-10-C" in result.metrics
    assert not any("not of the test images" in note for note in result.protocol.notes)
    # The GAN's classes are chosen from the files too.
    chosen = dataclasses.replace(settings, data=dataclasses.replace(data, classes=["Green"]))
    part = run(chosen)
    assert part.metrics["AUROC mean of CIFAR-10-C"].n == 6
    notes = " ".join(part.protocol.notes)
    assert "trained on the classes all, and is tested on Green" in notes


def test_copies_follow_their_originals_where_images_are_unreadable(
    trained: Path, tmp_path: Path, coloured_images: Path
) -> None:
    images = tmp_path / "images" / "test"
    for number, path in enumerate(sorted((coloured_images / "test").rglob("*.png"))):
        images.mkdir(parents=True, exist_ok=True)
        (images / f"{number:02d}.png").write_bytes(path.read_bytes() if number != 5 else b"")
    changes = {
        "data": DataConfig(source="flat", root=str(images.parent), split="test"),
        "corruptions": ["contrast"],
        "severities": [5],
        "others": [],
    }
    with pytest.raises(DataError, match="the file is empty"):
        run(config(trained, coloured_images, tmp_path / "a", **changes))
    result = run(config(trained, coloured_images, tmp_path / "b", on_bad="skip", **changes))
    assert result.protocol.num_images == 17 and result.protocol.num_bad == 1
    assert result.metrics["AUROC mean of made corruptions"].n == 17
    # Of the one that is missing there is no copy, nor of those it would have been mixed with.
    assert 13 <= result.details["sets"]["NDA jigsaw:grid=4"]["images"] <= 17


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"others": [], "nda": []}, "name what to compare with"),
        ({"nda": ["jigsw"]}, "did you mean"),
        ({"nda": ["frame_shuffle"]}, "clips"),
        ({"nda": ["stitch", "stitch"]}, "once"),
        ({"others": ["svhn:root=a", "svhn:root=b"]}, "two sets are called 'svhn test'"),
        ({"corruptions": ["gausian_noise"]}, "did you mean 'gaussian_noise'"),
        ({"corruptions": ["contrast", "contrast"]}, "name each once"),
        ({"severities": [0]}, "severities lie from 1 to 5"),
        ({"severities": []}, "severities lie from 1 to 5"),
        ({"cifar_c": "somewhere"}, "cifar_c wants corruptions"),
        ({"resamples": 1}, "resamples be at least 2"),
        ({"checkpoint": ""}, "checkpoint is empty"),
    ],
)
def test_what_cannot_work_is_said_before_images_are_scored(
    trained: Path, coloured_images: Path, tmp_path: Path, changes: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(config(trained, coloured_images, tmp_path / "out", **changes))
    assert not (tmp_path / "out").exists()


def test_files_that_are_not_there(trained: Path, coloured_images: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        run(config(tmp_path / "gone", coloured_images, tmp_path / "out"))
    data = DataConfig(source="folder", root=str(coloured_images), split="test")
    folder = write_cifar_c(tmp_path / "files", data)
    changes = {"cifar_c": str(folder), "corruptions": ["fog"]}
    with pytest.raises(ConfigError, match=r"has no fog\.npy; it holds noise"):
        run(config(trained, coloured_images, tmp_path / "out", **changes))


def test_a_set_that_is_not_there_is_missed_before_others_are_scored(
    trained: Path, coloured_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scored(*arguments: object, **options: object) -> None:
        raise AssertionError("an image was scored")

    monkeypatch.setattr("ndavid.evaluation.anomaly.per_item", scored)
    others = [f"flat:root={coloured_images},split=test", f"flat:root={tmp_path / 'gone'},split="]
    with pytest.raises(DataError, match="no such folder"):
        run(config(trained, coloured_images, tmp_path / "out", others=others))


def test_the_gans_own_training_images_are_a_leak(
    trained: Path, coloured_images: Path, tmp_path: Path
) -> None:
    data = DataConfig(source="folder", root=str(coloured_images), split="train")
    result = run(config(trained, coloured_images, tmp_path, data=data))
    assert any(note.startswith("LEAK") for note in result.protocol.notes)


def test_the_script_runs_from_its_config(
    trained: Path, coloured_images: Path, tmp_path: Path
) -> None:
    settings = config(trained, coloured_images, tmp_path / "out")
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(settings))
    assert from_yaml(AnomalyConfig, path) == settings
    done = forked.call(ROOT / "eval" / "anomaly.py", "--config", str(path), cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "FPR95" in done.stdout and "NDA columns" in done.stdout


# ---- configs ------------------------------------------------------------------------------------


def test_sources_may_name_their_classes() -> None:
    found = parse_source("cifar10:root=x,classes=cat+dog")
    assert found == DataConfig(source="cifar10", root="x", split="test", classes=["cat", "dog"])
    assert list(parse_others(["cifar10:root=x,classes=cat", "cifar10:root=x"])) == [
        "cifar10 test cat",
        "cifar10 test",
    ]


def test_sets_may_be_given_names() -> None:
    given = ["Places=flat:root=a/images,split=", "flat:root=b/images,download=true"]
    found = parse_others(given)
    assert list(found) == ["Places", "images test"]
    assert found["Places"].root == "a/images" and not found["Places"].download
    assert found["images test"].download
    with pytest.raises(ConfigError, match="two sets are called 'images test'; give them names"):
        parse_others(["flat:root=a/images", "flat:root=b/images"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_says_how_to_run_it_and_what_to_expect(path: Path) -> None:
    settings = from_yaml(AnomalyConfig, path)
    assert settings.output == "", "it would be one folder for every checkpoint"
    assert settings.data.split == "test"
    assert parse_others(settings.others) or settings.corruptions
    assert settings.nda
    header = [line for line in path.read_text().splitlines() if line.startswith("# ")]
    for words in (
        "eval/anomaly.py",
        f"--config eval/configs/{path.name}",
        f"--output runs/{path.stem}",
        "Hardware: ",
        "Number: ",
    ):
        assert any(words in line for line in header), words


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"cifar10_anomaly", "cifar10_packed_anomaly"}
