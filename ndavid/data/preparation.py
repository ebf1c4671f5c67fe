"""From a folder of videos and its split files to a manifest that everything later reads.

Every listed file is decoded once from end to end (headers lie about frame counts), in parallel, and
on request re-encoded to small H.264. Results go through a journal: a run that was stopped, in
whatever way, goes on where it was. Nothing is dropped in silence: files that do not decode, that
are listed but missing, or that are there but not listed, and sources on both sides of a split, each
get a CSV in the output folder and a line in the summary.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import av
from tqdm import tqdm

from ndavid.data.annotations import Annotations
from ndavid.data.clip_matching import Matches, match_files
from ndavid.data.decode import probe, verify_backend
from ndavid.data.encode import FALLBACK_FPS, EncodeSettings, reencode
from ndavid.data.file_digests import DigestKind, file_facts, kind_of
from ndavid.data.file_tree import FileTree
from ndavid.data.journal import Journal
from ndavid.data.leaks import Leak, leaked_groups, sources_shared_by_classes
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.video_files import find_videos
from ndavid.data.workers import Crashed, run_all
from ndavid.errors import DataError, DecodeError, printable
from ndavid.locks import hold

JOURNAL = "journal.jsonl"
CLIPS = "clips"
SHOWN = 5


@dataclass(frozen=True)
class PrepareSettings:
    """What to do with each file.

    Attributes:
        short_side: re-encode to H.264 with this short side in pixels; None keeps the files.
        gop, crf: of the re-encoding; frames a keyframe at most, and x264's quality.
        verify_decord: find out, for each file, whether decord gives the reference's frames.
        full_digest: tell files apart by all of their bytes, not by their size and both ends.
    """

    short_side: int | None = None
    gop: int = 12
    crf: int = 20
    verify_decord: bool = False
    full_digest: bool = False

    @property
    def digest_kind(self) -> DigestKind:
        """Which digest the manifest gets."""
        return "sha256" if self.full_digest else "ends"


@dataclass(frozen=True)
class BadFile:
    """A file that cannot be used, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Preparation:
    """What `prepare` did and found."""

    manifest_path: Path
    manifest: Manifest
    bad: tuple[BadFile, ...]
    missing: tuple[str, ...]
    unlisted: tuple[str, ...]
    leaks: tuple[Leak, ...]
    notes: tuple[str, ...]
    passed_over: Mapping[str, int]
    num_reused: int
    seconds: float


def prepare(
    annotations: Annotations,
    videos: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    settings: PrepareSettings | None = None,
    num_workers: int = 2,
    progress: bool = True,
) -> Preparation:
    """Probe (and re-encode) the listed videos and write `output/manifest.csv` and the reports.

    Without re-encoding the manifest's root is `videos`; with it, `output`, whose `clips/` holds the
    new files. Running it again does only what is not done: a file counts as done while its size and
    modification time, and the settings, are the same.

    Raises:
        DataError: no listed clip is there or decodes, or the output cannot be written.
        ConfigError: another process prepares in that folder.
    """
    settings = settings or PrepareSettings()
    videos, output = Path(videos), Path(output)
    found = find_videos(videos)
    matches = match_files(annotations.paths, found.files)
    _check_any_match(annotations, matches, videos)
    with hold(output):
        return _prepare(
            annotations, found, matches, videos, output, settings, num_workers, progress
        )


def _prepare(
    annotations: Annotations,
    found: FileTree,
    matches: Matches,
    videos: Path,
    output: Path,
    settings: PrepareSettings,
    num_workers: int,
    progress: bool,
) -> Preparation:
    """`prepare` in a folder that no other process writes to."""
    started = time.monotonic()
    _make_folder(output)
    tasks = _tasks(matches, videos, output, settings)
    _check_targets(tasks, videos, output)
    with Journal(output / JOURNAL) as journal:
        todo = [task for task in tasks if not _is_done(task, journal.get(task.clip))]
        verb = "re-encoding" if settings.short_side else "probing"
        _work_off(_examine, todo, journal, num_workers, verb, len(tasks), progress)
        sound = [task for task in tasks if "error" not in (journal.get(task.clip) or {})]
        todo_digest = [task for task in sound if not _has_digest(task, journal.get(task.clip))]
        _work_off(_add_digest, todo_digest, journal, num_workers, "digests", len(sound), progress)
        if settings.verify_decord:
            # By itself and always in a process of its own: where decord takes that one down, the
            # file is not for decord, and sound all the same.
            unsure = [t for t in sound if (journal.get(t.clip) or {}).get("decord_ok") is None]
            _work_off(
                _ask_decord, unsure, journal, max(1, num_workers), "decord", len(sound), progress
            )
        results = {task.clip: journal.get(task.clip) or {} for task in tasks}
    bad = tuple(
        BadFile(t.file, results[t.clip]["error"]) for t in tasks if "error" in results[t.clip]
    )
    root = output if settings.short_side else videos
    records = _records(annotations, tasks, results, settings)
    if not records:
        raise DataError(videos, f"none of the {len(tasks)} listed files decodes; {bad[0].reason}")
    manifest = Manifest(root, annotations.classes, records)
    preparation = Preparation(
        manifest_path=manifest.write(output / "manifest.csv"),
        manifest=manifest,
        bad=bad,
        missing=matches.missing,
        unlisted=matches.unlisted,
        leaks=leaked_groups(manifest),
        notes=(*annotations.notes, *found.notes("videos")),
        passed_over=found.passed_over,
        num_reused=len(tasks) - len(todo),
        seconds=time.monotonic() - started,
    )
    _write_reports(preparation, settings, output)
    return preparation


def summary(preparation: Preparation) -> str:
    """A few lines for a person: counts, splits, lengths, and what is wrong."""
    manifest = preparation.manifest
    lengths = [record.num_frames for record in manifest.records]
    lines = [
        f"{len(lengths)} clips of {len(manifest.classes)} classes -> {preparation.manifest_path} "
        f"({preparation.seconds:.1f} s; {preparation.num_reused} were done before)",
        f"  frames a clip: {min(lengths)} to {max(lengths)}, median {statistics.median(lengths):g}",
    ]
    lines += [f"  {note}" for note in preparation.notes]
    for fold in range(1, manifest.num_folds + 1):
        sides = Counter(record.splits[fold - 1] or "unused" for record in manifest.records)
        parts = ", ".join(
            f"{side} {sides[side]}" for side in ("train", "val", "test", "unused") if sides[side]
        )
        shared = len(sources_shared_by_classes(manifest, fold))
        across = f"; {shared} sources on both sides in different classes" if shared else ""
        lines.append(f"  fold {fold}: {parts}{across}")
    lines += _problem_lines(
        "bad files", "bad_files.csv", [f"{b.path}: {b.reason}" for b in preparation.bad]
    )
    lines += _problem_lines("listed but missing", "missing_files.csv", preparation.missing)
    lines += _problem_lines("there but not listed", "unlisted_files.csv", preparation.unlisted)
    lines += _problem_lines(
        "leaked groups", "leaked_groups.csv", [str(leak) for leak in preparation.leaks]
    )
    return "\n".join(printable(line) for line in lines)


# --- tasks, in this process -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """One file's work, as sent to a worker."""

    clip: str
    file: str
    source: str
    target: str | None
    settings: PrepareSettings


def _tasks(matches: Matches, videos: Path, output: Path, settings: PrepareSettings) -> list[_Task]:
    targets = _target_names(matches.files) if settings.short_side else {}
    return [
        _Task(
            clip=clip,
            file=file,
            source=str(videos / file),
            target=str(output / targets[clip]) if clip in targets else None,
            settings=settings,
        )
        for clip, file in matches.files.items()
    ]


def _target_names(clips: Iterable[str]) -> dict[str, str]:
    """`clips/<path>.mp4`; the suffix stays where two clips differ by nothing else."""
    stems = {clip: str(PurePosixPath(clip).with_suffix("")) for clip in clips}
    uses = Counter(stems.values())
    return {
        clip: f"{CLIPS}/{stem if uses[stem] == 1 else clip}.mp4" for clip, stem in stems.items()
    }


def _is_done(task: _Task, entry: Mapping[str, Any] | None) -> bool:
    examined = _comparable((entry or {}).get("identity"))
    if entry is None or examined is None or examined != _comparable(_identity(task)):
        return False
    if task.target is None or "error" in entry:
        return True
    try:
        return os.stat(task.target).st_size == entry["target_bytes"]
    except OSError:
        return False


def _has_digest(task: _Task, entry: Mapping[str, Any] | None) -> bool:
    """Whether an entry, maybe of an older version, has the digest that is asked for."""
    digest = (entry or {}).get("digest", "")
    return bool(digest) and kind_of(digest) == task.settings.digest_kind


def _identity(task: _Task) -> dict[str, Any]:
    """What a result depends on: if none of it changed, the result stands."""
    try:
        status = os.stat(task.source)
    except OSError:
        return {}
    return {
        "file": task.file,
        "bytes": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "settings": asdict(task.settings),
    }


def _comparable(identity: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An identity without the settings that decide no more than what else is found out."""
    if not identity:
        return None
    kept = {key: identity["settings"].get(key) for key in ("short_side", "gop", "crf")}
    return {**identity, "settings": kept}


def _work_off(
    work: Callable[[_Task], dict[str, Any]],
    todo: Sequence[_Task],
    journal: Journal,
    num_workers: int,
    verb: str,
    total: int,
    progress: bool,
) -> None:
    """Does some work on each task; what it finds is added to the journal's entry of its clip."""
    if not todo:
        return
    with tqdm(
        total=total, initial=total - len(todo), desc=verb, unit="file", disable=not progress
    ) as bar:
        num_bad = 0
        for task, result in run_all(work, todo, min(num_workers, len(todo))):
            if isinstance(result, Crashed):
                result = _after_crash(work, task)
            # What was found of another file of that name does not count for this one.
            before = {} if work is _examine else journal.get(task.clip) or {}
            journal.put(task.clip, {**before, **result})
            num_bad += "error" in result
            bar.set_postfix(bad=num_bad, refresh=False)
            bar.update()


def _after_crash(work: Callable[[_Task], dict[str, Any]], task: _Task) -> dict[str, Any]:
    if work is _ask_decord:
        return {"decord_ok": False}
    return {"error": "the decoder crashed on it", "identity": _identity(task)}


def _records(
    annotations: Annotations,
    tasks: Sequence[_Task],
    results: Mapping[str, Mapping[str, Any]],
    settings: PrepareSettings,
) -> tuple[ClipRecord, ...]:
    targets = _target_names(task.clip for task in tasks)
    records = []
    for task in tasks:
        result = results[task.clip]
        if "error" in result:
            continue
        records.append(
            ClipRecord(
                path=targets[task.clip] if settings.short_side else task.file,
                label=annotations.label_of(task.clip),
                group=annotations.group_of(task.clip),
                num_frames=result["frames"],
                fps=result["fps"],
                width=result["width"],
                height=result["height"],
                splits=annotations.splits_of(task.clip),
                decord_ok=result.get("decord_ok"),
                num_bytes=result["bytes"],
                digest=result["digest"],
            )
        )
    return tuple(records)


def _check_any_match(annotations: Annotations, matches: Matches, videos: Path) -> None:
    if not matches.files:
        example = annotations.paths[0] if annotations.paths else "nothing"
        count = len(annotations.paths)
        raise DataError(videos, f"none of the {count} listed clips is here (such as {example})")


def _check_targets(tasks: Sequence[_Task], videos: Path, output: Path) -> None:
    """Nothing is written outside `output` or over a source, whatever lists and links say."""
    targets = {task.target for task in tasks if task.target is not None}
    for folder in sorted({os.path.dirname(target) for target in targets}):
        place = os.path.realpath(folder)
        if not Path(place).is_relative_to(output.resolve()):
            reason = f"leads out of {output}, to {place}: nothing is written there; remove the link"
            raise DataError(folder, reason)
    sources = {os.path.realpath(task.source) for task in tasks} if targets else set()
    for target in sorted(targets):
        where = os.path.join(os.path.realpath(os.path.dirname(target)), os.path.basename(target))
        if where in sources:
            reason = f"is a video of {videos}, and would be overwritten; give another --output"
            raise DataError(target, reason)


def _make_folder(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        # What a killed run left half written.
        clips = output / CLIPS
        for leftover in () if clips.is_symlink() else clips.rglob(".*.partial.mp4"):
            leftover.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(output, f"cannot write there: {error.strerror}") from error


# --- one file, in a worker ------------------------------------------------------------------------


def _examine(task: _Task) -> dict[str, Any]:
    """The journal's entry for one file: its facts, or why it is bad."""
    identity = _identity(task)
    try:
        facts = _facts(task)
    except (DecodeError, DataError) as error:
        return {"identity": identity, "error": error.reason}
    except (OSError, av.error.FFmpegError) as error:
        # Not the file's fault: a full disk, a folder that may not be written. It stops the run.
        raise DataError(task.target or task.source, f"{type(error).__name__}: {error}") from None
    return {"identity": identity, **facts}


def _facts(task: _Task) -> dict[str, Any]:
    settings = task.settings
    if task.target is None or settings.short_side is None:
        info = probe(task.source)
        facts = {
            "frames": info.num_frames,
            "fps": info.fps or FALLBACK_FPS,
            "width": info.width,
            "height": info.height,
        }
    else:
        encode = EncodeSettings(gop=settings.gop, crf=settings.crf)
        video = reencode(task.source, task.target, short_side=settings.short_side, settings=encode)
        facts = {
            "frames": video.num_frames,
            "fps": video.fps,
            "width": video.width,
            "height": video.height,
            "target_bytes": os.stat(task.target).st_size,
        }
    return {**facts, "fps": round(facts["fps"], 6), **_add_digest(task)}


def _add_digest(task: _Task) -> dict[str, Any]:
    """Which file the manifest's row is of."""
    found = file_facts(task.target or task.source, task.settings.digest_kind)
    return {"bytes": found.num_bytes, "digest": found.digest}


def _ask_decord(task: _Task) -> dict[str, Any]:
    """Whether decord gives the reference's frames."""
    try:
        return {"decord_ok": verify_backend(task.target or task.source, "decord")}
    except DecodeError as error:
        return {"error": error.reason}


# --- reports --------------------------------------------------------------------------------------


def _write_reports(done: Preparation, settings: PrepareSettings, output: Path) -> None:
    _write_csv(output / "bad_files.csv", ("path", "reason"), ((b.path, b.reason) for b in done.bad))
    _write_csv(output / "missing_files.csv", ("path",), ((path,) for path in done.missing))
    _write_csv(output / "unlisted_files.csv", ("path",), ((path,) for path in done.unlisted))
    sides = ("train", "val", "test")
    rows = (
        (leak.fold, leak.class_name, leak.group, *(dict(leak.counts).get(s, 0) for s in sides))
        for leak in done.leaks
    )
    _write_csv(output / "leaked_groups.csv", ("fold", "class", "group", *sides), rows)
    facts = {
        "settings": asdict(settings),
        "clips": len(done.manifest.records),
        "classes": len(done.manifest.classes),
        "folds": done.manifest.num_folds,
        "bad": len(done.bad),
        "missing": len(done.missing),
        "unlisted": len(done.unlisted),
        "leaked_groups": len(done.leaks),
        "passed_over": dict(sorted(done.passed_over.items())),
        "pyav": av.__version__,
        "ffmpeg": getattr(av, "ffmpeg_version_info", ""),
    }
    _write_text(output / "prepare.json", json.dumps(facts, indent=2) + "\n")


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    _write_text(path, text.getvalue())


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.unlink(missing_ok=True)
        with partial.open("x", encoding="utf-8") as stream:  # never through a planted link
            stream.write(text)
        os.replace(partial, path)
    except OSError as error:
        raise DataError(path, f"cannot write it: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _problem_lines(title: str, report: str, problems: Sequence[str]) -> list[str]:
    lines = [f"  {title}: {len(problems)}" + (f" (all in {report})" if problems else "")]
    lines += [f"    {problem}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"    ... and {len(problems) - SHOWN} more")
    return lines
