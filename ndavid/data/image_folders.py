"""Image files in folders: one folder a class, or no classes at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch

from ndavid.data.file_tree import find_files, is_hidden
from ndavid.data.image_reading import IMAGE_SUFFIXES
from ndavid.data.image_sources import FileImages
from ndavid.data.split_names import side_called
from ndavid.errors import DataError, first_few, printable


def open_tree(root: Path, split: str, class_list: str = "") -> FileImages:
    """The images of a tree of class folders.

    Args:
        root: the tree.
        split: the subfolder that holds the class folders, "" for root itself; "train", "test" and
            "val" find it under any usual name (`Training`, `valid`).
        class_list: text file that names the classes to take, in label order; "" for all, by name.

    Raises:
        DataError: no such folder, class folder or list, no images, or split folders in place of
            class folders.
    """
    folder = _part_of(root, split)
    if not folder.is_dir():
        raise DataError(
            folder, f"no such folder; it should hold one folder of images a class; {_there(root)}"
        )
    present = _folders_in(folder)
    classes = _read_class_list(Path(class_list)) if class_list else present
    if absent := sorted(set(classes) - set(present)):
        reason = f"has no folder for {len(absent)} of the classes in {class_list}: {absent[0]}"
        raise DataError(folder, reason)
    if not classes:
        reason = "split may name the wrong part; source flat takes images without classes"
        raise DataError(folder, f"holds no class folders; {reason}")
    if not split and not class_list:
        _check_no_splits(folder, classes)
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
        notes += (printable(f"classes without images: {len(empty)} ({first_few(empty)})"),)
    paths = [f"{parent}/{name}" for _, parent, name in placed]
    return FileImages(folder, paths, numbers, classes, notes=notes)


def open_flat(root: Path, split: str) -> FileImages:
    """All images below a folder, at any depth, without labels; what is hidden is left out.

    Args:
        root: the folder.
        split: the subfolder to take, under any usual name, "" for root itself; so is "train" where
            there is no subfolder of any split.

    Raises:
        DataError: no such folder, no images, or test images that would be trained on.
    """
    folder = _part_of(root, split)
    if split == "train" and not folder.exists():
        folder = root  # a user's own pictures lie in no part
        _check_nothing_is_held_out(root)
    if not folder.is_dir():
        raise DataError(folder, "no such folder; it should hold images")
    found = find_files(folder, IMAGE_SUFFIXES)
    count = len(found.files)
    if not count:
        raise DataError(folder, f"holds no images, which end in {', '.join(IMAGE_SUFFIXES)}")
    return FileImages(
        folder, found.files, torch.full((count,), -1), (), notes=found.notes("images")
    )


def _part_of(root: Path, split: str) -> Path:
    """The folder of a split, under its own name or, where that is not there, under a usual one."""
    folder = root / split
    if not split or folder.exists() or not root.is_dir() or side_called(split) != split:
        return folder
    others = [name for name in _folders_in(root) if side_called(name) == split]
    if len(others) > 1:
        raise DataError(root, f"which is {split}: {first_few(others)}? Name one of them as split")
    return root / others[0] if others else folder


def _check_no_splits(folder: Path, classes: Sequence[str]) -> None:
    """The folders of a split are no classes: test images would be trained on."""
    splits = [name for name in classes if side_called(name)]
    if len({side_called(name) for name in splits}) > 1:
        raise DataError(
            folder,
            f"holds the split folders {first_few(splits)}, which are no classes: name one of them "
            "as split (--data.split train), or, if these are classes, list them in a class_list",
        )


def _there(root: Path) -> str:
    """What could be given as a split instead, in words."""
    there = _folders_in(root) if root.is_dir() else []
    if not there:
        return f"{root} holds no folders either"
    return f"{root} holds {first_few(there)}: name a split (data.split, test_split)"


def _check_nothing_is_held_out(root: Path) -> None:
    """Where there is no training folder, one that is called test or val is not to be trained on."""
    held_out = [name for name in _folders_in(root) if side_called(name)] if root.is_dir() else []
    if held_out:
        raise DataError(
            root,
            f"has no folder train, and {first_few(held_out)} would be trained on: name the folder "
            'to take as split ("" takes all)',
        )


def _folders_in(root: Path) -> list[str]:
    return sorted(p.name for p in root.iterdir() if p.is_dir() and not is_hidden(p.name))


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
