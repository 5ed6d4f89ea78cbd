"""A job file becomes a `Job`, or one line that says what is wrong with it.

    jobs/x.yaml: model.heds: unknown key; did you mean model.heads?
    jobs/x.yaml: optimizer.lr = -1: expected a number > 0 (and 2 more)

YAML is read with the safe loader; `--set a.b=c` changes a key before anything is checked. Credentials have no place in
a job: it is stored with the run. Nothing heavy is imported, so that a mistake is answered at once.
"""

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.job.keys import any_of, at, child, choices, sections, split_key, suggestion, tagged, type_text
from orchestrator.job.kinds import JOB, KINDS, Job, SweepJob
from orchestrator.job.values import Duration, ImpossibleValue, Section
from orchestrator.redact import REDACTED, holds_credential, redact_text

MOST_KEYS = 10_000
"""Of one mapping in a file. YAML's merge key can double their number with every line."""


class JobError(ValueError):
    """A job that cannot run. Its text is one line, without credentials: the file, the key, the value, what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(redact_text(" ".join(text.splitlines())))


def load_job(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Job:
    """Read and check a job file.

    Args:
        path: the YAML file. Its stem is the run's name, unless the file gives one.
        overrides: `--set` arguments, "a.b=c" with a YAML value, or the same as a mapping {"a.b": value}. Setting a unit
            of a duration replaces the duration: `schedule.length.steps=2` takes the place of `{epochs: 14}`.

    Raises:
        JobError: it is not YAML, holds a credential, has an unknown key, a wrong type or an impossible value.
    """
    job = _load(Path(path), overrides)
    if isinstance(job, SweepJob):
        _check_grid(job)
    return job


@contextmanager
def unexpected_errors_in(source: str) -> Iterator[None]:
    """Turns every error into one line. File systems, clouds and parsers each have errors of their own.

    Raises:
        JobError: in place of any other exception.
    """
    try:
        yield
    except JobError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise JobError(f"{source}: {type(error).__name__}: {reason or 'no further explanation'}") from error


def problem(job: Job, key: str, text: str) -> JobError:
    """The error of a key of a loaded job, with the value it has."""
    return JobError(f"{job.source}: {_with_value(job.model_dump(), key.split('.'))}: {text}")


def _load(path: Path, overrides: Iterable[str] | Mapping[str, Any]) -> Job:
    source = str(path)
    raw = _read(path)
    raw.setdefault("name", path.stem)
    for dotted, value in _parsed(overrides, source):
        _set(raw, KINDS.get(str(raw.get("kind")), Job), dotted, value)
    for key, text in _texts(raw, "", seen=set()):
        if (fault := _credential(key, text)) is not None:
            raise JobError(f"{source}: {key}: {fault}")
    try:
        job = JOB.validate_python(raw)
    except ValidationError as error:
        raise JobError(f"{source}: {_one_line(raw, error)}") from None
    job._source = source
    return job


def _check_grid(sweep: SweepJob) -> None:
    """The base job can run as it is, and with every value of the grid on its own."""
    base = Path(sweep.source).parent / sweep.base
    alone: list[dict[str, Any]] = [{key: value} for key, values in sweep.grid.items() for value in values]
    for overrides in [{}, *alone]:
        try:
            job = _load(base, overrides)
        except JobError as error:
            raise JobError(f"{sweep.source}: {error}") from None
        if isinstance(job, SweepJob):
            raise problem(sweep, "base", "a sweep itself")


# --------------------------------------------------------------------------------------------------------- credentials


def _credential(key: str, text: str) -> str | None:
    """What is wrong with a value that holds a credential. It does not say the value."""
    write = "write $NAME in its place and set that environment variable, or leave it to the store's own login"
    if REDACTED in text:
        return f"a credential was taken out when this was written; {write}"
    if holds_credential(key.rpartition(".")[2], text):
        return f"holds a credential, and a job is stored with its run; {write}"
    return None


def _texts(value: Any, key: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """All texts and numbers with their dotted keys; what YAML aliases share comes once."""
    if isinstance(value, dict | list):
        if id(value) in seen:
            return
        seen.add(id(value))
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name), seen)
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key, seen)
    elif isinstance(value, str | int | float) and not isinstance(value, bool):
        yield key, str(value)


# ---------------------------------------------------------------------------------------------------------------- YAML


class _Loader(yaml.SafeLoader):
    """Safe YAML whose keys are text (`no` as well) and given once, and where `3e-4` is a number, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key.start_mark)
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
            seen.add(key.value)
            if key.tag != "tag:yaml.org,2002:merge":
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            raise yaml.constructor.ConstructorError(None, None, f"more than {MOST_KEYS:,} keys", node.start_mark)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def parse_yaml(text: str) -> Any:
    """The value of YAML text. Raises yaml.YAMLError."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    except ValueError as error:  # a number or a date that there is not
        raise yaml.YAMLError(str(error)) from error


def _reason(error: yaml.YAMLError) -> str:
    return getattr(error, "problem", None) or str(error).splitlines()[0]


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise JobError(f"{path}:{f'{mark.line + 1}:' if mark else ''} not YAML: {_reason(error)}") from None
    if not isinstance(raw, dict):
        raise JobError(f"{path}: expected keys such as kind: pretrain, found {_shown(raw)}")
    return raw


# --------------------------------------------------------------------------------------------------------------- --set


def _parsed(overrides: Iterable[str] | Mapping[str, Any], source: str) -> Iterator[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for text in overrides:
        key, sign, value = text.partition("=")
        if not sign or not key or "" in key.split("."):
            raise JobError(f"{source}: --set {text}: expected KEY=VALUE, such as --set optimizer.lr=3e-4")
        try:
            yield key, parse_yaml(value)
        except yaml.YAMLError as error:
            raise JobError(f"{source}: --set {text}: not YAML: {_reason(error)}") from None


def _set(raw: dict[str, Any], kind: type[Job], dotted: str, value: Any) -> None:
    """Set a key, making the sections on the way. The units of a duration replace each other."""
    *parents, last = split_key(kind, dotted)
    for part in parents:
        inside = raw.get(part)
        raw[part] = dict(inside) if isinstance(inside, dict) else {}  # a copy: a YAML alias shares what it names
        raw = raw[part]
    if Duration in sections(at(kind, parents)):
        raw.clear()
    raw[last] = value


# -------------------------------------------------------------------------------------------------------------- errors


def _one_line(raw: dict[str, Any], error: ValidationError) -> str:
    """The first problem and the number of others. Unknown keys come first: they are why other keys are missing."""
    kind = KINDS.get(str(raw.get("kind")), Job)
    problems: dict[str, str] = {}  # by key: the alternatives of one value are one problem
    for details in sorted(error.errors(), key=lambda details: details["type"] != "extra_forbidden"):
        if details["type"] == "default_factory_not_called":  # a consequence of another problem in its section
            continue
        key, text = _problem(kind, raw, details)
        meant_elsewhere = details["type"] == "missing" and any(
            f"did you mean {key}?" in line for line in problems.values()
        )
        if not meant_elsewhere:
            problems.setdefault(key, text)
    first, others = next(iter(problems.values())), len(problems) - 1
    return f"{first} (and {others} more)" if others else first


def _problem(kind: type[Section], raw: dict[str, Any], details: Any) -> tuple[str, str]:
    """The dotted key and the line of one pydantic error."""
    location, context = details["loc"][1:], details.get("ctx", {})
    if details["type"] == "extra_forbidden":
        parts = [*_located(kind, location[:-1]), str(location[-1])]
        return ".".join(parts), f"{'.'.join(parts)}: {_no_such_key(kind, raw, parts)}"

    parts = _located(kind, location)
    annotation = at(kind, parts)
    match details["type"]:
        case "missing" if len(parts) == len(location):
            text = f"{'.'.join(parts)}: missing; expected {type_text(annotation)}"
        case "union_tag_not_found" | "union_tag_invalid":
            tags = list(tagged(annotation) if parts else KINDS)
            parts.append("name" if parts else "kind")
            text = f"{_with_value(raw, parts)}: expected {any_of(tags)}{_did_you_mean(_lookup(raw, parts), tags)}"
        case "value_error" if isinstance(context["error"], ImpossibleValue):
            parts += [part for part in context["error"].key.split(".") if part]
            text = f"{_with_value(raw, parts)}: {context['error']}"
        case "value_error" if parts[:1] != ["data"]:
            # A ModelConfigError: it knows nothing of jobs, and tells its key and value by itself.
            parts = ["model", context["error"].key]
            text = f"model.{context['error']}"
        case _:
            did_you_mean = _did_you_mean(_lookup(raw, parts), choices(annotation))
            text = f"{_with_value(raw, parts)}: expected {type_text(annotation)}{did_you_mean}"
    return ".".join(parts), text


def _no_such_key(kind: type[Section], raw: dict[str, Any], parts: Sequence[str]) -> str:
    *parents, last = parts
    choosing = ".".join([*parents, "name"]) if parents else "kind"
    alternatives = tagged(at(kind, parents)) if parents else KINDS
    having = [tag for tag, section in alternatives.items() if last in section.model_fields]
    if having:
        return f"only for {choosing} = {any_of(having)}, and it is {_lookup(raw, choosing.split('.'))}"
    return f"unknown key; {suggestion(kind, parts)}"


def _located(kind: type[Section], location: Sequence[int | str]) -> list[str]:
    """The part of a pydantic location that the user wrote: it also names members of unions and places in lists."""
    parts: list[str] = []
    annotation: Any = kind
    for part in location:
        if child(annotation, str(part)) is not None:
            parts.append(str(part))
            annotation = child(annotation, str(part))
        elif part not in tagged(annotation):
            break
    return parts


_ABSENT = object()


def _lookup(raw: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        if not isinstance(raw, dict) or part not in raw:
            return _ABSENT
        raw = raw[part]
    return raw


def _with_value(raw: Any, parts: Sequence[str]) -> str:
    """A key and what it holds, as in `model.image_size = 225`; the key alone where it is absent."""
    value = _lookup(raw, parts)
    return ".".join(parts) + ("" if value is _ABSENT else f" = {_shown(value)}")


def _shown(value: Any) -> str:
    """A value as YAML has it, on one line, at most 120 characters."""
    try:
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    except yaml.representer.RepresenterError:  # an object of Python's, from a mapping of overrides
        text = repr(value)
    text = text.strip().removesuffix("\n...")
    return text if len(text) <= 120 else f"{text[:117]}..."


def _did_you_mean(value: Any, words: Sequence[str]) -> str:
    near = difflib.get_close_matches(value, words, n=1) if isinstance(value, str) else []
    return f"; did you mean {near[0]}?" if near else ""
