"""A job file becomes a `Job`, or lines that say what is wrong with it, one for each mistake (`job/mistakes.py`).

    jobs/x.yaml: model.heds: unknown key; did you mean model.heads?

YAML is read with a safe loader; `--set a.b=c` changes a key before anything is checked. A job must not contain
credentials, because it is stored with the run. Nothing heavy is imported, so that mistakes are reported at once.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.job.errors import JobError, Mistakes, shown
from orchestrator.job.keys import at, sections_of, split_key
from orchestrator.job.kinds import JOB, KINDS, Job, SweepJob
from orchestrator.job.mistakes import FROM_SET, from_set, mistakes_in, problem
from orchestrator.job.safe_yaml import parse_yaml, reason
from orchestrator.job.tables import load_extensions
from orchestrator.job.values import Duration
from orchestrator.redact import REDACTED, holds_credential, redact_fields


def load_job(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Job:
    """Read and check a job file.

    Args:
        path: the YAML file. Its stem is the run's name, unless the file gives one.
        overrides: `--set` arguments, "a.b=c" with a YAML value, or the same as a mapping {"a.b": value}. Setting a unit
            of a duration replaces the duration: `schedule.length.steps=2` takes the place of `{epochs: 14}`.

    Raises:
        JobError: it is not YAML, holds a credential, has an unknown key, a wrong type or an impossible value, or names
            an extension that cannot be imported. It has a line for each mistake.
    """
    job = _load(Path(path), overrides)
    if isinstance(job, SweepJob):
        _check_grid(job)
    return job


def _load(path: Path, overrides: Iterable[str] | Mapping[str, Any]) -> Job:
    source = str(path)
    raw = _read(path)
    raw.setdefault("name", path.stem)
    found = Mistakes()
    changes = list(_parsed(overrides, source, found))
    with found.collected():
        _load_extensions(dict(changes).get("extensions", raw.get("extensions")), path)

    written = dict(raw)
    parts = [_set(raw, KINDS.sections.get(str(raw.get("kind")), Job), dotted, value) for dotted, value in changes]
    set_keys = [] if isinstance(overrides, Mapping) else parts
    faults = {key: fault for key, text in _texts(raw, "", seen=set()) if (fault := _credential(key, text)) is not None}
    with found.collected():
        if faults:
            raise JobError(*(f"{source}: {key}: {fault}" for key, fault in faults.items()))

    job, lines = _checked(redact_fields(raw) if faults else raw, written, set_keys, known=faults)
    with found.collected():
        if lines:
            raise JobError(*(f"{source}: {line}" for line in lines))
    found.report()
    assert job is not None
    job.read_from(source, tuple(".".join(parts) for parts in set_keys))
    return job


def _checked(
    raw: dict[str, Any], written: dict[str, Any], set_keys: Sequence[Sequence[str]], known: Collection[str]
) -> tuple[Job | None, list[str]]:
    """The job, and the lines of its mistakes without the file.

    Args:
        raw: the file's keys, changed by --set.
        written: as in the file.
        set_keys: the parts of the keys that --set has set.
        known: keys whose mistakes are known already.
    """
    try:
        return JOB.validate_python(raw), []
    except ValidationError as error:
        mistakes = [mistake for mistake in mistakes_in(raw, error) if ".".join(mistake.parts) not in known]
    before: list[str] = []
    if set_keys:
        try:
            JOB.validate_python(written)
        except ValidationError as error:
            before = [mistake.text for mistake in mistakes_in(written, error)]
    return None, [one.text + (FROM_SET if from_set(one, set_keys, before) else "") for one in mistakes]


def _load_extensions(modules: Any, path: Path) -> None:
    """Import the modules of the key `extensions`, if it is right; else the checks report it."""
    if isinstance(modules, list) and all(isinstance(module, str) for module in modules):
        try:
            load_extensions(modules, path.absolute().parent)
        except JobError as error:
            raise JobError(f"{path}: {error}") from error


def _check_grid(sweep: SweepJob) -> None:
    """The base job can run as it is, and with each value of the grid alone."""
    base = Path(sweep.source).parent / sweep.base
    alone: list[dict[str, Any]] = [{key: value} for key, values in sweep.grid.items() for value in values]
    found = Mistakes()
    for overrides in [{}, *alone]:
        try:
            job = _load(base, overrides)
        except JobError as error:
            with found.collected():
                raise JobError(*(f"{sweep.source}: {line}" for line in error.lines)) from None
        else:
            if isinstance(job, SweepJob):
                raise problem(sweep, "base", "is itself a sweep")
    found.report()


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise JobError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise JobError(f"{path}:{f'{mark.line + 1}:' if mark else ''} not YAML: {reason(error)}") from None
    if not isinstance(raw, dict):
        raise JobError(f"{path}: expected keys such as kind: pretrain, found {shown(raw)}")
    return raw


# --------------------------------------------------------------------------------------------------------- credentials


def _credential(key: str, text: str) -> str | None:
    """What is wrong with a value that holds a credential, without the value."""
    instead = "write $NAME in its place and set that environment variable, or leave it to the store's own login"
    if REDACTED in text:
        return f"a credential was removed when this file was written; {instead}"
    if holds_credential(key.rpartition(".")[2], text):
        return f"holds a credential, and a job is stored with its run; {instead}"
    return None


def _texts(value: Any, key: str, seen: set[int]) -> Iterator[tuple[str, str]]:
    """All texts and numbers with their dotted keys; a value that YAML aliases share comes once."""
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


# --------------------------------------------------------------------------------------------------------------- --set


def _parsed(overrides: Iterable[str] | Mapping[str, Any], source: str, mistakes: Mistakes) -> Iterator[tuple[str, Any]]:
    """The keys and values of --set. Those that cannot be read are added to `mistakes`."""
    if isinstance(overrides, Mapping):
        yield from overrides.items()
        return
    for text in overrides:
        with mistakes.collected():
            yield _parsed_one(text, source)


def _parsed_one(text: str, source: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key or "" in key.split("."):
        raise JobError(f"{source}: --set {text}: expected KEY=VALUE, such as --set optimizer.lr=3e-4")
    try:
        found = parse_yaml(value)
    except yaml.YAMLError as error:
        raise JobError(f"{source}: --set {text}: not YAML: {reason(error)}") from None
    # In a file, ` #` begins a comment; on a command line it is part of a name, such as that of a folder.
    cut = isinstance(found, str) and " #" in value and value.strip().startswith(found)
    return key, value.strip() if cut else found


def _set(raw: dict[str, Any], kind: type[Job], dotted: str, value: Any) -> list[str]:
    """Set a key, and make the sections above it; returns its parts. The units of a duration replace each other."""
    *parents, last = split_key(kind, dotted)
    for part in parents:
        inside = raw.get(part)
        raw[part] = dict(inside) if isinstance(inside, dict) else {}  # a copy: YAML aliases share one object
        raw = raw[part]
    if Duration in sections_of(at(kind, parents)):
        raw.clear()
    raw[last] = value
    return [*parents, last]
