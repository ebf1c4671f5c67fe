"""What is broken is shown before training, and the page grows while it goes on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from ndavid.data.video import collate
from ndavid.engine.loop import fit
from ndavid.engine.optim import OptimConfig
from ndavid.engine.rng import generator, seeded
from ndavid.engine.run_config import RunConfig
from ndavid.evaluation.pairs_figure import draw_pairs
from ndavid.evaluation.run_page import RunPage, draw_negatives
from ndavid.methods.broken_samples import BrokenSamples
from ndavid.methods.dpc import DpcMethod
from ndavid.methods.gan import GanMethod
from ndavid.methods.gan_config import GanAugmentConfig, GanNdaConfig
from ndavid.methods.moco import MocoMethod
from ndavid.methods.nda_config import MocoNdaConfig, NdaConfig
from ndavid.models.dpc import DpcConfig
from ndavid.models.gan.model import GanConfig
from ndavid.models.moco import MocoConfig

RUN = RunConfig(
    output="set below", batch_size=4, max_steps=4, save_every_steps=2, num_workers=0, log_every=1,
    device="cpu",
)  # fmt: skip


class Noise:
    """Sixteen samples of noise, of a shape; augmented by adding the seed's own noise."""

    def __init__(self, key: str, shape: tuple[int, ...]) -> None:
        self.key = key
        self.shape = shape
        self.read: list[int] = []

    def __len__(self) -> int:
        return 16

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        index, seed = key
        self.read.append(index)
        pixels = torch.randint(256, self.shape, generator=generator(seed, "noise", index))
        return {self.key: pixels.to(torch.uint8), "label": 0, "index": index, "bad": []}


def moco(kind: type[MocoMethod] = MocoMethod, spec: str = "jigsaw:grid=2") -> MocoMethod:
    with seeded(0, "init"):
        return kind(MocoConfig(encoder="cifar:resnet20", queue_size=8), MocoNdaConfig(spec=spec))


IMAGES = ("views", (2, 3, 16, 16))


class Watched(MocoMethod):
    """Looks for the picture and the page in each step."""

    output = Path()
    leads: list[str]

    def forward(self, batch: dict[str, Tensor], **options: Any) -> dict[str, Tensor]:
        assert (self.output / "negatives.png").stat().st_size > 0
        page = (self.output / "report.html").read_text()
        self.leads.append(page.split("Training goes on: ")[1].split(" at ")[0])
        return super().forward(batch, **options)


def train(method: MocoMethod, output: Path, page: RunPage | None, **changes: Any) -> None:
    hooks = {} if page is None else {"on_start": page.start, "on_save": page.refresh}
    fit(
        method,
        Noise(*IMAGES),
        run=dataclasses.replace(RUN, output=str(output), **changes),
        optim=OptimConfig(lr=0.01),
        collate=collate,
        **hooks,
    )


def test_picture_and_page_are_there_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ndavid.evaluation.run_page._SHARE_OF_TIME", 1e9)
    method = moco(Watched)
    assert isinstance(method, Watched)
    method.output, method.leads = tmp_path / "run", []
    page = RunPage("MoCo", Noise(*IMAGES), seed=0)
    train(method, tmp_path / "run", page)
    assert method.leads == [f"step {step} of 4" for step in (0, 0, 2, 2)]
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    (shown,) = board.Images("negatives")
    assert shown.step == 0
    text = page.finish(tmp_path / "run").read_text()
    assert "Training goes on" not in text and "jigsaw:grid=2" in text and "data:image/png" in text


def test_a_run_ends_at_the_same_bits_with_and_without_its_page(tmp_path: Path) -> None:
    for name, page in {"with": RunPage("MoCo", Noise(*IMAGES)), "without": None}.items():
        train(moco(), tmp_path / name, page)
    one, other = (
        load_file(tmp_path / name / "checkpoints" / "step_4" / "model.safetensors")
        for name in ("with", "without")
    )
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_resumed_run_does_not_draw_again(tmp_path: Path) -> None:
    for steps, drawn in ((2, True), (4, False)):
        samples = Noise(*IMAGES)
        before = (tmp_path / "report.html").exists()
        train(moco(), tmp_path, RunPage("MoCo", samples), max_steps=steps)
        assert bool(samples.read) is drawn and before is not drawn
    (tmp_path / "negatives.png").unlink()
    samples = Noise(*IMAGES)
    train(moco(), tmp_path, RunPage("MoCo", samples), max_steps=6, epochs=2)
    assert samples.read and (tmp_path / "negatives.png").exists()


def test_a_run_without_negatives_has_a_page_and_no_picture(tmp_path: Path) -> None:
    page = RunPage("MoCo", Noise(*IMAGES))
    train(moco(spec=""), tmp_path, page)
    assert not (tmp_path / "negatives.png").exists()
    assert "The negatives" not in page.finish(tmp_path).read_text()


def dpc() -> DpcMethod:
    config = DpcConfig(encoder="resnet2d3d10_half", num_blocks=3, block_len=4, pred_steps=1)
    return DpcMethod(config, NdaConfig(spec="frame_shuffle"))


def gan() -> GanMethod:
    config = GanConfig(
        architecture="sngan", generator_channels=2, discriminator_channels=4, latent_dim=8
    )
    augment = GanAugmentConfig(diffaugment=["translation"])
    return GanMethod(config, GanNdaConfig(spec="stitch"), augment=augment)


METHODS: dict[str, tuple[Callable[[], Any], str, tuple[int, ...]]] = {
    "moco images": (moco, *IMAGES),
    "moco clips": (lambda: moco(spec="reverse"), "views", (2, 3, 8, 16, 16)),
    "dpc": (dpc, "video", (3, 12, 32, 32)),
    "gan": (gan, "image", (3, 32, 32)),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_shows_what_it_breaks_and_stays_as_it_was(name: str) -> None:
    make, key, shape = METHODS[name]
    method, samples = make(), Noise(key, shape)
    before = {key: value.clone() for key, value in method.state_dict().items()}
    drawn = torch.random.get_rng_state()
    picture = draw_negatives(
        method, samples, device=torch.device("cpu"), seed=0, title=method.nda.spec
    )
    assert picture.height > 2 * 88 and len(set(samples.read)) > 1
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(before[key], value) for key, value in method.state_dict().items())
    batch = collate([samples[index, 0] for index in range(4)])
    found = method.broken_samples(batch, generator=generator(0, "test"))
    assert isinstance(found, BrokenSamples) and found.used.all()
    changed = (found.before != found.after).flatten(1).any(1)
    assert changed.all() and found.before.min() > -1e-5 and found.before.max() < 1 + 1e-5


def test_the_shown_operation_is_that_of_the_run() -> None:
    """DPC breaks the predicted block alone, and each of its frames is one of them."""
    samples = Noise("video", (3, 12, 32, 32))
    batch = collate([samples[index, 0] for index in range(2)])
    found = dpc().broken_samples(batch, generator=generator(0, "test"))
    assert found is not None
    future = batch["video"][:, :, 8:] / 255
    assert torch.allclose(found.before, future, atol=1e-5)
    order = (found.after[:, :, :, None] - found.before[:, :, None]).abs().amax((1, 4, 5)) < 1e-5
    assert (
        torch.equal(order.sum(1), torch.ones(2, 4))
        and "1 predicted block of 4 frames" in found.note
    )


def test_frames_carry_the_numbers_of_those_that_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    badges: list[str] = []
    monkeypatch.setattr(
        "ndavid.evaluation.pairs_figure._badge", lambda pen, text, x, y: badges.append(text)
    )
    clip = torch.randint(256, (1, 3, 4, 8, 8), generator=generator(0, "clip")).to(torch.uint8)
    broken = clip.flip(2)
    broken[:, :, 3, 0, 0] ^= 255
    picture = draw_pairs(clip, broken, [False], title="W" * 90, note="n")
    assert badges == ["1", "2", "3", "4", "4", "3", "2"]
    assert picture.width > 900
    assert isinstance(picture, Image.Image)


def test_the_picture_leaves_no_shard_open() -> None:
    """Nor would the data loading processes, forked later, begin with one."""

    class Shards(Noise):
        shard_sizes = (8, 8)

    dataset = Shards(*IMAGES)
    picture = draw_negatives(moco(), dataset, device=torch.device("cpu"), seed=0, title="jigsaw")
    assert picture is not None and dataset.read == []
