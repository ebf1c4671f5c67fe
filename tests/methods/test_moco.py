"""MocoMethod: many steps against loops over samples, and every trap of the method by itself."""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import build_toy

from ndavid.errors import ConfigError
from ndavid.losses.contrastive import info_nce
from ndavid.methods.moco import MocoMethod, warn_of_long_queue
from ndavid.methods.nda_config import MocoNdaConfig
from ndavid.models.moco import MocoConfig
from ndavid.nda.base import Broken

IMAGES, CLIPS = (3, 16, 16), (3, 4, 16, 16)
IMAGE_OP, CLIP_OP = "jigsaw", "frame_shuffle"
QUEUE = 7
PUBLISHED: dict[str, Any] = {"encoder": "key", "norm": "own", "weight": 1.0}


@pytest.fixture(autouse=True)
def toy_encoders(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ndavid.models.moco.build_encoder", build_toy)


def make(
    nda: dict[str, Any] | None = None, moco: dict[str, Any] | None = None, **options: Any
) -> MocoMethod:
    settings = {"encoder": "toy:group", "dim": 4, "queue_size": QUEUE, "momentum": 0.9}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = MocoConfig(**{**settings, **(moco or {})})
        return MocoMethod(config, MocoNdaConfig(**(PUBLISHED | (nda or {}))), **options)


def views(shape: tuple[int, ...], batch: int = 4, number: int = 2, seed: int = 0) -> dict:
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (batch, number, *shape), generator=g)
    return {"views": pixels.to(torch.uint8)}


def step(method: MocoMethod, batch: dict, *, seed: int = 0, step: int = 0) -> dict[str, Tensor]:
    return method(batch, generator=torch.Generator().manual_seed(seed), step=step)


def gradients(method: MocoMethod, batch: dict, **options: Any) -> dict[str, Tensor]:
    method.zero_grad()
    step(method, batch, **options)["loss"].backward()
    return {name: p.grad.clone() for name, p in method.named_parameters() if p.grad is not None}


@pytest.fixture
def contrasted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Tensor]]:
    """What reached the loss, call by call."""
    calls: list[dict[str, Tensor]] = []

    def spy(query: Tensor, positive: Tensor, queue: Tensor, nda: Tensor | None, **settings: Any):
        vectors = {"query": query, "positive": positive, "queue": queue, "nda": nda}
        calls.append(vectors | {"mask": settings["nda_mask"]})
        result = info_nce(query, positive, queue, nda, **settings)
        calls[-1]["result"] = result
        return result

    monkeypatch.setattr("ndavid.methods.moco.info_nce", spy)
    return calls


def given(module: nn.Module) -> list[Tensor]:
    """The batches that a module is given from now on."""
    seen: list[Tensor] = []
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    return seen


# --- many steps against loops --------------------------------------------------------------------


class Recorded:
    """Wraps an operation and keeps what it made of each batch."""

    def __init__(self, operation: Any) -> None:
        self.operation = operation
        self.made: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.operation, name)

    def broken(self, x: Tensor, **options: Any) -> Broken:
        made = self.operation.broken(x, **options)
        self.made.append(made.pixels)
        return made


class NaiveMoco:
    """MoCo one sample at a time, with lists and Python numbers; starts as a copy of a method."""

    def __init__(self, method: MocoMethod) -> None:
        self.query = nn.Sequential(*copy.deepcopy([method.moco.encoder, method.moco.head]))
        self.key = nn.Sequential(*copy.deepcopy([method.moco.key_encoder, method.moco.key_head]))
        self.momentum = method.moco.config.momentum
        self.temperature = method.temperature
        self.nda = method.nda
        self.queue = [row.clone() for row in method.moco.queue]
        self.place = 0

    def loss(self, directions: list[tuple[Tensor, Tensor, list[Tensor]]], step: int) -> Tensor:
        """Each direction: normalised pixels of queries and of keys, and what was broken."""
        queries = [[self.query(one[None])[0] for one in pixels] for pixels, _, _ in directions]
        self.average()
        keys = [[self.encode_key(one) for one in pixels] for _, pixels, _ in directions]
        encode = self.encode_key if self.nda.encoder == "key" else lambda x: self.query(x[None])[0]
        losses = []
        for (_, _, broken), qs, ks in zip(directions, queries, keys, strict=True):
            negatives = [[encode(one) for one in made] for made in broken]
            for i, (q, k) in enumerate(zip(qs, ks, strict=True)):
                mine = [made[j] for made in negatives for j in range(len(made)) if self.meets(i, j)]
                losses.append(self.row(q, k, mine, step))
        for key in itertools.chain(*keys):
            self.queue[self.place] = key
            self.place = (self.place + 1) % len(self.queue)
        return sum(losses) / len(losses)

    def meets(self, row: int, sample: int) -> bool:
        return self.nda.share == "batch" or row == sample

    def row(self, q: Tensor, k: Tensor, broken: list[Tensor], step: int) -> Tensor:
        total = positive = torch.exp(torch.dot(q, k) / self.temperature)
        for waiting in self.queue:
            total = total + torch.exp(torch.dot(q, waiting) / self.temperature)
        weight = self.nda.weight * min(
            1.0, step / self.nda.warmup_steps if self.nda.warmup_steps else 1.0
        )
        for negative in broken:
            similarity = self.nda.scale * torch.dot(q, negative) / self.temperature
            total = total + weight * torch.exp(similarity)
        return -torch.log(positive / total)

    def encode_key(self, one: Tensor) -> Tensor:
        with torch.no_grad():
            return self.key(one[None])[0]

    def average(self) -> None:
        with torch.no_grad():
            for slow, fast in zip(self.key.parameters(), self.query.parameters(), strict=True):
                slow.copy_(self.momentum * slow + (1 - self.momentum) * fast)


NAIVE_NDA = {
    "none": {},
    "own": {"spec": "OP"},
    "batch": {"spec": "OP", "share": "batch", "view": "query"},
    "weighted": {"spec": "OP", "per_sample": 2, "weight": 0.5, "scale": 1.5, "warmup_steps": 4},
    "by_query": {"spec": "OP", "encoder": "query", "share": "batch", "per_sample": 2},
    "fresh": {"spec": "OP", "view": "fresh", "norm": "running", "encoder": "query"},
    "shared": {"spec": "OP", "view": "query", "norm": "shared", "per_sample": 2},
}


@pytest.mark.parametrize("shape", [IMAGES, CLIPS], ids=["images", "clips"])
@pytest.mark.parametrize("symmetric", [False, True], ids=["one_way", "symmetric"])
@pytest.mark.parametrize("name", NAIVE_NDA)
def test_training_agrees_with_loops_over_samples(shape, symmetric: bool, name: str) -> None:
    """Twelve SGD steps of three samples: a queue of seven wraps five or ten times, unevenly."""
    nda = dict(NAIVE_NDA[name])
    if "spec" in nda:
        nda["spec"] = IMAGE_OP if shape == IMAGES else CLIP_OP
    # Two groups: group norm does not feel them, but keys travel shuffled.
    method = make(nda, {"bn_splits": 2}, symmetric=symmetric, temperature=0.3)
    recorded = Recorded(method.operation)
    method.operation = recorded if nda else None
    naive = NaiveMoco(method)
    optimizers = [
        torch.optim.SGD(parameters, lr=0.2, momentum=0.9, weight_decay=1e-3)
        for parameters in (
            [p for p in method.parameters() if p.requires_grad],
            list(naive.query.parameters()),
        )
    ]
    for index in range(12):
        batch = views(shape, batch=3, number=3, seed=index)
        recorded.made.clear()
        result = step(method, batch, seed=index, step=index)
        first, second = (method.pixels(batch["views"][:, v]) for v in (0, 1))
        made = list(recorded.made)
        each = len(made) // (1 + symmetric)
        directions = [(first, second, made[:each])]
        if symmetric:
            directions.append((second, first, made[each:]))
        expected = naive.loss(directions, index)
        torch.testing.assert_close(result["loss"], expected, rtol=1e-4, atol=1e-5)
        for loss, optimizer in zip((result["loss"], expected), optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert method.moco.queue_pointer.tolist() == [naive.place]
        torch.testing.assert_close(
            method.moco.queue, torch.stack(naive.queue), rtol=1e-3, atol=1e-4
        )
    for module, copied in (
        (nn.Sequential(method.moco.encoder, method.moco.head), naive.query),
        (nn.Sequential(method.moco.key_encoder, method.moco.key_head), naive.key),
    ):
        pairs = zip(module.parameters(), copied.parameters(), strict=True)
        for parameter, other in pairs:
            torch.testing.assert_close(parameter, other, rtol=1e-3, atol=1e-4)


def test_the_loops_notice_a_wrong_step() -> None:
    """The comparison above is worth something: another momentum or weight fails it."""
    batch = views(IMAGES, batch=3)
    for change in ({"weight": 1.1}, {"scale": 1.1}, {"share": "batch"}):
        method = make({"spec": IMAGE_OP})
        method.operation = recorded = Recorded(method.operation)
        naive = NaiveMoco(make({"spec": IMAGE_OP, **change}))
        result = step(method, batch)
        pixels = [method.pixels(batch["views"][:, v]) for v in (0, 1)]
        loss = naive.loss([(*pixels, recorded.made)], 0)
        assert abs(result["loss"] - loss) > 1e-3


# --- the queue -----------------------------------------------------------------------------------


def test_queue_and_pointer_are_part_of_the_checkpoint() -> None:
    method = make({"spec": IMAGE_OP})
    assert {"moco.queue", "moco.queue_pointer"} <= set(method.state_dict())
    assert all(name.startswith("moco.") for name in method.state_dict())
    for index in range(3):
        step(method, views(IMAGES, seed=index))
    again = make({"spec": IMAGE_OP})
    again.load_state_dict(method.state_dict())
    batch = views(IMAGES, seed=9)
    assert torch.equal(step(method, batch)["loss"], step(again, batch)["loss"])
    assert torch.equal(method.moco.queue, again.moco.queue)
    assert torch.equal(method.moco.queue_pointer, again.moco.queue_pointer)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("encoder", ["key", "query"])
def test_broken_views_are_never_queued(symmetric: bool, encoder: str, contrasted: list) -> None:
    nda = {"spec": IMAGE_OP, "per_sample": 2, "encoder": encoder}
    method = make(nda, {"queue_size": 20}, symmetric=symmetric)
    before = method.moco.queue.clone()
    step(method, views(IMAGES))
    positives = torch.cat([call["positive"] for call in contrasted])
    assert len(positives) == 4 * (1 + symmetric)
    assert torch.equal(method.moco.queue[: len(positives)], positives)
    assert torch.equal(method.moco.queue[len(positives) :], before[len(positives) :])
    broken = torch.cat([call["nda"].flatten(0, 1) for call in contrasted])
    assert (torch.cdist(broken, positives) > 1e-3).all()


def test_keys_meet_the_queue_only_from_the_next_step_on(contrasted: list) -> None:
    method = make(symmetric=True, moco={"queue_size": 20})
    before = method.moco.queue.clone()
    step(method, views(IMAGES))["loss"].backward()
    assert all(torch.equal(call["queue"], before) for call in contrasted)
    step(method, views(IMAGES, seed=1))
    assert torch.equal(contrasted[2]["queue"][:4], contrasted[0]["positive"])


@pytest.mark.parametrize(("queue", "samples", "warns"), [(7, 8, 0), (8, 8, 1), (9, 8, 1)])
def test_a_queue_longer_than_the_data_is_warned_of(queue: int, samples: int, warns: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_of_long_queue(queue, samples)
    assert len(caught) == warns
    assert all(f"model.queue_size {queue} is not below the 8" in str(w.message) for w in caught)


# --- what is broken, and who meets it -------------------------------------------------------------


@pytest.mark.parametrize(
    ("view", "source"), [("query", (0, 1)), ("key", (1, 0)), ("fresh", (2, 2))]
)
@pytest.mark.parametrize("encoder", ["key", "query"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_view_that_is_asked_for_is_broken(view, source, encoder: str, symmetric: bool) -> None:
    method = make({"spec": "reverse", "view": view, "encoder": encoder}, symmetric=symmetric)
    by_key, by_query = given(method.moco.key_encoder), given(method.moco.encoder)
    batch = views(CLIPS, number=3)
    step(method, batch)
    true = [method.pixels(batch["views"][:, v]) for v in range(3)]
    backwards = [true[v].flip(2) for v in source[: 1 + symmetric]]
    expected = {"query": true[: 1 + symmetric], "key": true[1:2] + true[:1] * symmetric}
    expected[encoder] = [*expected[encoder], *backwards]
    for seen, wanted in ((by_query, expected["query"]), (by_key, expected["key"])):
        assert len(seen) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(seen, wanted, strict=True))


def test_several_negatives_are_drawn_independently(contrasted: list) -> None:
    method = make({"spec": "jigsaw:grid=4", "per_sample": 3})
    seen = given(method.moco.key_encoder)
    step(method, views(IMAGES))
    draws = seen[1:]
    assert len(draws) == 3 and contrasted[0]["nda"].shape == (4, 3, 4)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(draws, 2))


def test_own_and_shared_negatives(contrasted: list) -> None:
    batch = views(IMAGES)
    for share, seen in (("own", 2), ("batch", 8)):
        step(make({"spec": IMAGE_OP, "per_sample": 2, "share": share}), batch)
        assert contrasted[-1]["result"].nda.shape == (4, seen)
    own, shared = (call["nda"] for call in contrasted)
    assert torch.equal(own.flatten(0, 1), shared)


@pytest.mark.parametrize("share", ["own", "batch"])
def test_static_clips_give_no_negative(share: str, contrasted: list) -> None:
    nda = {"spec": "frame_shuffle:min_motion=0.05", "share": share}
    batch = views(CLIPS)
    batch["views"][1] = batch["views"][1][:, :, :1]
    result = step(make(nda), batch)
    assert result["nda_active"].item() == pytest.approx(3 / 4)
    mask = contrasted[0]["mask"].flatten()
    assert mask.tolist() == [True, False, True, True]
    nda_columns = contrasted[0]["result"].nda
    assert (nda_columns == -math.inf).sum() == (4 if share == "batch" else 1)
    batch["views"][:] = batch["views"][:, :, :, :1]
    masked, plain = step(make(nda), batch), step(make(), batch)
    torch.testing.assert_close(masked["loss"], plain["loss"])
    assert masked["nda_active"] == 0


UNCHANGED = {
    "still": ("frame_shuffle", CLIPS, lambda x: x[:, :, :, :1]),
    "backwards": ("reverse", CLIPS, lambda x: x[:, :, :, :1]),
    "loop": (
        "temporal_jigsaw:segments=2",
        CLIPS,
        lambda x: x[:, :, :, :2].repeat(1, 1, 1, 2, 1, 1),
    ),
    "either": ("reverse | frame_repeat", CLIPS, lambda x: x[:, :, :, :1]),
    "plain": (IMAGE_OP, IMAGES, lambda x: x[..., :1, :1]),
    "in_turn": ("jigsaw > reverse", CLIPS, lambda x: x[..., :1, :1, :1]),
}


@pytest.mark.parametrize("share", ["own", "batch"])
@pytest.mark.parametrize("name", UNCHANGED)
def test_what_came_out_as_it_went_in_is_masked_without_a_key(
    name: str, share: str, contrasted: list
) -> None:
    spec, shape, made_of = UNCHANGED[name]
    batch = views(shape)
    same = made_of(batch["views"]).expand_as(batch["views"])
    batch["views"][1] = same[1]
    result = step(make({"spec": spec, "share": share}), batch)
    assert contrasted[0]["mask"].flatten().tolist() == [True, False, True, True]
    assert result["nda_unchanged"] == 0.25 and result["nda_active"] == 0.75
    batch["views"] = same.clone()
    masked, plain = step(make({"spec": spec, "share": share}), batch), step(make(), batch)
    assert torch.equal(masked["loss"], plain["loss"])
    assert masked["nda_unchanged"] == 1


@pytest.mark.parametrize("spec", ["stitch", "mixup", "cut_mix", "temporal_stitch"])
def test_byte_copies_in_a_batch_lend_nothing(spec: str, contrasted: list) -> None:
    batch = views(CLIPS, batch=3)
    batch["views"][:] = batch["views"][:1].clone()
    assert step(make({"spec": spec}), batch)["nda_unchanged"] == 1
    assert not contrasted[0]["mask"].any()


def test_a_direction_without_negatives_leaves_the_metrics_to_the_other() -> None:
    batch = views(CLIPS)
    batch["views"][:, 1] = batch["views"][:, 1, :, :1]  # every key view stands still
    nda = {"spec": "frame_shuffle:min_motion=0.05", "view": "key"}
    result = step(make(nda, symmetric=True), batch)
    assert result["nda_active"].item() == pytest.approx(1 / 2)
    assert result["nda_outrank"].isfinite() and result["nda_accuracy"].isfinite()


def test_views_that_are_missing_are_named() -> None:
    with pytest.raises(ValueError, match="2 views a sample are given, 3 are needed"):
        step(make({"spec": IMAGE_OP, "view": "fresh"}), views(IMAGES))
    with pytest.raises(ValueError, match="1 views a sample are given, 2 are needed"):
        step(make(), views(IMAGES, number=1))
    with pytest.raises(ValueError, match="no augmentation was given"):
        step(make(), {"image": torch.zeros(4, *IMAGES, dtype=torch.uint8)})


@pytest.mark.parametrize(("key", "shape"), [("image", IMAGES), ("video", CLIPS)])
def test_views_are_made_on_the_device_where_asked(key: str, shape) -> None:
    def augment(pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        assert pixels.dtype == torch.uint8 and generator is not None
        return pixels.float() / 255 + 0.1 * torch.rand(len(pixels), generator=generator)[0]

    method = make({"spec": IMAGE_OP, "view": "fresh"}, augment=augment)
    by_query, by_key = given(method.moco.encoder), given(method.moco.key_encoder)
    pixels = views(shape)["views"][:, 0]
    first = step(method, {key: pixels})
    shifts = [float((x - method.pixels(pixels)).mean()) for x in (by_query[0], *by_key)]
    assert len(shifts) == 3 and len({round(s, 4) for s in shifts}) == 3
    assert torch.equal(
        step(make({"spec": IMAGE_OP, "view": "fresh"}, augment=augment), {key: pixels})["loss"],
        first["loss"],
    )


# --- gradients -----------------------------------------------------------------------------------


def test_keys_have_no_gradient_and_every_query_parameter_does(contrasted: list) -> None:
    for encoder in ("key", "query"):
        method = make({"spec": IMAGE_OP, "encoder": encoder})
        found = gradients(method, views(IMAGES))
        trained = {n for n, _ in method.named_parameters() if ".key_" not in n}
        assert set(found) == trained
        assert all(gradient.abs().sum() > 0 for gradient in found.values())
        call = contrasted[-1]
        assert call["query"].requires_grad and not call["positive"].requires_grad
        assert not call["queue"].requires_grad
        assert call["nda"].requires_grad == (encoder == "query")


def test_negatives_of_the_query_encoder_push_it() -> None:
    """With momentum 0 both encoders give the same vectors: the gradients differ all the same."""
    batch = views(IMAGES)
    losses, found = [], []
    for encoder in ("key", "query"):
        method = make({"spec": IMAGE_OP, "encoder": encoder}, {"momentum": 0.0})
        losses.append(step(copy.deepcopy(method), batch)["loss"])
        found.append(gradients(method, batch))
    torch.testing.assert_close(losses[0], losses[1])
    for name in found[0]:
        assert (found[0][name] - found[1][name]).norm() > 1e-3 * found[0][name].norm()


@pytest.mark.parametrize("bn_splits", [1, 2])
@pytest.mark.parametrize("norm", ["own", "running"])
@pytest.mark.parametrize("encoder", ["key", "query"])
@pytest.mark.parametrize("share", ["own", "batch"])
def test_weight_zero_is_plain_moco_to_the_bit(bn_splits, norm, encoder, share) -> None:
    nda = {"spec": IMAGE_OP, "weight": 0.0, "norm": norm, "encoder": encoder, "share": share}
    config = {"encoder": "toy:batch", "bn_splits": bn_splits}
    plain, with_nda = make(moco=config), make(nda, config)
    for index in range(3):
        batch = views(IMAGES, seed=index)
        both = [gradients(method, batch, seed=index) for method in (plain, with_nda)]
        assert both[0].keys() == both[1].keys()
        assert all(torch.equal(both[0][name], both[1][name]) for name in both[0])
    for (name, a), b in zip(
        plain.state_dict().items(), with_nda.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_warm_up_starts_from_plain_moco() -> None:
    batch = views(IMAGES)
    nda = {"spec": IMAGE_OP, "weight": 2.0, "warmup_steps": 10}
    plain = step(make(), batch)["loss"]
    losses = [step(make(nda), batch, step=s)["loss"] for s in (0, 5, 10, 11)]
    assert torch.equal(losses[0], plain)
    assert losses[0] < losses[1] < losses[2] == losses[3]


@pytest.mark.parametrize("bn_splits", [1, 2])
def test_running_statistics_do_not_move_under_the_backward_pass(bn_splits: int) -> None:
    """Symmetric, broken views encoded with gradient and running statistics: of both true views.

    The gradient is that of a network whose statistics are frozen copies.
    """
    nda = {"spec": IMAGE_OP, "encoder": "query", "norm": "running"}
    config = {"encoder": "toy:batch", "bn_splits": bn_splits, "shuffle": False}
    method, batch = make(nda, config, symmetric=True), views(IMAGES)
    frozen = copy.deepcopy(method)
    found = gradients(method, batch)

    def freeze_statistics(layer: nn.Module, _: Any) -> None:
        if not layer.training:
            layer.running_mean = layer.running_mean.clone()
            layer.running_var = layer.running_var.clone()

    for layer in frozen.moco.encoder.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.register_forward_pre_hook(freeze_statistics)
    expected = gradients(frozen, batch)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


# --- batch norm ----------------------------------------------------------------------------------


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in module.named_buffers()}


def expected_negatives(method: MocoMethod, batch: dict, broken: Tensor, norm: str) -> Tensor:
    """The vectors of ``broken`` by a copy of the encoder, in the company that ``norm`` names."""
    moco = copy.deepcopy(method.moco)
    by_key = method.nda.encoder == "key"
    encoder, head = (moco.key_encoder, moco.key_head) if by_key else (moco.encoder, moco.head)
    true = method.pixels(batch["views"][:, 1 if by_key else 0])
    if norm == "shared":
        return head(encoder(torch.cat([true, broken])))[len(true) :]
    encoder(true)
    return head(encoder.eval()(broken) if norm == "running" else encoder(broken))


@pytest.mark.parametrize("encoder", ["key", "query"])
@pytest.mark.parametrize("norm", ["own", "running", "shared"])
def test_broken_views_are_normalised_as_asked(norm: str, encoder: str, contrasted: list) -> None:
    nda = {"spec": "reverse", "norm": norm, "encoder": encoder}
    config = {"encoder": "toy:batch", "momentum": 1.0}
    method, plain = make(nda, config), make(moco=config)
    for index in range(2):  # statistics that are worth something
        warm = views(CLIPS, seed=10 + index)
        step(method, warm), step(plain, warm)
    before, batch = copy.deepcopy(method), views(CLIPS)
    broken = method.pixels(batch["views"][:, 1]).flip(2)
    step(method, batch), step(plain, batch)
    nda_vectors = contrasted[-2]["nda"][:, 0]
    with torch.no_grad():
        each = {
            n: expected_negatives(before, batch, broken, n) for n in ("own", "running", "shared")
        }
    torch.testing.assert_close(nda_vectors, each[norm])
    others = [vectors for name, vectors in each.items() if name != norm]
    assert all((nda_vectors - other).norm() > 1e-2 for other in others)
    # The statistics of true samples are spared, save where they were asked to be mixed.
    found, wanted = statistics(method), statistics(plain)
    moved = {n for n in wanted if "running" in n and not torch.equal(found[n], wanted[n])}
    mixed = {f"moco.{'key_' if encoder == 'key' else ''}encoder.net.{i}" for i in (1, 4)}
    expected = {f"{layer}.running_{s}" for layer in mixed for s in ("mean", "var")}
    assert moved == (expected if norm == "shared" else set())


def test_surroundings_leave_layers_as_they_were() -> None:
    for norm in ("own", "running"):
        method = make({"spec": IMAGE_OP, "norm": norm}, {"encoder": "toy:batch"})
        step(method, views(IMAGES))
        layers = [m for m in method.modules() if isinstance(m, nn.BatchNorm3d)]
        assert len(layers) == 4
        assert all(layer.training and layer.track_running_stats for layer in layers)


def test_broken_views_have_a_shuffle_of_their_own() -> None:
    config = {"encoder": "toy:batch", "bn_splits": 2, "queue_size": 20}
    method = make({"spec": IMAGE_OP, "view": "key"}, config)
    batch = views(IMAGES, batch=8)
    seen = given(method.moco.key_encoder)
    # Levels that no jigsaw changes tell who came at which place.
    levels = batch["views"].float().mean((2, 3, 4))[:, 1]
    step(method, batch)
    orders = [
        (method.pixels(batch["views"][:, 1]).mean((1, 2, 3))[:, None] - x.mean((1, 2, 3)))
        .abs()
        .argmin(dim=1)
        .tolist()
        for x in seen
    ]
    assert len(levels.unique()) == 8 and len(orders) == 2
    assert all(sorted(order) == list(range(8)) for order in orders)
    assert orders[0] != orders[1] and list(range(8)) not in orders


# --- precision, randomness, and the rest ---------------------------------------------------------


@pytest.mark.parametrize("encoder", ["key", "query"])
def test_bfloat16_ends_before_the_similarities(encoder: str, contrasted: list) -> None:
    method = make({"spec": IMAGE_OP, "encoder": encoder}, {"encoder": "toy:batch", "bn_splits": 2})
    full = step(copy.deepcopy(method), views(IMAGES))
    outputs: list[torch.dtype] = []
    method.moco.encoder.register_forward_hook(lambda m, i, o: outputs.append(o.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = step(method, views(IMAGES))
    result["loss"].backward()
    assert set(outputs) == {torch.bfloat16}
    call = contrasted[-1]
    assert result["loss"].dtype == method.moco.queue.dtype == torch.float32
    for block in (call["result"].positive, call["result"].negatives, call["result"].nda):
        assert block.dtype == torch.float32
    for vectors in (call["query"], call["positive"], call["nda"].flatten(0, 1), method.moco.queue):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=1), torch.ones(len(vectors)), rtol=0, atol=1e-6)
    similarity = call["query"] @ call["queue"].T / method.temperature
    torch.testing.assert_close(call["result"].negatives, similarity)
    # How bfloat16 rounds is the processor's: with AMX units this tiny net's loss is 3.2% off.
    torch.testing.assert_close(result["loss"], full["loss"], rtol=5e-2, atol=0)


@pytest.mark.parametrize("spec", ["stitch", "mixup", "frame_shuffle", "jigsaw | reverse"])
def test_draws_come_from_the_generator_alone(spec: str) -> None:
    config = {"encoder": "toy:batch", "bn_splits": 2}
    batch, losses = views(CLIPS), []
    for default_seed, seed in ((1, 0), (2, 0), (1, 1)):
        method = make({"spec": spec}, config)
        with torch.random.fork_rng():
            torch.manual_seed(default_seed)
            before = torch.get_rng_state()
            losses.append(step(method, batch, seed=seed)["loss"])
            assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_nda_leaves_views_and_shuffles_of_the_true_samples_alone(contrasted: list) -> None:
    def augment(pixels: Tensor, generator: torch.Generator | None) -> Tensor:
        return torch.rand(pixels.shape, generator=generator)

    batch = {"image": torch.zeros(4, *IMAGES, dtype=torch.uint8)}
    config = {"encoder": "toy:batch", "bn_splits": 2}
    for nda in ({}, {"spec": IMAGE_OP, "per_sample": 2}, {"spec": "stitch", "view": "fresh"}):
        step(make(nda, config, augment=augment), batch)
    for name in ("query", "positive"):
        assert torch.equal(contrasted[0][name], contrasted[1][name])
        assert torch.equal(contrasted[0][name], contrasted[2][name])


def test_metrics_are_detached_and_averaged_over_directions() -> None:
    batch = views(IMAGES)
    one_way = step(make({"spec": IMAGE_OP}), batch)
    of_nda = {"nda_accuracy", "nda_outrank", "nda_active", "nda_unchanged"}
    assert set(one_way) == {"loss", "top1", "top5"} | of_nda
    assert {n for n, value in one_way.items() if value.requires_grad} == {"loss"}
    assert set(step(make(), batch)) == {"loss", "top1", "top5"}
    # Without randomness, the mean of the two directions is that of two one-way steps.
    swapped = {"views": batch["views"].flip(1)}
    both = step(make(symmetric=True), batch)
    apart = [step(make(), one) for one in (batch, swapped)]
    for name, value in both.items():
        torch.testing.assert_close(value, (apart[0][name] + apart[1][name]) / 2)


@pytest.mark.parametrize("shape", [IMAGES, CLIPS], ids=["images", "clips"])
def test_features_are_the_encoders_pooled_map(shape) -> None:
    method = make().eval()
    pixels = views(shape)["views"][:, 0]
    expected = method.moco.encoder(method.pixels(pixels)).flatten(2).mean(2)
    torch.testing.assert_close(method.features(pixels), expected)
    assert method.moco.queue_pointer == 0


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ConfigError, match="temperature"):
        make(temperature=temperature)


@pytest.mark.parametrize("share", ["own", "batch"])
def test_nda_outrank_is_the_share_of_rows_whose_negative_beats_the_positive(
    share: str, contrasted: list
) -> None:
    nda = {"spec": IMAGE_OP, "per_sample": 2, "share": share}
    result = step(make(nda, {"queue_size": 20}), views(IMAGES, batch=8))
    call = contrasted[0]
    beaten = 0
    for row in range(8):
        rivals = call["nda"][row] if share == "own" else call["nda"]
        query = call["query"][row].detach()
        beaten += max(query @ rival for rival in rivals) > query @ call["positive"][row]
    assert result["nda_outrank"].item() == pytest.approx(int(beaten) / 8)


def test_compiled_encoders_give_the_same_step() -> None:
    """Tracing alone: running statistics are used and spared in graphs as outside."""
    for norm in ("own", "running"):
        results = []
        for compiled in (False, True):
            method = make(
                {"spec": IMAGE_OP, "norm": norm}, {"encoder": "toy:batch", "bn_splits": 2}
            )
            if compiled:
                for target in method.compile_targets():
                    target.compile(backend="eager")
            losses = [step(method, views(IMAGES, seed=s), seed=s)["loss"] for s in (0, 1)]
            results.append((losses, dict(method.named_buffers())))
        torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize(("weight", "told_apart"), [(1.0, True), (0.0, False)])
def test_the_nda_term_drives_broken_views_away(weight: float, told_apart: bool) -> None:
    """Pictures that light up, learnt by heart: played backwards they fade."""
    method = make({"spec": "reverse", "weight": weight}, {"queue_size": 32}, temperature=0.1)
    pictures = views(IMAGES, batch=8)["views"].unsqueeze(3) // 4
    light = 45 * torch.arange(4).view(4, 1, 1)
    batch = {"views": (pictures + light).to(torch.uint8)}
    optimizer = torch.optim.Adam(method.parameters(), lr=1e-2)
    for index in range(60):
        result = step(method, batch, seed=index)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
    assert (result["nda_accuracy"] == 1) == told_apart
    assert (result["nda_outrank"] == 0) == told_apart


@pytest.mark.gpu
@pytest.mark.parametrize("norm", ["own", "running", "shared"])
@pytest.mark.parametrize("encoder", ["key", "query"])
def test_cuda_draws_and_scores_like_cpu(norm: str, encoder: str) -> None:
    nda = {"spec": "frame_shuffle | cutout", "norm": norm, "encoder": encoder, "share": "batch"}
    config = {"encoder": "toy:batch", "bn_splits": 2}
    batch = views(CLIPS)
    on_cuda = {name: value.cuda() for name, value in batch.items()}
    on_cpu, method = step(make(nda, config), batch), make(nda, config).cuda()
    torch.testing.assert_close(
        step(method, on_cuda)["loss"].cpu(), on_cpu["loss"], rtol=1e-2, atol=0
    )
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype=dtype):
            result = step(make(nda, config).cuda(), on_cuda)
        assert result["loss"].dtype == torch.float32
        torch.testing.assert_close(result["loss"].cpu(), on_cpu["loss"], rtol=5e-2, atol=0)
