"""Image files in folders: one folder a class, or no classes at all."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import torch

from ndavid.data.file_tree import find_files, is_hidden
from ndavid.data.image_reading import IMAGE_SUFFIXES
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
    present = sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and not is_hidden(entry.name)
    )
    classes = _read_class_list(Path(class_list)) if class_list else present
    if absent := sorted(set(classes) - set(present)):
        reason = f"has no folder for {len(absent)} of the classes in {class_list}: {absent[0]}"
        raise DataError(folder, reason)
    if not classes:
        reason = "split may name the wrong part; source flat takes images without classes"
        raise DataError(folder, f"holds no class folders; {reason}")
    labels = {name: label for label, name in enumerate(classes)}
    found = find_files(folder, IMAGE_SUFFIXES, tops=classes)
    if not found.files:
        raise DataError(folder, "its class folders hold no images")
    # By class, folder and name, as torchvision lists them: what an index means must not change.
    placed = sorted(
        (labels[path.parts[0]], str(path.parent), path.name)
        for path in map(PurePosixPath, found.files)
    )
    numbers = torch.tensor([label for label, _, _ in placed])
    notes = found.notes("images")
    filled = {PurePosixPath(parent).parts[0] for _, parent, _ in placed}
    if empty := [name for name in classes if name not in filled]:
        more = f" and {len(empty) - 5} more" if len(empty) > 5 else ""
        notes += (f"{len(empty)} classes without images: {', '.join(empty[:5])}{more}",)
    paths = [f"{parent}/{name}" for _, parent, name in placed]
    return FileImages(folder, paths, numbers, classes, notes=notes)


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
    found = find_files(folder, IMAGE_SUFFIXES)
    count = len(found.files)
    if not count:
        raise DataError(folder, f"holds no images, which end in {', '.join(IMAGE_SUFFIXES)}")
    return FileImages(
        folder, found.files, torch.full((count,), -1), (), notes=found.notes("images")
    )


def _read_class_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"cannot be read as a list of classes: {error}") from error
    names = [words[0] for line in lines if (words := line.split())]
    if not names:
        raise DataError(path, "names no class")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(path, f"names {twice} twice")
    return names
