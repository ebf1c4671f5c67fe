"""Is a prepared dataset still what its manifest says?"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ndavid.data.changed_files import changed_files, is_recorded
from ndavid.data.decode import probe
from ndavid.data.file_tree import find_files
from ndavid.data.leaks import leaked_groups
from ndavid.data.manifest import ClipRecord, Manifest, read_manifest
from ndavid.data.split_names import side_called
from ndavid.data.video_files import VIDEO_SUFFIXES
from ndavid.data.workers import Crashed, run_all
from ndavid.errors import DataError, DecodeError, first_few
from ndavid.files import file_sha256
from ndavid.progress import Progress


@dataclass(frozen=True)
class Verification:
    """What a check found.

    Attributes:
        absent: classes that have no clip at all, of `num_classes`.
        num_unknown: clips whose row does not say which file it is of, as in older manifests.
        errors: what makes the set unusable as it stands; one line each.
        warnings: what makes it unusable unless it is meant; one line each.
        duplicates: paths of files with the same bytes, a tuple a set of copies.
        duplicates_across: those of them that lie on both sides of some fold.
        notes: what lies beside the clips and is no video, a line each.
        num_clips, num_decoded: how many clips there are, and how many were decoded to the end.
    """

    errors: tuple[str, ...]
    duplicates: tuple[tuple[str, ...], ...]
    duplicates_across: tuple[tuple[str, ...], ...]
    num_clips: int
    num_decoded: int
    num_unknown: int = 0
    notes: tuple[str, ...] = ()
    num_classes: int = 0
    absent: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def verify(
    manifest: str | os.PathLike[str],
    *,
    num_decoded: int | None = 32,
    num_workers: int = 2,
    progress: bool = True,
) -> Verification:
    """Check files, labels, splits and groups of a prepared set, and decode some or all of it.

    Args:
        manifest: the CSV, or the folder that holds it.
        num_decoded: how many clips, spread over the manifest, to decode to the end and compare
            with their row (frames and size); None for all.
        num_workers: processes; 0 for this one.
        progress: show how far it is.

    Raises:
        DataError: the manifest itself cannot be read.
    """
    contents = read_manifest(manifest)
    present = [record for record in contents.records if _size(contents, record) > 0]
    chosen = _spread(present, num_decoded)
    duplicates = _duplicates(contents, present)
    errors = [
        *_file_errors(contents),
        *_change_errors(contents, present),
        *_label_errors(contents),
        *(f"leaked group: {leak}" for leak in leaked_groups(contents)),
        *_decoding_errors(contents, chosen, num_workers, progress),
    ]
    return Verification(
        errors=tuple(errors),
        duplicates=duplicates,
        duplicates_across=tuple(s for s in duplicates if _lie_across(contents, s)),
        num_clips=len(contents.records),
        num_decoded=len(chosen),
        num_classes=len(contents.classes),
        absent=_absent(contents),
        num_unknown=sum(not is_recorded(record) for record in contents.records),
        notes=_notes(contents),
        warnings=_warnings(contents),
    )


def _notes(manifest: Manifest) -> tuple[str, ...]:
    """What lies among the clips and is no video; only folders that the manifest names count."""
    tops = {PurePosixPath(record.path).parts[0] for record in manifest.records}
    tops = {top for top in tops if (manifest.root / top).is_dir()}
    loose = any("/" not in record.path for record in manifest.records)
    try:
        found = find_files(manifest.root, VIDEO_SUFFIXES, tops=tops | ({""} if loose else set()))
    except DataError as error:
        return (f"cannot look for what lies beside the clips: {error}",)
    listed = {record.path for record in manifest.records}
    others = [path for path in found.files if path not in listed]
    lines = found.notes("videos")
    if others:
        lines += (f"videos that it does not list: {len(others)} (such as {others[0]})",)
    return lines


def _file_errors(manifest: Manifest) -> list[str]:
    errors = []
    for record in manifest.records:
        size = _size(manifest, record)
        if size <= 0:
            errors.append(f"{record.path}: {'no such file' if size < 0 else 'is empty'}")
    return errors


def _change_errors(manifest: Manifest, present: Sequence[ClipRecord]) -> list[str]:
    changed = changed_files(present, manifest.root)
    return [
        f"{path}: is not the file that was prepared ({change})" for path, change in changed.items()
    ]


def _absent(manifest: Manifest) -> tuple[str, ...]:
    labels = {record.label for record in manifest.records}
    if labels == {-1}:  # a list of unlabelled clips has no classes to lack
        return ()
    return tuple(name for label, name in enumerate(manifest.classes) if label not in labels)


def _warnings(manifest: Manifest) -> tuple[str, ...]:
    """Classes under the names of splits; `--layout classes` of `prepare` means them so."""
    called = {side_called(name) for name in manifest.classes} - {None}
    if "train" not in called or len(called) == 1:
        return ()
    names = ", ".join(filter(side_called, manifest.classes))
    return (
        f"classes are called {names}: if these are the folders of a split, test videos are trained "
        "on; then prepare it again, without --layout classes",
    )


def _label_errors(manifest: Manifest) -> list[str]:
    num_classes = len(manifest.classes)
    errors = [
        f"{record.path}: label {record.label} is not one of {num_classes} classes"
        for record in manifest.records
        if not -1 <= record.label < num_classes
    ]
    # Classes without any clip are told apart: they are the lists', not this set's.
    present = {record.label for record in manifest.records} & set(range(num_classes))
    for fold in range(1, manifest.num_folds + 1):
        for side in ("train", "test"):
            records = manifest.select(side, fold)
            lacking = present - {record.label for record in records}
            # A set without a test side, or a list of unlabelled clips, is not a defect.
            if lacking and any(record.label >= 0 for record in records):
                names = [repr(manifest.classes[label]) for label in sorted(lacking)]
                what = (
                    f"class {names[0]} has no clip"
                    if len(names) == 1
                    else f"{len(names)} of {len(present)} classes have no clip"
                )
                few = f": {first_few(names)}" if len(names) > 1 else ""
                errors.append(f"fold {fold}: {what} in {side}{few}")
    return errors


def _decoding_errors(
    manifest: Manifest, records: Sequence[ClipRecord], num_workers: int, progress: bool
) -> list[str]:
    items = [(str(manifest.root / record.path), record) for record in records]
    errors = []
    with Progress(len(items), "decoding", unit="file", silent=not progress) as shown:
        for (_, record), problem in run_all(_decoding_error, items, min(num_workers, len(items))):
            if isinstance(problem, Crashed):
                problem = "the decoder crashed on it"
            if problem:
                errors.append(f"{record.path}: {problem}")
            shown.advance()
    return sorted(errors)


def _decoding_error(item: tuple[str, ClipRecord]) -> str:
    """Why a file is not what its row says, "" if it is."""
    path, record = item
    try:
        info = probe(path)
    except DecodeError as error:
        return error.reason
    found = (info.num_frames, info.width, info.height)
    expected = (record.num_frames, record.width, record.height)
    if found != expected:
        return "holds {} frames of {}x{}, the manifest says {} of {}x{}".format(*found, *expected)
    return ""


def _spread(records: Sequence[ClipRecord], count: int | None) -> list[ClipRecord]:
    """`count` records evenly over the list (which goes by class), or all."""
    if count is None or count >= len(records):
        return list(records)
    return [records[index * len(records) // count] for index in range(count)]


def _duplicates(manifest: Manifest, records: Iterable[ClipRecord]) -> tuple[tuple[str, ...], ...]:
    """Sets of files with equal bytes. Only files of equal size are read."""
    by_size: dict[int, list[str]] = defaultdict(list)
    for record in records:
        by_size[_size(manifest, record)].append(record.path)
    by_digest: dict[str, list[str]] = defaultdict(list)
    for paths in by_size.values():
        for path in paths if len(paths) > 1 else ():
            by_digest[file_sha256(manifest.root / path)].append(path)
    return tuple(sorted(tuple(sorted(paths)) for paths in by_digest.values() if len(paths) > 1))


def _lie_across(manifest: Manifest, paths: Sequence[str]) -> bool:
    splits = [record.splits for record in manifest.records if record.path in paths]
    return any(len(set(sides) - {""}) > 1 for sides in zip(*splits, strict=True))


def _size(manifest: Manifest, record: ClipRecord) -> int:
    """Bytes, or -1 where there is no file."""
    try:
        return (manifest.root / record.path).stat().st_size
    except OSError:
        return -1
