"""Typed configs: one dataclass and one YAML a run, with overrides on the command line.

Plain dataclasses describe a config; jsonargparse checks types and writes ``--help``. A misspelt key
or a wrong type is a ConfigError that names the file (or the command line) and the nearest valid
key. Overrides win over files whatever the order on the command line:

    train.py --config run.yaml --optim.lr 1e-3 --run.epochs 20
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import functools
import math
import os
import re
import sys
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import jsonargparse
import yaml

from ndavid.errors import ConfigError
from ndavid.failures import DEBUG_HELP, DEBUG_OPTION, debugging, in_one_line

T = TypeVar("T")

COMMAND_LINE = "command line"

# A string under a field is its help text, as in litgpt's configs.
jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)


def parse(cls: type[T], argv: Sequence[str] | None = None, *, description: str = "") -> T:
    """Builds a ``cls`` from ``--config FILE`` and overrides such as ``--optim.lr 1e-3``.

    Args:
        cls: a dataclass with a default for every field; fields may be dataclasses themselves, or
            lists of them.
        argv: the words after the program's name; ``sys.argv[1:]`` when None.
        description: the text on top of ``--help``.

    Raises:
        ConfigError: an unknown key, a value of the wrong type, an unreadable file.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _parser(cast(Any, cls), description)
    files, overrides = _split_config_option(words)
    if "-h" in overrides or "--help" in overrides:
        parser.print_help()
        raise SystemExit(0)
    _check_options(overrides, cls)
    values: dict[str, Any] = {}
    for file in files:
        values = _merge(values, _read_checked(cls, parser, Path(file)))
    namespace = _guarded(cls, COMMAND_LINE, lambda: parser.parse_object(values))
    namespace = _guarded(
        cls, COMMAND_LINE, lambda: parser.parse_args(overrides, namespace=namespace)
    )
    return _build(cls, namespace)


def from_yaml(cls: type[T], path_or_text: str | Path) -> T:
    """Builds a ``cls`` from a YAML file (a Path, or a str ending in .yaml/.yml) or from YAML text.

    Raises:
        ConfigError: as `parse`.
    """
    parser = _parser(cast(Any, cls), "")
    if isinstance(path_or_text, Path) or re.fullmatch(r"\S[^\n]*\.ya?ml", path_or_text):
        values = _read_checked(cls, parser, Path(path_or_text))
    else:
        values = _checked(cls, parser, path_or_text, "config text")
    return _build(cls, _guarded(cls, "config", lambda: parser.parse_object(values)))


def to_yaml(config: object) -> str:
    """The YAML of a config dataclass, keys in field order; `from_yaml` reads it back equal.

    Of a mapping, such as some of a dataclass's values, likewise.
    """
    return yaml.safe_dump(to_values(config), sort_keys=False, allow_unicode=True)


def to_values(config: object) -> dict[str, Any]:
    """A config dataclass, or a mapping, as nested dicts of what YAML gives back: no tuples."""
    values = config if isinstance(config, Mapping) else dataclasses.asdict(cast(Any, config))
    return {key: _as_read(value) for key, value in values.items()}


def _as_read(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _as_read(inner) for key, inner in value.items()}
    return [_as_read(one) for one in value] if isinstance(value, list | tuple) else value


def flatten(values: object, prefix: str = "") -> dict[str, Any]:
    """Nested mappings -> dotted keys; whatever else there is, lists too, is a leaf."""
    flat: dict[str, Any] = {}
    for key, value in values.items() if isinstance(values, Mapping) else ():
        inner = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


When = Literal["always", "elsewhere", "elsewhere, in other batches", "with the same data"]
"""When a run that is resumed may have another value of a key than it began with."""


def changeable(default: Any = dataclasses.MISSING, *, when: When = "always", **options: Any) -> Any:
    """A config field that a resumed run may change; all others must stay as they were.

    Args:
        default: the field's.
        when: always, for what decides how long a run lasts, what it writes and how fast it reads,
            not what a step computes; elsewhere (``run.resume_elsewhere``), for how a step is
            computed and shared out, not what it learns from, and for what cuts the data into other
            batches; or with the same data, for where data or first weights lie.
        options: of ``dataclasses.field``, such as ``default_factory``.
    """
    return dataclasses.field(default=default, metadata={"changeable": when}, **options)


def changeable_keys(cls: type) -> dict[str, When]:
    """The dotted keys of a config dataclass that are `changeable`, and when."""
    hints = get_type_hints(cls)
    found: dict[str, When] = {}
    for field in dataclasses.fields(cast(Any, cls)):
        if when := field.metadata.get("changeable"):
            found[field.name] = when
        if group := _dataclass_of(hints[field.name]):
            found |= {f"{field.name}.{key}": when for key, when in changeable_keys(group).items()}
    return found


def given_keys(argv: Sequence[str]) -> set[str]:
    """The dotted keys that a command line and its ``--config`` files set, whatever to.

    Args:
        argv: the words after the program's name, such as `parse` has taken.
    """
    files, words = _split_config_option(argv)
    given: set[str] = set()
    for file in files:
        given |= flatten(yaml.safe_load(Path(file).read_text(encoding="utf-8-sig"))).keys()
    for place, word in enumerate(words):
        if not re.match(r"--[A-Za-z]", word):
            continue
        name, sign, value = word[2:].partition("=")
        # A group may be given whole: --nda '{spec: reverse}'.
        value = value if sign else next(iter(words[place + 1 :]), "")
        try:
            names = set(flatten(yaml.safe_load(value), f"{name}."))
        except yaml.YAMLError:
            names = set()
        given |= names or {name.removesuffix("+")}
    return given


def run_main(main: Callable[[], object]) -> NoReturn:
    """Runs a script's main; what a user can cause becomes one line on stderr and exit code 2.

    That is an NdavidError, and what `failures.in_one_line` knows: a full disk, too little memory, a
    value out of range. ``--debug``, or NDAVID_DEBUG=1 in the environment, shows the traceback too.
    A fault of the program (a TypeError, a KeyError) always shows it.

    Ctrl-C ends with 130 and a line of what is kept, where something is; a SystemExit raised inside
    (143 after SIGTERM) keeps its code.
    """
    given = sys.argv[1:]
    debug = debugging(given)
    sys.argv[1:] = given
    try:
        main()
        sys.stdout.flush()
    except Exception as error:
        line = in_one_line(error)
        if line is None:
            raise
        if isinstance(error, BrokenPipeError):
            # Python would complain again when it empties what was not read.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if debug:
            traceback.print_exception(error)
        print(f"error{_rank_note()}: {line}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt as stopped:
        words = f": {' '.join(map(str, stopped.args))}" if stopped.args else ""
        print(f"interrupted{_rank_note()}{words}", file=sys.stderr, flush=True)
        raise SystemExit(130) from None
    raise SystemExit(0)


def nearest(name: str, valid: Sequence[str], *, elsewhere: Sequence[str] = ()) -> str:
    """The hint ``; did you mean 'x'?`` for a misspelt key, or the list of valid ones.

    Args:
        name: the dotted key as written.
        valid: the keys that could stand in its place.
        elsewhere: keys of other groups, for one written under the wrong group or none.
    """
    leaf = name.rsplit(".", 1)[-1]
    everywhere = [*valid, *elsewhere]
    matches = [key for key in everywhere if key.rsplit(".", 1)[-1] == leaf]
    matches = matches or difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    matches = matches or difflib.get_close_matches(name, everywhere, n=1, cutoff=0.6)
    if matches:
        return f"; did you mean '{matches[0]}'?"
    return f"; valid: {', '.join(valid)}"


def field_types(cls: type) -> dict[str, Any]:
    """Dotted key -> annotation of every leaf of a config dataclass, groups left out."""
    return {key: kind for key, kind in _walk_types(cls, "") if _dataclass_of(kind) is None}


def _rank_note() -> str:
    """Names the rank on all but the first, so that one fault on eight ranks reads as one."""
    rank = os.environ.get("RANK", "0")
    return "" if rank == "0" else f" (rank {rank})"


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, jsonargparse.DefaultHelpFormatter):
    """Keeps the lines of the description: commands in it are there to be copied."""


# Kept: a study reads hundreds of command lines, and setting a parser up takes half of each.
@functools.cache
def _parser(cls: type, description: str) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(
        description=description or (cls.__doc__ or "").split("\n\n")[0],
        formatter_class=_HelpFormatter,
        exit_on_error=False,
        allow_abbrev=False,
        default_env=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file; the options below win over it, in any order"
    )
    # For --help alone: `run_main` takes it off the command line.
    parser.add_argument(DEBUG_OPTION, action="store_true", help=DEBUG_HELP)
    parser.add_class_arguments(cls)
    return parser


def _split_config_option(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes ``--config FILE`` out, so that a file never overrides what was typed before it."""
    files, rest = [], []
    iterator = iter(words)
    for word in iterator:
        if word == "--config":
            file = next(iterator, None)
            if file is None:
                raise ConfigError(f"{COMMAND_LINE}: --config needs a file")
            files.append(file)
        elif word.startswith("--config="):
            files.append(word.split("=", 1)[1])
        else:
            rest.append(word)
    return files, rest


def _check_options(words: Sequence[str], cls: type) -> None:
    valid = [key for key, _ in _walk_types(cls, "")]
    tables = [key for key, kind in _walk_types(cls, "") if get_origin(kind) is dict]
    for word in words:
        # A lone "--" or a negative number is not an option.
        if not re.match(r"--[A-Za-z]", word):
            continue
        name = word[2:].split("=", 1)[0].removesuffix("+")
        table, _, entry = name.rpartition(".")
        # The keys of a dict are the user's.
        if name not in valid and table not in tables:
            close = difflib.get_close_matches(table, tables, n=1)
            hint = nearest(name, [f"{close[0]}.{entry}"] if close else list(field_types(cls)))
            raise ConfigError(f"{COMMAND_LINE}: unknown option '--{name}'{hint}")


def _read_checked(cls: type, parser: jsonargparse.ArgumentParser, path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise ConfigError(f"{path}: cannot read the config: {reason}") from error
    return _checked(cls, parser, text, str(path))


def _checked(
    cls: type, parser: jsonargparse.ArgumentParser, text: str, source: str
) -> dict[str, Any]:
    """YAML text -> values whose keys and types fit ``cls``."""
    try:
        values = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not valid YAML: {' '.join(str(error).split())}") from error
    values = {} if values is None else values
    _check_keys(cls, values, source, "", list(field_types(cls)))
    _guarded(cls, source, lambda: parser.parse_object(values))
    return values


class _StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, where PyYAML lets the last one win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                where = node.start_mark.line + 1
                raise yaml.YAMLError(f"key '{key}' is given twice in the block at line {where}")
        return super().construct_mapping(node, deep=deep)


def _check_keys(
    cls: type, values: object, source: str, prefix: str, top_keys: Sequence[str]
) -> None:
    if not isinstance(values, dict):
        what = f"'{prefix}'" if prefix else "a config"
        raise ConfigError(f"{source}: {what} must be a block of keys, not {values!r}")
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cast(Any, cls))]
    for key, value in values.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        if key not in names:
            valid = [f"{prefix}.{name}" if prefix else name for name in names]
            hint = nearest(dotted, valid, elsewhere=top_keys)
            raise ConfigError(f"{source}: unknown key '{dotted}'{hint}")
        group, element = _dataclass_of(hints[key]), _element_of(hints[key])
        if value is None and not _is_optional(hints[key]):
            raise ConfigError(f"{source}: '{dotted}' has no value")
        if group is not None and value is not None:
            _check_keys(group, value, source, dotted, top_keys)
        if element is not None:
            _check_entries(element, value, source, dotted)


@functools.cache
def _entry_parser(cls: type) -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False, default_env=False)
    parser.add_class_arguments(cls)
    return parser


def _check_entries(cls: type, values: object, source: str, key: str) -> None:
    """Checks a list of config dataclasses, entry by entry: their errors would name the list."""
    if not isinstance(values, list):
        raise ConfigError(f"{source}: '{key}' must be a list, not {values!r}")
    parser = _entry_parser(cls)
    for number, entry in enumerate(values):
        _check_keys(cls, entry, source, f"{key}[{number}]", [])
        where = f"{source}: {key}[{number}]"
        namespace = _guarded(cls, where, functools.partial(parser.parse_object, entry))
        # Its own checks run here too: inside the list they would be reported as a wrong type.
        _build(cls, namespace, f"{key}[{number}].")


def _walk_types(cls: type, prefix: str) -> Iterator[tuple[str, Any]]:
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cast(Any, cls)):
        key = f"{prefix}{field.name}"
        yield key, hints[field.name]
        group = _dataclass_of(hints[field.name])
        if group is not None:
            yield from _walk_types(group, f"{key}.")


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType) and type(None) in get_args(kind)


def _dataclass_of(kind: Any) -> type | None:
    """The dataclass an annotation stands for (itself, or inside an Optional), or None."""
    options = get_args(kind) if _is_optional(kind) else (kind,)
    found = [o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)]
    return found[0] if found else None


def _element_of(kind: Any) -> type | None:
    """The dataclass of which an annotation stands for a list, or None."""
    return _dataclass_of(get_args(kind)[0]) if get_origin(kind) is list else None


def _merge(base: dict[str, Any], update: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in update.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _guarded(cls: type, source: str, step: Callable[[], Any]) -> Any:
    """Runs a jsonargparse step; its errors become a ConfigError that names source and key."""
    try:
        return step()
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {_explain(cls, str(error))}") from error


def _explain(cls: type, message: str) -> str:
    """Rewrites jsonargparse's message as ``key: expected kind, got value``."""
    message = " ".join(message.split())
    key = re.search(r'[Kk]ey "([\w.]+)"', message)
    value = re.search(r"(?:Got|Given) value: (.*)$", message)
    kind = field_types(cls).get(key.group(1)) if key else None
    if key is None or value is None or kind is None:
        return message
    got = value.group(1)
    if get_origin(kind) is Literal:
        options = [str(option) for option in get_args(kind)]
        return f"'{key.group(1)}' is '{got}'{_one_of(got, options)}"
    quote = f"; for the text put it in quotes: '{got}'" if kind is str else ""
    return f"'{key.group(1)}' must be {_kind_name(kind)}, not {got}{quote}"


def _one_of(got: str, options: list[str]) -> str:
    close = difflib.get_close_matches(got, options, n=1, cutoff=0.5)
    hint = f"; did you mean '{close[0]}'?" if close else ""
    return f", which is not one of {', '.join(options)}{hint}"


def _kind_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)


def _build(cls: type[T], namespace: Any, prefix: str = "") -> T:
    """Namespace -> dataclass, so that ``__post_init__`` checks run once on the final values."""
    hints = get_type_hints(cls)
    values = {}
    for field in dataclasses.fields(cast(Any, cls)):
        value = getattr(namespace, field.name)
        group, element = _dataclass_of(hints[field.name]), _element_of(hints[field.name])
        if group is not None and value is not None:
            value = _build(group, value, f"{prefix}{field.name}.")
        elif element is not None:
            value = [
                _build(element, entry, f"{prefix}{field.name}[{number}].")
                for number, entry in enumerate(value)
            ]
        else:
            _check_numbers(f"{prefix}{field.name}", value)
        values[field.name] = value
    try:
        return cls(**values)
    except (ConfigError, ValueError) as error:
        raise ConfigError(_with_group(str(error), prefix, values)) from error


def _check_numbers(key: str, value: object) -> None:
    """Refuses what no key means and torch cannot hold: NaN, infinity, integers beyond 64 bits."""
    for number in value if isinstance(value, list | tuple) else [value]:
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"'{key}' must be a finite number, not {number}")
        if isinstance(number, int) and not -(2**63) <= number < 2**63:
            raise ConfigError(f"'{key}' must be a number of at most 64 bits, not {number}")


def _with_group(message: str, prefix: str, names: Mapping[str, Any]) -> str:
    """Completes the key that a dataclass's own check names without knowing what it is part of."""
    first = re.match(r"\w+", message)
    return f"{prefix}{message}" if first and first[0] in names else message
