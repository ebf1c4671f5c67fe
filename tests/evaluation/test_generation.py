"""Generated images measured end to end: from files, from a GAN's checkpoints, with Inception."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import pickle
import socket
from dataclasses import dataclass, field
from pathlib import Path

import forked
import pytest
import torch
from PIL import Image
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from ndavid.config import from_yaml
from ndavid.data.config import DataConfig
from ndavid.data.images import ImageDataset, open_images
from ndavid.data.video import collate
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import generator
from ndavid.engine.run_config import RunConfig
from ndavid.errors import CheckpointError, ConfigError, NdavidError, TrainingError
from ndavid.evaluation.gan_sheets import to_pixels
from ndavid.evaluation.generation import GenerationConfig, _inception_score, run
from ndavid.evaluation.generation_features import classifier_space, inception_space
from ndavid.evaluation.generation_samples import GanSamples, at_most
from ndavid.evaluation.image_views import ImageViewsConfig
from ndavid.evaluation.protocol import load_result
from ndavid.methods.gan import GanMethod
from ndavid.models.batchnorm import drop_running_stats
from ndavid.models.classifier import EncoderClassifier
from ndavid.models.encoders.build import build_encoder
from ndavid.models.gan.model import Gan, GanConfig
from ndavid.models.weights.release import save_pretrained

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
VIEWS = ImageViewsConfig(size=32, num_workers=0)
MODEL = GanConfig(
    architecture="sngan", num_classes=3, latent_dim=8, generator_channels=8,
    discriminator_channels=8,
)  # fmt: skip


@dataclass(kw_only=True)
class GanRunConfig:
    """The part of a GAN's run config that measuring it reads."""

    model: GanConfig = field(default_factory=lambda: MODEL)
    data: DataConfig = field(default_factory=DataConfig)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a classifier's weights, which nobody trained."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("classifier")
    save_pretrained(EncoderClassifier(build_encoder("cifar:resnet20"), 3), folder)
    return folder


@pytest.fixture(scope="module")
def gan_run(tmp_path_factory: pytest.TempPathFactory, coloured_images: Path) -> Path:
    """A conditional GAN's run of three steps, each kept, with averaged weights."""
    output = tmp_path_factory.mktemp("gan") / "run"
    data = DataConfig(source="folder", root=str(coloured_images))
    torch.manual_seed(0)
    fit(
        GanMethod(MODEL),
        ImageDataset(open_images(data)),
        run=RunConfig(
            output=str(output), epochs=3, batch_size=8, save_every_steps=1, keep_checkpoints=0,
            ema_decay=0.5, num_workers=0, device="cpu", max_steps=3,
        ),
        optim=OptimConfig(lr=0.05, weight_decay=0.0),
        config=GanRunConfig(data=data),
        collate=collate,
    )  # fmt: skip
    return output


def images(root: Path, split: str) -> DataConfig:
    return DataConfig(source="folder", root=str(root), split=split)


def config(coloured_images: Path, output: Path, **changes: object) -> GenerationConfig:
    base = GenerationConfig(
        reference=images(coloured_images, "train"),
        output=str(output),
        views=VIEWS,
        num_samples=40,
        choose_samples=24,
        subset_size=8,
        batch_size=16,
        device="cpu",
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


# ---- images in files ----------------------------------------------------------------------------


def test_images_in_files_against_themselves_and_against_noise(
    coloured_images: Path, classifier: Path, tmp_path: Path
) -> None:
    numbers = {}
    for split in ("train", "far"):
        generated = images(coloured_images, split)
        result = run(
            config(
                coloured_images,
                tmp_path / split,
                generated=generated,
                classifier=str(classifier),
                num_samples=0,
            )
        )
        digest = result.details["spaces"][0]["sha256"]
        assert set(result.metrics) == {
            f"{name} {digest[:8]}" for name in ("fcd", "kcd", "precision", "recall")
        }
        numbers[split] = {name.split()[0]: m for name, m in result.metrics.items()}
        assert result.checkpoint["sha256"] == open_images(generated).digest
    same, noise = numbers["train"], numbers["far"]
    assert same["fcd"].value < 1e-6 and same["precision"].value == same["recall"].value == 1
    assert noise["fcd"].low > 0.1 and noise["kcd"].low > 0
    assert noise["precision"].value == 0
    assert (noise["fcd"].n, noise["recall"].n) == (24, 48)


def test_a_result_says_how_it_was_measured(
    coloured_images: Path, classifier: Path, tmp_path: Path
) -> None:
    generated = images(coloured_images, "far")
    run(config(coloured_images, tmp_path, generated=generated, classifier=str(classifier)))
    result = load_result(tmp_path / "result.json")
    assert result.task == "generation"
    assert (result.protocol.split, result.protocol.num_images) == ("train", 48)
    assert result.protocol.averaging == "24 generated against 48 real images, both uint8"
    assert "short side to 32 px" in result.protocol.sampling
    card = result.details["spaces"][0]
    assert (card["generated"], card["reference"], card["resizer"]) == (24, 48, "none")
    assert any("no FID" in note for note in result.protocol.notes)
    assert not any(metric.percent for name, metric in result.metrics.items() if "cd " in name)
    page = (tmp_path / "report.html").read_text()
    assert f"fcd {card['sha256'][:8]}</th>" in page and f"precision {card['sha256'][:8]} %" in page
    with Image.open(tmp_path / "generated.png") as sheet:
        assert sheet.size == (10 * 33 + 1, 3 * 33 + 1)
    assert (tmp_path / "reference.png").is_file()


def test_features_of_real_images_are_kept(
    coloured_images: Path, classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = config(
        coloured_images,
        tmp_path / "one",
        generated=images(coloured_images, "far"),
        classifier=str(classifier),
        cache=str(tmp_path / "cache"),
    )
    before = run(first)
    module = "ndavid.evaluation.generation_samples.per_item"
    monkeypatch.setattr(module, lambda *a, **k: pytest.fail("computed again"))
    after = run(dataclasses.replace(first, output=str(tmp_path / "two")))
    assert after.metrics == before.metrics


# ---- a GAN --------------------------------------------------------------------------------------


def test_a_checkpoint_is_measured_and_named(
    coloured_images: Path, gan_run: Path, classifier: Path, tmp_path: Path
) -> None:
    asked = config(
        coloured_images, tmp_path / "ema", checkpoint=str(gan_run), classifier=str(classifier)
    )
    result = run(asked)
    assert run(asked).metrics == result.metrics, "the seed decides"
    assert result.protocol.selection == "last checkpoint: step 3, averaged weights (EMA)"
    assert "The GAN was trained on the reference images." in result.protocol.notes
    files = json.loads((gan_run / "checkpoints" / "step_3" / "complete.json").read_text())["files"]
    assert result.checkpoint["sha256"] == files["ema.safetensors"]["sha256"]
    assert result.network == "sngan generator"
    assert all(m.n in (40, 48) for m in result.metrics.values())
    plain = run(dataclasses.replace(asked, output=str(tmp_path / "plain"), weights="model"))
    assert plain.checkpoint["sha256"] == files["model.safetensors"]["sha256"]
    assert plain.metrics != result.metrics
    assert "not averaged" in plain.protocol.selection
    with Image.open(tmp_path / "ema" / "generated.png") as sheet:
        assert sheet.width == 3 * 33 + 1, "a class a column"


def test_the_best_checkpoint_is_chosen_by_other_samples_of_another_split(
    coloured_images: Path, gan_run: Path, classifier: Path, tmp_path: Path
) -> None:
    asked = config(
        coloured_images,
        tmp_path / "best",
        reference=images(coloured_images, "far"),
        checkpoint=str(gan_run),
        classifier=str(classifier),
        choose="best",
    )
    result = run(asked)
    table = result.details["choice"]
    name = next(key for key in table[0] if key.startswith("fcd "))
    assert [row["step"] for row in table] == [1, 2, 3]
    assert len({row[name] for row in table}) == 3
    best = min(table, key=lambda row: row[name])
    assert result.details["step"] == best["step"]
    assert result.checkpoint["path"].endswith(f"step_{best['step']}")
    assert "best of the 3 kept checkpoints by fcd of 24 other samples against train" in (
        result.protocol.selection
    )
    assert result.metrics[name].value != best[name]
    # What chooses knows nothing of the images that are measured.
    other = dataclasses.replace(
        asked, reference=images(coloured_images, "test"), reference_samples=0, k=2
    )
    with pytest.raises(ConfigError, match="18 images are too few"):
        run(other)
    again = dataclasses.replace(asked, output=str(tmp_path / "again"), reference_samples=20)
    assert run(again).details["choice"] == table


def samples(count: int, **changes: object) -> GanSamples:
    torch.manual_seed(0)
    base = GanSamples(
        gan=Gan(MODEL).eval(), count=count, seed=1, purpose="samples", views=VIEWS,
        batch_size=8, device=CPU,
    )  # fmt: skip
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def test_samples_are_a_function_of_seed_and_purpose() -> None:
    few, many = samples(11).features(flat), samples(20).features(flat)
    assert few.shape == (11, 3 * 32 * 32)
    # The last batch is shorter, and convolutions may round otherwise: by one step of uint8 at most.
    torch.testing.assert_close(few, many[:11], atol=1.0, rtol=0)
    assert not torch.equal(samples(11, purpose="choice").features(flat), few)
    assert not torch.equal(samples(11, seed=2).features(flat), few)


def flat(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.flatten(1).float()


def test_classes_take_turns_across_batches() -> None:
    seen: list[int] = []
    drawn = samples(20)
    drawn.gan.generator.register_forward_pre_hook(lambda _, inputs: seen.extend(inputs[1].tolist()))
    drawn.features(flat)
    assert seen == [index % 3 for index in range(20)]


@torch.no_grad()
def test_batch_statistics_are_those_of_train_mode_and_of_whole_batches() -> None:
    drawn = samples(11)
    twin = copy.deepcopy(drawn.gan.generator).train()
    drop_running_stats(drawn.gan.generator)
    found = drawn.features(flat)
    for start, norms in ((0, slice(0, 8)), (8, slice(8, 11))):
        latents = torch.randn(8, 8, generator=generator(1, "samples", start // 8))
        made = twin(latents, torch.arange(start, start + 8) % 3)
        wanted = flat(to_pixels(made))[: norms.stop - norms.start]
        torch.testing.assert_close(found[norms], wanted, atol=1.0, rtol=0)
    assert (found - samples(11).features(flat)).abs().mean() > 1, "not the running ones"
    more = dataclasses.replace(drawn, count=20).features(flat)
    torch.testing.assert_close(more[:11], found, atol=0, rtol=0)


def test_pixels_are_floored_or_rounded() -> None:
    images = torch.tensor([-1.0, -0.999, 0.0, 0.9999, 1.0])
    assert to_pixels(images).tolist() == [0, 0, 128, 255, 255]
    assert to_pixels(images, floored=True).tolist() == [0, 0, 127, 254, 255]
    low, near = (samples(8, floored=floored).features(flat) for floored in (True, False))
    assert set((near - low).unique().tolist()) == {0.0, 1.0}


def test_the_card_and_the_notes_say_how_samples_were_made(
    coloured_images: Path, gan_run: Path, classifier: Path, tmp_path: Path
) -> None:
    asked = config(
        coloured_images, tmp_path / "eval", checkpoint=str(gan_run), classifier=str(classifier)
    )
    as_published = dataclasses.replace(
        asked, output=str(tmp_path / "train"), statistics="batch", pixels="floored"
    )
    plain, published = run(asked), run(as_published)
    assert plain.metrics != published.metrics and plain.checkpoint == published.checkpoint
    for result, norm, pixels in (
        (plain, "running statistics (eval mode)", "rounded to uint8"),
        (published, "statistics of each batch of 16 samples (train mode)", "floored to uint8"),
    ):
        card = result.details["spaces"][0]
        assert (card["batch norm"], card["pixels"]) == (norm, pixels)
        assert f"Batch norm by {norm}; pixels {pixels}." in result.protocol.notes
    page = (tmp_path / "train" / "report.html").read_text()
    assert "each batch of 16 samples (train mode); pixels floored" in page


def test_the_papers_config_samples_as_the_published_fids_were() -> None:
    path = ROOT / "eval" / "configs" / "cifar10_paper_generation.yaml"
    paper, usual = (
        from_yaml(GenerationConfig, path.with_name(name))
        for name in (path.name, "cifar10_generation.yaml")
    )
    assert (paper.statistics, paper.batch_size, paper.pixels) == ("batch", 64, "floored")
    assert (usual.statistics, usual.pixels) == ("running", "rounded")
    changed = {"statistics": "running", "batch_size": 250, "pixels": "rounded"}
    assert dataclasses.replace(paper, output=usual.output, **changed) == usual  # type: ignore[arg-type]


def test_samples_are_brought_to_the_size_of_the_views() -> None:
    views = ImageViewsConfig(size=16, resize=16, num_workers=0)
    batch = samples(4, views=views).batch(0)
    assert batch.shape == (4, 3, 16, 16) and batch.dtype == torch.uint8


def test_a_broken_generator_is_said_to_be_one() -> None:
    with pytest.raises(TrainingError, match="not finite"):
        samples(4).features(lambda pixels: flat(pixels) * math.nan)


def test_at_most_draws_from_the_seed(coloured_images: Path) -> None:
    source = open_images(images(coloured_images, "train"))
    drawn = [at_most(source, 10, seed).digest for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert at_most(source, 0, 0) is source and at_most(source, 48, 0) is source


# ---- feature spaces -----------------------------------------------------------------------------


def test_a_classifiers_features_are_its_encoders_pooled_map(classifier: Path) -> None:
    space = classifier_space(str(classifier), 32)
    pixels = torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8)
    assert space.network(pixels).shape == (4, space.dim) == (4, 64)
    assert space.name("fcd") == f"fcd {space.sha256[:8]}"


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the layout of torch-fidelity's file."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    kind = FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        network = kind("inception-v3-compat", ["2048"], str(path))
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
def test_inception_from_a_local_file_without_network(
    coloured_images: Path, inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("nothing may be fetched")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    asked = config(
        coloured_images,
        tmp_path,
        generated=images(coloured_images, "far"),
        inception_weights=str(inception_file),
        reference_samples=24,
    )
    result = run(asked)
    digest = result.details["spaces"][0]["sha256"][:8]
    names = [f"{name} {digest}" for name in ("FID", "KID", "precision", "recall", "IS")]
    assert list(result.metrics) == names
    assert all(math.isfinite(metric.value) for metric in result.metrics.values())
    assert result.metrics[f"FID {digest}"].value > 0
    assert 1 <= result.metrics[f"IS {digest}"].value <= 1008
    assert any("not the published ones" in note for note in result.protocol.notes)
    assert "TensorFlow 1" in result.details["spaces"][0]["resizer"]


def test_inceptions_weights_must_be_given_or_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--inception-weights FILE, or --download"):
        inception_space("", download=False)
    with pytest.raises(CheckpointError, match="no such file"):
        inception_space(str(tmp_path / "absent.pth"), download=True)


def test_a_file_of_other_weights_is_refused_in_a_line(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="not torch-fidelity's Inception weights") as caught:
        inception_space(str(tmp_path / "other.pth"), download=False)
    assert "\n" not in str(caught.value)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("this must not run",))


def test_a_pickle_that_wants_to_run_code_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evil.pth").write_bytes(pickle.dumps({"fc.weight": Harmful()}))
    with pytest.raises(CheckpointError):
        inception_space(str(tmp_path / "evil.pth"), download=False)
    assert "must not run" not in capsys.readouterr().out


def test_a_download_that_fails_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(NdavidError, match="no route; give a local file by --inception-weights"):
        inception_space("", download=True)


def test_the_inception_score_of_a_few_images_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"5 images are too few, take 20 at least"):
        _inception_score(torch.zeros(5, 8))
    with pytest.raises(TrainingError, match="not finite"):
        _inception_score(torch.full((40, 8), torch.nan))


def test_the_inception_score_of_certain_and_of_uncertain_predictions() -> None:
    assert _inception_score(torch.zeros(200, 8)).value == pytest.approx(1)
    sure = 50 * torch.nn.functional.one_hot(torch.arange(8000) % 8, 8).float()
    found = _inception_score(sure)
    assert found.low <= found.value <= 8
    assert found.value == pytest.approx(8, rel=0.02) and found.n == 8000


# ---- what is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "name what to measure"),
        ({"checkpoint": "a", "generated": DataConfig(root="b")}, "only one of them"),
        ({"checkpoint": "a"}, "name the features"),
        (
            {"generated": DataConfig(root="b"), "classifier": "c", "choose": "best"},
            "files have none",
        ),
        (
            {"checkpoint": "a", "classifier": "c", "choose": "best", "choose_split": "test"},
            "choose by train",
        ),
    ],
)
def test_a_config_that_names_too_little_or_too_much(
    changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(dataclasses.replace(GenerationConfig(), **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("changes", [{"k": 0}, {"subset_size": 1}, {"batch_size": 0}])
def test_numbers_out_of_range(changes: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(changes))} must be at least"):
        GenerationConfig(**changes)  # type: ignore[arg-type]


def test_the_best_of_one_checkpoint_cannot_be_chosen(
    coloured_images: Path, gan_run: Path, classifier: Path, tmp_path: Path
) -> None:
    asked = config(
        coloured_images,
        tmp_path,
        checkpoint=str(gan_run / "checkpoints" / "step_3"),
        classifier=str(classifier),
        choose="best",
    )
    with pytest.raises(CheckpointError, match="needs a run's folder"):
        run(asked)


def test_the_script_takes_the_hyphen_and_fails_in_one_line(
    coloured_images: Path, tmp_path: Path
) -> None:
    absent = tmp_path / "absent.pth"
    words = ["--reference.source=folder", f"--reference.root={coloured_images}", "--device=cpu"]
    words += ["--reference.split=train", "--generated.root=x", "--inception-weights", str(absent)]
    outcome = forked.call(ROOT / "eval" / "generation.py", *words, cwd=tmp_path)
    assert outcome.returncode == 2
    assert outcome.stderr.strip() == f"error: {absent}: no such file"
