"""Tiny image sets in their official layouts, with MD5 sums that torchvision then expects."""

from __future__ import annotations

import hashlib
import io
import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from torch import Tensor
from torchvision import datasets


def random_images(count: int, size: int, seed: int) -> np.ndarray:
    """uint8 (count, 3, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    shape = (count, 3, size, size)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator).numpy()


def photo(seed: int, height: int = 40, width: int = 48) -> Tensor:
    """A smooth picture, uint8 (3, H, W), which JPEG keeps nearly as it is."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 4, 4, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (smooth[0] * 255).to(torch.uint8)


def encoded(pixels: Tensor, kind: str = "JPEG", mode: str = "RGB") -> bytes:
    """An image file of uint8 (3, H, W)."""
    target = io.BytesIO()
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).convert(mode)
    image.save(target, format=kind, **({"quality": 95} if kind == "JPEG" else {}))
    return target.getvalue()


def write_tree(folder: Path, classes: dict[str, int], size: tuple[int, int] = (40, 48)) -> Path:
    """Class folders with that many JPEGs each."""
    for place, (name, count) in enumerate(classes.items()):
        (folder / name).mkdir(parents=True)
        for k in range(count):
            (folder / name / f"{k}.jpg").write_bytes(encoded(photo(100 * place + k, *size)))
    return folder


def _listed(folder: Path, names: list[str]) -> list[list[str]]:
    """Files with their MD5 sums, as torchvision lists them."""
    return [[name, hashlib.md5((folder / name).read_bytes()).hexdigest()] for name in names]


def write_cifar(
    root: Path, monkeypatch: pytest.MonkeyPatch, fine: bool = False
) -> dict[str, tuple]:
    """CIFAR-10, or -100 with `fine`; returns (images, labels) by split."""
    kind = datasets.CIFAR100 if fine else datasets.CIFAR10
    key, num_classes = ("fine_labels", 100) if fine else ("labels", 10)
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    parts = {"train": ["train"] if fine else [f"data_batch_{k}" for k in range(1, 6)]}
    parts["test"] = ["test"] if fine else ["test_batch"]
    written = {}
    for seed, (split, names) in enumerate(parts.items()):
        images = random_images(4 * len(names), 32, seed)
        labels = [(7 * k) % num_classes for k in range(len(images))]
        written[split] = (images, labels)
        for k, name in enumerate(names):
            rows = slice(4 * k, 4 * k + 4)
            entry = {"data": images[rows].reshape(4, -1), key: labels[rows]}
            (folder / name).write_bytes(pickle.dumps(entry))
    classes = [f"class {k}" for k in range(num_classes)]
    meta = kind.meta["filename"]
    (folder / meta).write_bytes(pickle.dumps({kind.meta["key"]: classes}))
    monkeypatch.setattr(kind, "train_list", _listed(folder, parts["train"]))
    monkeypatch.setattr(kind, "test_list", _listed(folder, parts["test"]))
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": _listed(folder, [meta])[0][1]})
    return written


def write_stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple]:
    """STL-10: columns before rows in its files, labels from 1; returns (images, labels)."""
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    written = {}
    for seed, split in enumerate(("train", "test", "unlabeled")):
        images = random_images(3 + seed, 96, seed)
        labels = (
            [-1] * len(images) if split == "unlabeled" else [k % 10 for k in range(len(images))]
        )
        written[split] = (images, labels)
        images.transpose(0, 1, 3, 2).tofile(folder / f"{split}_X.bin")
        if split != "unlabeled":
            (np.array(labels, dtype=np.uint8) + 1).tofile(folder / f"{split}_y.bin")
    (folder / "class_names.txt").write_text("\n".join(f"animal{k}" for k in range(10)) + "\n")
    train = _listed(folder, ["train_X.bin", "train_y.bin", "unlabeled_X.bin"])
    monkeypatch.setattr(datasets.STL10, "train_list", train)
    monkeypatch.setattr(datasets.STL10, "test_list", _listed(folder, ["test_X.bin", "test_y.bin"]))
    return written


def write_svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple]:
    """SVHN: .mat files with images last and the digit 0 called 10; returns (images, labels)."""
    root.mkdir(parents=True, exist_ok=True)
    written, listed = {}, {}
    for seed, split in enumerate(("train", "test", "extra")):
        images = random_images(5, 32, seed)
        labels = [0, 9, 1, 0, 5]
        written[split] = (images, labels)
        name = f"{split}_32x32.mat"
        digits = np.array([[label or 10] for label in labels], dtype=np.uint8)
        scipy.io.savemat(root / name, {"X": images.transpose(2, 3, 1, 0), "y": digits})
        listed[split] = ["", *_listed(root, [name])[0]]
    monkeypatch.setattr(datasets.SVHN, "split_list", listed)
    return written


def write_dtd(root: Path) -> dict[str, list[str]]:
    """DTD's layout, two partitions of three parts; returns the first one's paths by split."""
    base = root / "dtd" / "dtd"
    names = [f"{name}/{name}_{k}.jpg" for name in ("banded", "woven") for k in range(6)]
    for place, name in enumerate(names):
        (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "images" / name).write_bytes(encoded(photo(place, 40 + place, 50)))
    (base / "labels").mkdir()
    parts = {split: names[place::3] for place, split in enumerate(("train", "val", "test"))}
    for split, files in parts.items():
        (base / "labels" / f"{split}1.txt").write_text("".join(f"{name}\n" for name in files))
        (base / "labels" / f"{split}2.txt").write_text("")
    return parts


def write_celeba(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """CelebA's layout with one attribute; returns file names by split."""
    base = root / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [f"{k:06d}.jpg" for k in range(1, 9)]
    parts = {"train": names[:4], "valid": names[4:6], "test": names[6:]}
    for place, name in enumerate(names):
        (base / "img_align_celeba" / name).write_bytes(encoded(photo(place, 218, 178)))
    numbers = {name: place for place, part in enumerate(parts.values()) for name in part}
    tables = {
        "list_eval_partition.txt": ("", [f"{name} {numbers[name]}" for name in names]),
        "identity_CelebA.txt": ("", [f"{name} 1" for name in names]),
        "list_attr_celeba.txt": ("8\nSmiling\n", [f"{name} -1" for name in names]),
        "list_bbox_celeba.txt": ("8\nimage_id x\n", [f"{name} 1" for name in names]),
        "list_landmarks_align_celeba.txt": ("8\nx\n", [f"{name} 1" for name in names]),
    }
    for name, (header, rows) in tables.items():
        (base / name).write_text(header + "\n".join(rows) + "\n")
    listed = [("", digest, name) for name, digest in _listed(base, list(tables))]
    monkeypatch.setattr(datasets.CelebA, "file_list", listed)
    return parts
