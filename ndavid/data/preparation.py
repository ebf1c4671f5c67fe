"""From a folder of videos and its split files to a manifest that everything later reads.

Every listed file is decoded once from end to end (headers lie about frame counts), in parallel, and
on request re-encoded to small H.264. Results go through a journal: a run that was stopped, in
whatever way, goes on where it was. Nothing is dropped in silence: files that do not decode, that
are listed but missing, or that are there but not listed, and sources on both sides of a split, each
get a CSV in the output folder and a line in the summary.
"""

from __future__ import annotations

import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import av

from ndavid.data.annotations import Annotations
from ndavid.data.clip_matching import Matches, match_files
from ndavid.data.decode import probe, verify_backend
from ndavid.data.decoding.truncation import WITHOUT_A_LENGTH
from ndavid.data.encode import FALLBACK_FPS, EncodeSettings, reencode
from ndavid.data.file_digests import DigestKind, file_facts, kind_of
from ndavid.data.journal import Journal
from ndavid.data.leaks import leaked_groups
from ndavid.data.manifest import ClipRecord, Manifest
from ndavid.data.names import fault_of_name
from ndavid.data.preparation_report import (
    BadFile,
    Copies,
    Preparation,
    write_reports,
)
from ndavid.data.video_files import find_videos
from ndavid.data.workers import Crashed, run_all
from ndavid.errors import DataError, first_few
from ndavid.locks import hold
from ndavid.progress import Progress

JOURNAL = "journal.jsonl"
CLIPS = "clips"

# Goes up with every change in what counts as a good file, or in which frames of it count: what the
# journal holds of earlier rules is found out anew.
_RULES = 2


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


def prepare(
    annotations: Annotations,
    videos: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    settings: PrepareSettings | None = None,
    num_workers: int = 2,
    progress: bool = True,
    classes: Sequence[str] = (),
    present_only: bool = False,
) -> Preparation:
    """Probe (and re-encode) the listed videos and write `output/manifest.csv` and the reports.

    Without re-encoding the manifest's root is `videos`; with it, `output`, whose `clips/` holds the
    new files. Running it again does only what is not done: a file counts as done while its size and
    modification time, the settings, and what counts as a good file are the same. Of several files
    of one clip the first that decodes is taken.

    Args:
        annotations: what the lists say.
        videos: the folder of the files.
        output: the folder for the manifest, the reports and the new files.
        settings: what to do with each file.
        num_workers: processes; 0 for this one.
        progress: show a bar.
        classes: take these alone; () for all. Labels count anew, in the order of the lists.
        present_only: leave out the classes that have no usable clip; labels count anew.

    Raises:
        ConfigError: a class that the lists do not have, or another process prepares in that folder.
        DataError: no listed clip is there or decodes, or the output cannot be written.
    """
    started = time.monotonic()
    settings = settings or PrepareSettings()
    videos, output = Path(videos), Path(output)
    root = output if settings.short_side else videos
    found = find_videos(videos)
    usable, odd = _by_name(found.files)
    matches = match_files(annotations.paths, usable)
    if classes:
        annotations = annotations.only(classes, unlabelled=False)
        matches = matches.only(annotations.paths)
    _check_any_match(annotations, matches, videos)
    Manifest(root, annotations.classes, ()).check_names(output / "manifest.csv")
    with hold(output):
        _make_folder(output)
        tasks = _tasks(matches, videos, output, settings)
        _check_targets(tasks, videos, output)
        done = _work_through(tasks, videos, output, settings, num_workers, progress)
        bad = (*odd, *done.bad)
        if not done.sound:
            reason = bad[-1].reason
            raise DataError(videos, f"none of the {len(tasks)} listed files decodes; {reason}")
        present, absent = _present(annotations, done.sound)
        notes = (
            *_notes_on_absent(annotations, absent, present_only),
            *annotations.notes,
            *found.notes("videos"),
            *_notes_on_kinds(done.sound),
        )
        if present_only:
            annotations = annotations.only(present, unlabelled=True)
            matches = matches.only(annotations.paths)
        records = _records(annotations, done.tasks, done.results, settings)
        manifest = Manifest(root, annotations.classes, records)
        preparation = Preparation(
            manifest_path=manifest.write(output / "manifest.csv"),
            manifest=manifest,
            bad=bad,
            missing=matches.missing,
            unlisted=matches.unlisted,
            copies=_copies(matches, done.sound, done.failed),
            absent=absent,
            leaks=leaked_groups(manifest),
            notes=notes,
            passed_over=found.passed_over,
            num_reused=done.num_reused,
            seconds=time.monotonic() - started,
        )
        write_reports(preparation, asdict(settings), output)
    return preparation


# --- files and classes ----------------------------------------------------------------------------


def _by_name(files: Iterable[str]) -> tuple[list[str], list[BadFile]]:
    """The files whose names a manifest can hold, and the others with what is wrong."""
    usable, odd = [], []
    for file in files:
        fault = fault_of_name(file)
        if fault is None:
            usable.append(file)
        else:
            odd.append(BadFile(file, f"{fault}: rename it"))
    return usable, odd


def _present(
    annotations: Annotations, sound: Sequence[_Task]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The classes that have a usable clip, and those that have none."""
    labels = {annotations.label_of(task.clip) for task in sound}
    present: list[str] = []
    absent: list[str] = []
    for label, name in enumerate(annotations.classes):
        (present if label in labels else absent).append(name)
    return tuple(present), tuple(absent)


def _notes_on_absent(
    annotations: Annotations, absent: Sequence[str], left_out: bool
) -> tuple[str, ...]:
    if not absent:
        return ()
    have = "has no clip" if len(absent) == 1 else "have no clip"
    what = f"{len(absent)} of {len(annotations.classes)} classes {have} ({first_few(absent)})"
    if left_out:
        return (f"{what} and were left out; labels count anew",)
    return (f"{what}; --present-only leaves such classes out and counts labels anew",)


def _copies(
    matches: Matches, sound: Sequence[_Task], failed: Mapping[str, Sequence[BadFile]]
) -> tuple[Copies, ...]:
    """The clips that have several files, or could have any of several."""
    copies = []
    for task in sound:
        if others := matches.others.get(task.clip):
            reasons = {bad.path: bad.reason for bad in failed.get(task.clip, ())}
            files = (matches.files[task.clip], *others)
            left = (BadFile(file, reasons.get(file, "")) for file in files if file != task.file)
            copies.append(Copies(task.clip, task.file, tuple(left)))
    for clip, files in matches.unclear.items():
        copies.append(Copies(clip, "", tuple(BadFile(file, "") for file in files)))
    return tuple(copies)


# --- tasks, in this process -----------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """One file's work, as sent to a worker.

    Attributes:
        clip: its path in the lists.
        file: its path below the videos' folder; `source` is where that is.
        target: where the new file goes, if one is written.
        others: further files of the clip, for when this one does not decode.
        key: its result's name in the journal.
    """

    clip: str
    file: str
    source: str
    target: str | None
    settings: PrepareSettings
    others: tuple[str, ...]
    key: str


@dataclass(frozen=True)
class _Done:
    """What working through the tasks gave.

    Attributes:
        tasks: for each clip the one whose file is taken.
        results: the journal's entry of each, by clip.
        failed: the files of each clip that do not decode.
        num_reused: clips with nothing left to do.
    """

    tasks: Sequence[_Task]
    results: Mapping[str, Mapping[str, Any]]
    failed: Mapping[str, Sequence[BadFile]]
    num_reused: int

    @property
    def sound(self) -> tuple[_Task, ...]:
        """The tasks whose file can be used."""
        return tuple(task for task in self.tasks if "error" not in self.results[task.clip])

    @property
    def bad(self) -> tuple[BadFile, ...]:
        """The files of the clips that have no usable one."""
        bad: list[BadFile] = []
        for task in self.tasks:
            if "error" in self.results[task.clip]:
                own = BadFile(task.file, self.results[task.clip]["error"])
                failed = self.failed.get(task.clip, ())
                bad += failed if own in failed else (*failed, own)
        return tuple(bad)


def _tasks(matches: Matches, videos: Path, output: Path, settings: PrepareSettings) -> list[_Task]:
    targets = _target_names(matches.files) if settings.short_side else {}
    return [
        _Task(
            clip=clip,
            file=file,
            source=str(videos / file),
            target=str(output / targets[clip]) if clip in targets else None,
            settings=settings,
            others=matches.others.get(clip, ()),
            key=clip,
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
    return _is_target(task.target, entry)


def _is_target(target: str, entry: Mapping[str, Any]) -> bool:
    """Whether the new file is there and is the one that was written."""
    digest = entry.get("digest", "")  # an older version kept none
    try:
        if os.stat(target).st_size != entry["target_bytes"]:
            return False
        return not digest or file_facts(target, kind_of(digest)).digest == digest
    except (OSError, DataError):
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
        "rules": _RULES,
    }


def _comparable(identity: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """An identity without the settings that decide no more than what else is found out."""
    if not identity:
        return None
    kept = {key: identity["settings"].get(key) for key in ("short_side", "gop", "crf")}
    return {**identity, "settings": kept}


def _work_through(
    tasks: Sequence[_Task],
    videos: Path,
    output: Path,
    settings: PrepareSettings,
    num_workers: int,
    progress: bool,
) -> _Done:
    """Everything that is done to a file, for one file of each clip."""
    with Journal(output / JOURNAL) as journal:
        chosen, failed, num_reused = _examine_all(tasks, videos, journal, num_workers, progress)
        sound = [task for task in chosen if "error" not in (journal.get(task.key) or {})]
        todo = [task for task in sound if not _has_digest(task, journal.get(task.key))]
        _work_off(_find_digest, todo, journal, num_workers, "digests", len(sound), progress)
        if settings.verify_decord:
            # By itself and always in a process of its own: where decord takes that one down, the
            # file is not for decord, and sound all the same.
            unsure = [t for t in sound if (journal.get(t.key) or {}).get("decord_ok") is None]
            _work_off(
                _ask_decord, unsure, journal, max(1, num_workers), "decord", len(sound), progress
            )
        results = {task.clip: journal.get(task.key) or {} for task in chosen}
    return _Done(chosen, results, failed, num_reused)


def _examine_all(
    tasks: Sequence[_Task], videos: Path, journal: Journal, num_workers: int, progress: bool
) -> tuple[list[_Task], dict[str, list[BadFile]], int]:
    """Looks for a file that decodes, first among all clips' first files, then their second ones.

    Returns the task of each clip's first sound file (or else of its first), the files of each clip
    that failed, and the number of clips with nothing to do.
    """
    chosen = {task.clip: task for task in tasks}
    failed: dict[str, list[BadFile]] = defaultdict(list)
    worked: set[str] = set()
    verb = "re-encoding" if any(task.target for task in tasks) else "probing"
    batch = list(tasks)
    while batch:
        todo = [task for task in batch if not _is_done(task, journal.get(task.key))]
        worked |= {task.clip for task in todo}
        _work_off(_examine, todo, journal, num_workers, verb, len(batch), progress)
        following = []
        for task in batch:
            result = journal.get(task.key) or {}
            if "error" not in result:
                chosen[task.clip] = task
                continue
            failed[task.clip].append(BadFile(task.file, result["error"]))
            if task.others:
                following.append(_next_file(task, videos))
        batch = following
    return [chosen[task.clip] for task in tasks], failed, len(tasks) - len(worked)


def _next_file(task: _Task, videos: Path) -> _Task:
    file, *others = task.others
    return replace(
        task,
        file=file,
        source=str(videos / file),
        others=tuple(others),
        key=f"{task.clip} from {file}",
    )


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
    begun = total - len(todo)
    with Progress(total, verb, unit="file", silent=not progress, begun=begun) as shown:
        num_bad = 0
        for task, result in run_all(work, todo, min(num_workers, len(todo))):
            if isinstance(result, Crashed):
                result = _after_crash(work, task)
            # What was found of another file of that name does not count for this one.
            before = {} if work is _examine else journal.get(task.key) or {}
            journal.put(task.key, {**before, **result})
            num_bad += "error" in result
            shown.note = f"bad {num_bad}" if num_bad else ""
            shown.advance()


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
                damaged=result["damaged"],
            )
        )
    return tuple(records)


def _notes_on_kinds(tasks: Sequence[_Task]) -> list[str]:
    """What a person should know of the kinds of files there are."""
    kinds = Counter(PurePosixPath(task.file).suffix.lower() for task in tasks)
    found = sorted(kind for kind in kinds if kind in WITHOUT_A_LENGTH)
    if not found:
        return []
    count = sum(kinds[kind] for kind in found)
    files = "1 file" if count == 1 else f"{count} files"
    return [
        f"{files} of a kind that does not say how long it is ({' '.join(found)}): one that was cut "
        "off exactly between two packets passes as whole"
    ]


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
    files = (file for task in tasks for file in (task.file, *task.others)) if targets else ()
    sources = {os.path.realpath(videos / file) for file in files}
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
    except DataError as error:
        # A file that came, went or changed meanwhile is looked at anew next time.
        unchanged = _identity(task) == identity
        return {"identity": identity if unchanged else {}, "error": error.reason}
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
            "damaged": info.damaged,
        }
    else:
        encode = EncodeSettings(gop=settings.gop, crf=settings.crf)
        video = reencode(task.source, task.target, short_side=settings.short_side, settings=encode)
        facts = {
            "frames": video.num_frames,
            "fps": video.fps,
            "width": video.width,
            "height": video.height,
            "damaged": video.damaged,
            "target_bytes": os.stat(task.target).st_size,
        }
    return {**facts, "fps": round(facts["fps"], 6), **_digest(task)}


def _digest(task: _Task) -> dict[str, Any]:
    """Which file the manifest's row is of."""
    found = file_facts(task.target or task.source, task.settings.digest_kind)
    return {"bytes": found.num_bytes, "digest": found.digest}


def _find_digest(task: _Task) -> dict[str, Any]:
    """The digest of a file that was found sound before."""
    try:
        return _digest(task)
    except DataError as error:
        return _gone_bad(error.reason)


def _ask_decord(task: _Task) -> dict[str, Any]:
    """Whether decord gives the reference's frames, of a file that was found sound before."""
    try:
        return {"decord_ok": verify_backend(task.target or task.source, "decord")}
    except DataError as error:
        return _gone_bad(error.reason)
    except OSError as error:
        return _gone_bad(f"cannot be read: {error.strerror or error}")


def _gone_bad(reason: str) -> dict[str, Any]:
    """An entry for a file that changed or vanished meanwhile; the next run looks at it anew."""
    return {"identity": {}, "error": reason}
