"""GanMethod on two ranks: the gradients of one process that has the whole batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import processes
import pytest
import ranks
import torch
import torch.distributed as dist
from torch import Tensor
from toys import SwapLeftHalves

from ndavid.collectives import rank, world_size
from ndavid.methods import gan_config
from ndavid.methods.gan import GanMethod
from ndavid.methods.gan_config import AdversarialConfig, GanNdaConfig
from ndavid.models.gan.model import GanConfig

BATCH = 8
SCRIPT = Path(__file__).with_name("gan_run.py")


class SharedDraws(GanMethod):
    """Latents and labels of the whole batch, of which each rank takes its part."""

    def _draw(self, batches: Any, generator: Any) -> tuple[Tensor, Tensor | None]:
        latents = torch.randn(BATCH, self.gan.config.latent_dim, generator=generator)
        labels = torch.randint(self.gan.config.num_classes, (BATCH,), generator=generator)
        return mine(latents), mine(labels)


def mine(whole: Tensor) -> Tensor:
    return whole.chunk(world_size())[rank()]


def gradients_of_a_step() -> dict[str, Tensor]:
    """Of each player's turn, averaged over ranks as DDP does; and batch norm's statistics."""
    gan_config.nda.from_spec = lambda spec: SwapLeftHalves()  # type: ignore[assignment]
    torch.manual_seed(0)
    method = SharedDraws(
        GanConfig(architecture="sngan", generator_channels=2, discriminator_channels=4,
                  latent_dim=8, num_classes=3),
        GanNdaConfig(spec="swap"),
        adversarial=AdversarialConfig(discriminator_steps=1),
    ).train()  # fmt: skip
    draws = torch.Generator().manual_seed(1)
    image = torch.rand(BATCH, 3, 32, 32, generator=draws)
    label = torch.randint(3, (BATCH,), generator=draws)
    with torch.no_grad():
        updates = method.plan_updates(
            [{"image": mine(image), "label": mine(label)}], generator=draws, step=0
        )
    found: dict[str, Tensor] = {}
    for network, (batch,) in updates:
        method.zero_grad()
        method(batch, generator=None, step=0)["loss"].backward()
        for name, parameter in method.gan.get_submodule(network).named_parameters():
            assert parameter.grad is not None
            if world_size() > 1:
                dist.all_reduce(parameter.grad)
            found[f"{network}.{name}"] = parameter.grad / world_size()
    return found | {f"buffer.{name}": value for name, value in method.named_buffers()}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return ranks.run(Path(__file__), tmp_path_factory.mktemp("ranks"))


def test_two_ranks_give_the_gradients_and_statistics_of_one(
    two_ranks: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gan_config.nda, "from_spec", gan_config.nda.from_spec)
    alone = gradients_of_a_step()
    assert two_ranks[0].keys() == alone.keys()
    for name, exact in alone.items():
        for found in two_ranks:
            error = (found[name].double() - exact.double()).norm()
            assert error < 1e-4 * exact.double().norm() + 1e-5, name


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    output = tmp_path_factory.mktemp("alone") / "run"
    processes.run(SCRIPT, [], output)
    return torch.load(output / "rank0.pt", weights_only=True)


@pytest.mark.parametrize(("number", "batch", "accumulate"), [(1, 4, 2), (2, 4, 1), (2, 2, 2)])
def test_runs_end_alike_however_a_step_is_shared_out(
    alone: dict[str, Tensor], tmp_path: Path, number: int, batch: int, accumulate: int
) -> None:
    output = tmp_path / "run"
    options = [f"--run.batch_size={batch}", f"--optim.accumulate_steps={accumulate}"]
    processes.run(SCRIPT, options, output, ranks=number)
    ended = [torch.load(output / f"rank{k}.pt", weights_only=True) for k in range(number)]
    for name, exact in alone.items():
        for state in ended:
            torch.testing.assert_close(state[name], exact, atol=1e-3, rtol=1e-3, msg=name)
        assert torch.equal(ended[0][name], ended[-1][name]), name


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    ranks.serve(gradients_of_a_step)
