"""DiffAugment against a loop over images that changes them as the paper says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ndavid.errors import ConfigError
from ndavid.methods.diff_augment import DiffAugment, DiffAugmentDraws, Policy

ALL: tuple[Policy, ...] = ("color", "translation", "cutout")


def images(batch: int = 6, size: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, 3, size, size, generator=generator) * 2 - 1


def naive(x: Tensor, draws: DiffAugmentDraws, policies: tuple[Policy, ...]) -> Tensor:
    """One image and one change at a time."""
    results = []
    for i, image in enumerate(x):
        if "color" in policies:
            image = image + draws.brightness[i]
            gray = image.mean(dim=0, keepdim=True)
            image = gray + draws.saturation[i] * (image - gray)
            image = image.mean() + draws.contrast[i] * (image - image.mean())
        size = image.shape[-1]
        if "translation" in policies:
            down, right = draws.shift[i].tolist()
            moved = torch.zeros_like(image)
            for row in range(size):
                for column in range(size):
                    if 0 <= row - down < size and 0 <= column - right < size:
                        moved[:, row, column] = image[:, row - down, column - right]
            image = moved
        if "cutout" in policies:
            side = int(size / 2 + 0.5)
            top, left = (draws.centre[i] - side // 2).tolist()
            image = image.clone()
            image[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        results.append(image)
    return torch.stack(results)


@pytest.mark.parametrize("policies", [(p,) for p in ALL] + [ALL, ("cutout", "color")])
@pytest.mark.parametrize("size", [8, 11, 16])
def test_agrees_with_a_loop_over_images(policies: tuple[Policy, ...], size: int) -> None:
    augment = DiffAugment(policies)
    x = images(size=size)
    draws = augment.sample(x.shape, torch.Generator().manual_seed(3))
    torch.testing.assert_close(augment.apply(x, draws), naive(x, draws, policies))
    assert not torch.equal(augment.apply(x, draws), x)


def test_draws_fill_the_ranges_of_the_paper() -> None:
    draws = DiffAugment(ALL).sample((4000, 3, 32, 32), torch.Generator().manual_seed(0))
    for factor, low, high in (
        (draws.brightness, -0.5, 0.5),
        (draws.saturation, 0.0, 2.0),
        (draws.contrast, 0.5, 1.5),
    ):
        assert low <= factor.min() < low + 0.01 and high - 0.01 < factor.max() <= high
    for axis in (0, 1):
        assert draws.shift[:, axis].unique().tolist() == list(range(-4, 5))
        assert draws.centre[:, axis].unique().tolist() == list(range(33))
    # Rows and columns, and images, are independent of each other.
    assert torch.corrcoef(draws.shift.T.float())[0, 1].abs() < 0.05
    assert len(draws.brightness.unique()) > 3900


def test_one_policy_draws_the_same_whatever_others_are_on() -> None:
    alone = DiffAugment(["cutout"]).sample((5, 3, 16, 16), torch.Generator().manual_seed(1))
    beside = DiffAugment(ALL).sample((5, 3, 16, 16), torch.Generator().manual_seed(1))
    assert torch.equal(alone.centre, beside.centre)


@pytest.mark.parametrize("policies", [(p,) for p in ALL] + [ALL])
def test_gradient_is_that_of_the_loop(policies: tuple[Policy, ...]) -> None:
    augment = DiffAugment(policies)
    draws = augment.sample((4, 3, 8, 8), torch.Generator().manual_seed(2))
    weights = images(4, 8, seed=9).double()
    gradients = []
    for function in (lambda x: augment.apply(x, draws), lambda x: naive(x, draws, policies)):
        x = images(4, 8).requires_grad_()
        (function(x) * weights).sum().backward()
        gradients.append(x.grad)
    assert gradients[0] is not None and gradients[1] is not None
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_is_a_function_of_the_generator_alone() -> None:
    x = images()
    augment = DiffAugment(ALL)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = augment(x, torch.Generator().manual_seed(4))
    torch.manual_seed(1)
    again = augment(x, torch.Generator().manual_seed(4))
    other = augment(x, torch.Generator().manual_seed(5))
    assert torch.equal(first, again) and not torch.equal(first, other)
    torch.manual_seed(0)
    assert not torch.equal(augment(x), augment(x))  # None: a fresh generator each time
    assert torch.equal(torch.get_rng_state(), before)


def test_keeps_shape_and_dtype_and_leaves_its_input_alone() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = images().to(dtype)
        kept = x.clone()
        result = DiffAugment(ALL)(x, torch.Generator().manual_seed(0))
        assert result.shape == x.shape and result.dtype == dtype
        assert torch.equal(x, kept)


def test_channels_last_images_give_the_same_values() -> None:
    augment = DiffAugment(ALL)
    plain = augment(images(), torch.Generator().manual_seed(0))
    x = images().contiguous(memory_format=torch.channels_last)
    assert torch.allclose(augment(x, torch.Generator().manual_seed(0)), plain, atol=1e-6)


def test_without_policies_images_stay_as_they_are() -> None:
    x = images()
    assert DiffAugment([])(x) is x


def test_compiles_without_a_graph_break() -> None:
    augment = DiffAugment(ALL)
    x = images()
    draws = augment.sample(x.shape, torch.Generator().manual_seed(0))
    compiled = torch.compile(augment.apply, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, draws), augment.apply(x, draws), atol=1e-6)


def test_unusable_input_is_named() -> None:
    with pytest.raises(ConfigError, match="unknown policy 'flip' of DiffAugment: any of color"):
        DiffAugment(["flip"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="twice: color, color"):
        DiffAugment(["color", "color"])
    augment = DiffAugment(["color"])
    for shape in ((2, 1, 8, 8), (2, 3, 8, 9), (3, 8, 8), (0, 3, 8, 8)):
        with pytest.raises(ValueError, match=r"images \(B, 3, S, S\)"):
            augment(torch.zeros(shape))
    with pytest.raises(ValueError, match="drawn for 4 images, got 3"):
        augment.apply(images(3), augment.sample((4, 3, 16, 16)))
