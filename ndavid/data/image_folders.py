"""Image files in folders: one folder a class, or no classes at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ndavid.data.image_sources import FileImages
from ndavid.errors import DataError


def open_tree(root: Path, split: str, class_list: str = "") -> FileImages:
    """The images of a tree of class folders.

    Args:
        root: the tree.
        split: the subfolder that holds the class folders, "" for root itself.
        class_list: text file that names the classes to take, in label order; "" for all, by name.

    Raises:
        DataError: no such folder, class folder or list, or no images.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(folder, "no such folder; it should hold one folder of images a class")
    present = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    classes = _read_class_list(Path(class_list)) if class_list else present
    if absent := sorted(set(classes) - set(present)):
        reason = f"has no folder for {len(absent)} of the classes in {class_list}: {absent[0]}"
        raise DataError(folder, reason)
    if not classes:
        reason = "split may name the wrong part; source flat takes images without classes"
        raise DataError(folder, f"holds no class folders; {reason}")
    labels = {name: label for label, name in enumerate(classes)}
    found = make_dataset(str(folder), labels, IMG_EXTENSIONS, allow_empty=True)
    if not found:
        raise DataError(folder, "its class folders hold no images")
    # By label: torchvision goes by name, and a class list may have another order.
    found.sort(key=lambda item: item[1])
    paths = [Path(path).relative_to(folder).as_posix() for path, _ in found]
    return FileImages(folder, paths, torch.tensor([label for _, label in found]), classes)


def open_flat(root: Path, split: str) -> FileImages:
    """All images below a folder, at any depth, without labels; what is hidden is left out.

    Args:
        root: the folder.
        split: the subfolder to take, "" for root itself; so is "train" where there is none.

    Raises:
        DataError: no such folder, or no images.
    """
    folder = root / split
    if split == "train" and not folder.exists():
        folder = root  # a user's own pictures lie in no part
    if not folder.is_dir():
        raise DataError(folder, "no such folder; it should hold images")
    paths = sorted(path.relative_to(folder).as_posix() for path in _files_below(folder))
    if not paths:
        raise DataError(folder, f"holds no images, which end in {', '.join(IMG_EXTENSIONS)}")
    return FileImages(folder, paths, torch.full((len(paths),), -1), ())


def _files_below(folder: Path) -> Iterator[Path]:
    """Image files at any depth, through links, each folder once; nothing that is hidden."""
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        # Pruned in place: os.walk goes where the list says. A link may lead back up.
        folders[:] = [] if real in seen else sorted(f for f in folders if not f.startswith("."))
        if real in seen:
            continue
        seen.add(real)
        for name in names:
            if name.lower().endswith(IMG_EXTENSIONS) and not name.startswith("."):
                yield Path(place) / name


def _read_class_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read as a list of classes: {error}") from error
    names = [words[0] for line in lines if (words := line.split())]
    if not names:
        raise DataError(path, "names no class")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(path, f"names {twice} twice")
    return names
