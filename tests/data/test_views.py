"""The training sets of contrastive methods: images or clips in several views."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from ndavid.data.config import ViewsDataConfig
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.transforms import AugmentConfig
from ndavid.data.views import open_views
from ndavid.errors import ConfigError

AUGMENT = AugmentConfig(preset="moco_v2_small", size=24)


def write_tree(root: Path, *, size: int = 32, each: int = 4) -> Path:
    for label, name in enumerate(("a", "b")):
        (root / "train" / name).mkdir(parents=True)
        for index in range(each):
            image = Image.effect_noise((size, size), 40 + 60 * label).convert("RGB")
            image.save(root / "train" / name / f"{index}.png")
    return root


def of_tree(root: Path, **keys: str) -> ViewsDataConfig:
    return ViewsDataConfig(root=str(root), split="train", **keys)  # type: ignore[arg-type]


def test_images_come_in_views_that_differ(tmp_path: Path) -> None:
    data = open_views(of_tree(write_tree(tmp_path)), AUGMENT, 3)
    sample = data.dataset[1, 5]
    assert sample["views"].shape == (3, 3, 24, 24) and sample["views"].dtype == torch.uint8
    assert not torch.equal(sample["views"][0], sample["views"][1])
    assert torch.equal(sample["views"], data.dataset[1, 5]["views"])
    assert data.augment is None and data.groups is None
    assert data.labels.tolist() == [0] * 4 + [1] * 4
    assert torch.equal(data.plain[1]["image"], data.plain[1]["image"])
    assert data.plain[1]["image"].shape == (3, 24, 24)


def test_the_device_makes_views_only_of_what_lives_in_memory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="augment_on: workers"):
        open_views(of_tree(write_tree(tmp_path), augment_on="device"), AUGMENT, 2)


def test_clips_come_in_views_of_their_own_times(
    tmp_path: Path, write_clip: Callable[..., Path]
) -> None:
    records = []
    for index in range(2):
        path = f"v_A_g{index:02d}_c01.mp4"
        write_clip(tmp_path / path, num_frames=24, size=(48, 64))
        records.append(
            ClipRecord(
                path=path,
                label=index,
                group=f"g{index}",
                num_frames=24,
                fps=25.0,
                width=64,
                height=48,
                splits=("train",),
                decord_ok=None,
            )
        )
    Manifest(root=tmp_path, classes=("A", "B"), records=tuple(records)).write(
        tmp_path / "manifest.csv"
    )
    config = ViewsDataConfig(root=str(tmp_path), frame_stride=2, num_frames=4)
    data = open_views(config, AUGMENT, 2)
    assert config.source == "clips", "a run records what was found"
    assert data.dataset[0, 3]["views"].shape == (2, 3, 4, 24, 24)
    assert data.plain[0]["video"].shape == (3, 4, 24, 24)
    assert data.groups == ("g0", "g1") and data.labels.tolist() == [0, 1]
    assert "2 clips" in data.summary
    with pytest.raises(ConfigError, match="videos differ in size"):
        open_views(dataclasses.replace(config, augment_on="device"), AUGMENT, 2)


def test_nothing_to_train_on_says_which_key() -> None:
    with pytest.raises(ConfigError, match=r"data\.root is empty"):
        open_views(ViewsDataConfig(), AUGMENT, 2)
