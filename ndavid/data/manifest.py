"""The manifest: one CSV row a clip, written once by `prepare` and read by everything after it.

    path,label,class,group,frames,fps,width,height,decord_ok,bytes,digest,damaged,split_1,split_2
    Archery/v_g07_c04.avi,2,Archery,g07,51,25.0,320,240,no,81532,ends:2f0c...,0,train,test

`frames` is counted by decoding, not taken from the header. Labels are 0-based, -1 for none. Each of
`bytes`, `digest` and `damaged` may be absent, as in manifests of older versions, or empty. The
videos lie beside the CSV unless its first line is a comment `# root: DIR` (absolute, or relative to
the CSV). `classes.txt` beside the CSV lists the class names in label order, so that a class without
a clip keeps its number.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from ndavid.data.names import check_name, check_text
from ndavid.errors import ConfigError, DataError
from ndavid.files import whole_text, write_whole_text

COLUMNS = ("path", "label", "class", "group", "frames", "fps", "width", "height", "decord_ok")
OPTIONAL_COLUMNS = ("bytes", "digest", "damaged")
SPLITS = ("train", "test", "val", "")
_ROOT_MARK = "# root:"
_DIGEST = re.compile(r"(ends|sha256):[0-9a-f]{32,64}")
_TRISTATE: dict[str, bool | None] = {"yes": True, "no": False, "": None}


@dataclass(frozen=True)
class ClipRecord:
    """One clip: where it is, what it shows, and what decoding it gave.

    Attributes:
        path: relative to the manifest's root, with forward slashes.
        label: 0-based class index, -1 for none.
        group: clips of one source video share it; with "" a clip stands alone. Unique per class.
        num_frames: frames that decode.
        fps: frames per second; 0 for unknown, as in folders of images.
        width, height: pixels, rotation applied.
        splits: "train", "test", "val" or "" (in none), one entry a fold.
        decord_ok: whether decord was seen to give the reference's frames; None where not tried.
        num_bytes: size of the file that was read; None for unknown.
        digest: of that file, as `file_digests.py` writes it; "" for unknown.
        damaged: frames that the decoder flagged as damaged; None where they were not counted.
    """

    path: str
    label: int
    group: str
    num_frames: int
    fps: float
    width: int
    height: int
    splits: tuple[str, ...]
    decord_ok: bool | None = None
    num_bytes: int | None = None
    digest: str = ""
    damaged: int | None = None


@dataclass(frozen=True)
class Manifest:
    """The clips of a prepared dataset; `records[i].path` is relative to `root`."""

    root: Path
    classes: tuple[str, ...]
    records: tuple[ClipRecord, ...]

    @property
    def num_folds(self) -> int:
        """How many official splits the records carry (3 for UCF101 and HMDB51)."""
        return len(self.records[0].splits) if self.records else 0

    def select(self, split: str, fold: int = 1) -> tuple[ClipRecord, ...]:
        """The records of one split ("train", "test", "val") of a fold, counted from 1.

        Raises:
            ConfigError: there is no such fold or split name.
        """
        if split not in SPLITS or not split:
            raise ConfigError(f"no split {split!r}: choose train, test or val")
        if not 1 <= fold <= self.num_folds:
            raise ConfigError(f"no fold {fold}: {self.root} has folds 1 to {self.num_folds}")
        return tuple(record for record in self.records if record.splits[fold - 1] == split)

    def holdout(
        self, fraction: float, seed: int, fold: int = 1, *, otherwise: str = ""
    ) -> tuple[tuple[ClipRecord, ...], tuple[ClipRecord, ...]]:
        """Parts the train split into (train, validation) by whole groups; never touches test.

        Every class gives about `fraction` of its clips, at least one group and never its last one.

        Args:
            fraction: Between 0 and 1.
            seed: Draws the groups.
            fold: Counted from 1.
            otherwise: What a user can do who has no second group: the end of that error.

        Raises:
            ConfigError: the fraction is not inside (0, 1).
            DataError: a class has a single group, so that it would vanish from one of the parts.
        """
        if not 0.0 < fraction < 1.0:
            raise ConfigError(f"the holdout fraction must lie between 0 and 1, got {fraction}")
        generator = torch.Generator().manual_seed(seed)
        train = self.select("train", fold)
        held: set[tuple[int, str]] = set()
        for label, groups in sorted(_groups_by_class(train).items()):
            if len(groups) < 2:
                raise DataError(
                    self.root,
                    f"class {self._class_name(label)} has one train group in fold {fold}: "
                    "holding it out would remove the class from training; add videos of another "
                    f"group (source), {otherwise}".removesuffix(", "),
                )
            held |= {(label, name) for name in _draw_groups(groups, fraction, generator)}
        kept = tuple(r for r in train if (r.label, _group_key(r)) not in held)
        validation = tuple(r for r in train if (r.label, _group_key(r)) in held)
        return kept, validation

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Writes the CSV, and `classes.txt` beside it, so that a reader never meets half a file.

        Raises:
            DataError: a name that could not be read again (see `ndavid.data.names`).
        """
        target = Path(path)
        if target.is_dir():
            target = target / "manifest.csv"
        self.check_names(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole_text(target.parent / "classes.txt", "".join(f"{c}\n" for c in self.classes))
        with whole_text(target) as stream:
            root = self._root_from(target)
            if root != ".":
                stream.write(f"{_ROOT_MARK} {root}\n")
            writer = csv.writer(stream, lineterminator="\n")
            splits = (f"split_{k + 1}" for k in range(self.num_folds))
            writer.writerow([*COLUMNS, *OPTIONAL_COLUMNS, *splits])
            writer.writerows(self._row(record) for record in self.records)
        return target

    def check_names(self, target: Path) -> None:
        """Finds names that could not be read again from a manifest at `target`.

        Raises:
            DataError: there is one (see `ndavid.data.names`).
        """
        check_text(target, "", "root of the videos", self._root_from(target))
        for name in self.classes:
            check_text(target, "", "class name", name)
        for record in self.records:
            check_name(target, "", record.path)
            if record.group:
                check_text(target, record.path, "group", record.group)

    def _root_from(self, target: Path) -> str:
        root = os.path.relpath(self.root.resolve(), target.parent.resolve())
        return Path(root).as_posix()

    def _class_name(self, label: int) -> str:
        return self.classes[label] if label >= 0 else "(unlabelled)"

    def _row(self, record: ClipRecord) -> list[object]:
        name = self.classes[record.label] if record.label >= 0 else ""
        decord = {True: "yes", False: "no", None: ""}[record.decord_ok]
        facts = (record.num_frames, record.fps, record.width, record.height, decord)
        # The csv module writes None as an empty field.
        file_facts = (record.num_bytes, record.digest, record.damaged)
        return [record.path, record.label, name, record.group, *facts, *file_facts, *record.splits]


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Reads `manifest.csv`, given the file or the folder that holds it; checks every row.

    Whether the videos exist is not asked here: a clip whose file is gone says so when it is read.

    Raises:
        DataError: no manifest there, or a row that is not sound (the reason gives its number).
    """
    source = Path(path)
    if source.is_dir():
        source = source / "manifest.csv"
    try:
        text = source.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(source, f"no readable manifest ({error})") from error
    root, first_line, table = _split_off_root(source, text)
    rows = csv.reader(io.StringIO(table, newline=""))
    header = next(_readable(source, rows), None)
    columns = _check_header(source, header)
    records: list[ClipRecord] = []
    names: dict[int, str] = {}
    seen: set[str] = set()
    for row in _readable(source, rows):
        where = f"row {rows.line_num + first_line}"
        record, name = _parse_row(source, where, row, columns)
        if record.path in seen:
            raise DataError(source, f"{where}: {record.path} is listed twice")
        seen.add(record.path)
        if record.label >= 0 and names.setdefault(record.label, name) != name:
            known = names[record.label]
            raise DataError(source, f"{where}: label {record.label} is {known!r} and {name!r}")
        records.append(record)
    if not records:
        raise DataError(source, "the manifest lists no clips")
    return Manifest(root, _class_names(source, names), tuple(records))


def _readable(source: Path, rows: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows of a CSV, whose own errors become the manifest's."""
    try:
        yield from rows
    except csv.Error as error:
        raise DataError(source, f"no readable manifest ({error})") from error


def _split_off_root(source: Path, text: str) -> tuple[Path, int, str]:
    """(where the videos are, lines taken off, the CSV's text)."""
    if not text.startswith(_ROOT_MARK):
        return source.parent, 0, text
    comment, _, table = text.partition("\n")
    root = comment[len(_ROOT_MARK) :].strip()
    if root:
        check_text(source, "line 1", "root of the videos", root)
    return source.parent / root, 1, table


def _check_header(source: Path, header: list[str] | None) -> list[str]:
    """The names of all columns, after checking them."""
    if header is None:
        raise DataError(source, "the manifest is empty")
    present = [name for name in OPTIONAL_COLUMNS if name in header]
    num_folds = len(header) - len(COLUMNS) - len(present)
    expected = [*COLUMNS, *present, *(f"split_{k + 1}" for k in range(num_folds))]
    if num_folds < 1 or header != expected:
        raise DataError(
            source, f"row 1: columns must be {','.join(COLUMNS)}[,{','.join(OPTIONAL_COLUMNS)}],"
            f"split_1[,split_2,...]; got {','.join(header)}"
        )  # fmt: skip
    return header


def _parse_row(
    source: Path, where: str, row: list[str], columns: list[str]
) -> tuple[ClipRecord, str]:
    """(the record, its class name)."""
    if len(row) != len(columns):
        raise DataError(source, f"{where}: {len(row)} fields instead of {len(columns)}")
    fields = dict(zip(columns, row, strict=True))
    try:
        record = ClipRecord(
            path=fields["path"],
            label=int(fields["label"]),
            group=fields["group"],
            num_frames=int(fields["frames"]),
            fps=float(fields["fps"]),
            width=int(fields["width"]),
            height=int(fields["height"]),
            splits=tuple(fields[name] for name in columns if name.startswith("split_")),
            decord_ok=_tristate(fields["decord_ok"]),
            num_bytes=_count(fields.get("bytes", "")),
            digest=fields.get("digest", ""),
            damaged=_count(fields.get("damaged", "")),
        )
    except ValueError as error:
        raise DataError(source, f"{where}: {error}") from error
    _check_record(source, where, record, fields["class"])
    return record, fields["class"]


def _tristate(text: str) -> bool | None:
    if text not in _TRISTATE:
        raise ValueError(f"decord_ok is yes, no or empty, not {text!r}")
    return _TRISTATE[text]


def _count(text: str) -> int | None:
    return int(text) if text else None


def _check_record(source: Path, where: str, record: ClipRecord, name: str) -> None:
    unknown = set(record.splits) - set(SPLITS)
    problems = {
        "no path": not record.path,
        f"path {record.path!r} must be relative to the root": record.path.startswith("/"),
        f"label {record.label} is below -1": record.label < -1,
        f"label {record.label} has no class name": record.label >= 0 and not name,
        f"frames is {record.num_frames}, must be positive": record.num_frames < 1,
        f"size {record.width}x{record.height} must be positive": min(record.width, record.height)
        < 1,
        f"fps {record.fps} must be a number, 0 for unknown": not 0 <= record.fps < float("inf"),
        f"bytes is {record.num_bytes}, must be positive or empty": record.num_bytes is not None
        and record.num_bytes < 1,
        f"digest {record.digest!r} must be ends:HEX, sha256:HEX or empty": bool(record.digest)
        and not _DIGEST.fullmatch(record.digest),
        f"damaged is {record.damaged}, must be a number of frames or empty": (record.damaged or 0)
        < 0,
        f"splits are {'|'.join(SPLITS[:-1])} or empty, not {sorted(unknown)}": bool(unknown),
    }
    for reason, wrong in problems.items():
        if wrong:
            raise DataError(source, f"{where}: {reason}")
    check_name(source, where, record.path)
    if record.label >= 0:
        check_text(source, where, "class name", name)
    if record.group:
        check_text(source, where, "group", record.group)


def _class_names(source: Path, names: dict[int, str]) -> tuple[str, ...]:
    """Class names in label order, from classes.txt or, without one, from the rows."""
    listed = source.parent / "classes.txt"
    if listed.exists():
        classes = _listed_classes(listed)
    else:
        classes = tuple(names.get(k, f"class_{k}") for k in range(max(names, default=-1) + 1))
    for label, name in sorted(names.items()):
        if label >= len(classes) or classes[label] != name:
            expected = classes[label] if label < len(classes) else "nothing"
            raise DataError(source, f"label {label} is {name!r}, but classes.txt has {expected!r}")
    return classes


def _listed_classes(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(path, f"no readable class names ({error})") from error
    return tuple(
        check_text(path, f"line {number}", "class name", line)
        for number, line in enumerate(lines, start=1)
        if line
    )


def _group_key(record: ClipRecord) -> str:
    # A clip without a group is a group of its own; "/" keeps its key apart from real group names.
    return record.group or f"/{record.path}"


def _groups_by_class(records: Iterable[ClipRecord]) -> dict[int, dict[str, int]]:
    """label -> group -> how many clips. A group name counts within its class only."""
    groups: dict[int, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for record in records:
        groups[record.label][_group_key(record)] += 1
    return groups


def _draw_groups(groups: dict[str, int], fraction: float, generator: torch.Generator) -> list[str]:
    """Random groups that hold about `fraction` of the clips; at least one, never all."""
    names = sorted(groups)
    order = [names[i] for i in torch.randperm(len(names), generator=generator).tolist()]
    target = fraction * sum(groups.values())
    drawn = order[:1]
    total = groups[order[0]]
    for name in order[1:-1]:
        if abs(total + groups[name] - target) < abs(total - target):
            drawn.append(name)
            total += groups[name]
    return drawn
