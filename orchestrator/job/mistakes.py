"""What is wrong with a job, a line a mistake: pydantic's errors in the words of the schema.

model.heds: unknown key; did you mean model.heads?
optimizer.lr = -1: expected a number > 0 (from --set)
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError, create_model

from orchestrator.job.errors import ABSENT, JobError, did_you_mean, lookup, with_value
from orchestrator.job.keys import (
    any_of,
    at,
    child,
    choices,
    nearest_keys,
    sections_of,
    suggestion,
    table_of,
    type_text,
    typed,
)
from orchestrator.job.kinds import KINDS, Job
from orchestrator.job.values import ImpossibleValue, ImpossibleValues, Section, checks_of

FROM_SET = " (from --set)"


@dataclass(frozen=True)
class Mistake:
    """One mistake of a job file.

    Attributes:
        parts: of the key.
        text: the line, without the file.
        is_missing: whether the key is not there.
    """

    parts: tuple[str, ...]
    text: str
    is_missing: bool = False


def problem(job: Job, key: str, text: str) -> JobError:
    """The error of a key of a loaded job, with the value it has."""
    where = with_value(job.model_dump(), key.split("."))
    is_set = any(
        _overlap(tuple(set_key.split(".")), tuple(key.split("."))) or set_key in text for set_key in job.overrides
    )
    return JobError(f"{job.source}: {where}: {text}{FROM_SET if is_set else ''}")


def mistakes_in(raw: dict[str, Any], error: ValidationError) -> list[Mistake]:
    """All mistakes, one for each key. Unknown keys come first: other keys are missing because of them."""
    kind = KINDS.sections.get(str(raw.get("kind")), Job)
    found: dict[tuple[str, ...], Mistake] = {}  # pydantic reports one error for each alternative of a value
    wrong: set[tuple[str, ...]] = set()
    for details in sorted(error.errors(), key=lambda details: details["type"] != "extra_forbidden"):
        if details["type"] == "default_factory_not_called":  # follows from another problem in its section
            continue
        for mistake in _mistakes(kind, raw, details):
            wrong.add(mistake.parts)
            if details["type"] == "extra_forbidden":
                meant = [tuple(key.split(".")) for key in nearest_keys(kind, mistake.parts)]
                wrong.update(parts for parts in meant if lookup(raw, parts) is ABSENT)
            key = ".".join(mistake.parts)
            if not (mistake.is_missing and any(f"did you mean {key}?" in other.text for other in found.values())):
                found.setdefault(mistake.parts, mistake)
    for mistake in _impossible(kind, raw, wrong):
        found.setdefault(mistake.parts, mistake)
    return list(found.values())


def from_set(mistake: Mistake, overrides: Collection[Sequence[str]], without: Collection[str]) -> bool:
    """Whether --set made a mistake.

    Args:
        overrides: the parts of the keys that --set has set.
        without: the lines of the file's mistakes without --set.
    """
    if any(mistake.parts[: len(parts)] == tuple(parts) for parts in overrides):
        return True
    return bool(overrides) and not mistake.is_missing and mistake.text not in without


def _impossible(kind: type[Section], raw: dict[str, Any], wrong: set[tuple[str, ...]]) -> Iterator[Mistake]:
    """What pydantic leaves out because of wrong keys: the checks that do not read these, of the sections above them."""
    for prefix in sorted({parts[:length] for parts in wrong for length in range(len(parts))}):
        sections, written = sections_of(at(kind, prefix)), lookup(raw, prefix)
        if len(sections) != 1 or not isinstance(written, dict):
            continue
        here = _below(prefix, wrong)
        checks = [
            check for check, reads in checks_of(sections[0]) if not any(_overlap(r, w) for r in reads for w in here)
        ]
        if checks:
            part = _right_part(sections[0], written, here)
            yield from (_of_value(raw, prefix, value) for check in checks for value in check(part))


def _right_part(section: type[Section], written: dict[str, Any], wrong: set[tuple[str, ...]]) -> Section:
    """A section with its right keys and with defaults, but without its wrong keys."""
    fields: dict[str, Any] = {}
    sections: dict[str, Section] = {}
    for name, field in section.model_fields.items():
        below, inner = _below((name,), wrong), sections_of(typed(field))
        if name not in written:
            continue
        if not below:
            fields[name] = (field.annotation, field)
        elif () not in below and len(inner) == 1 and isinstance(written[name], dict):
            sections[name] = _right_part(inner[0], written[name], below)
    values = create_model(section.__name__, __base__=Section, **fields).model_validate(
        {key: written[key] for key in fields}
    )
    right: dict[str, Any] = {**{key: getattr(values, key) for key in fields}, **sections}
    return section.model_construct(**right)


def _below(prefix: tuple[str, ...], keys: Collection[tuple[str, ...]]) -> set[tuple[str, ...]]:
    """The rest of the keys that begin with `prefix`."""
    return {parts[len(prefix) :] for parts in keys if parts[: len(prefix)] == prefix}


def _overlap(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    """Whether one of two keys is the other, or above it."""
    return all(mine == theirs for mine, theirs in zip(one, other, strict=False))


def _of_value(raw: dict[str, Any], prefix: Sequence[str], value: ImpossibleValue) -> Mistake:
    parts = (*prefix, *filter(None, value.key.split(".")))
    return Mistake(parts, f"{with_value(raw, parts)}: {value}")


def _mistakes(kind: type[Section], raw: dict[str, Any], details: Any) -> Iterator[Mistake]:
    """The mistakes that one pydantic error stands for."""
    location, context = details["loc"], details.get("ctx", {})
    if details["type"] == "extra_forbidden":
        parts = (*_written(kind, location[:-1]), str(location[-1]))
        yield Mistake(parts, f"{'.'.join(parts)}: {_no_such_key(kind, raw, parts)}")
        return

    parts = _written(kind, location)
    annotation = at(kind, parts)
    match details["type"]:
        case "missing" if len(parts) == len(location):
            yield Mistake(parts, f"{'.'.join(parts)}: missing; expected {type_text(annotation)}", is_missing=True)
        case "union_tag_not_found" | "union_tag_invalid":
            table = table_of(annotation) or KINDS
            parts = (*parts, str(table.discriminator))
            names = list(table.sections)
            text = f"{with_value(raw, parts)}: expected {any_of(names)}{did_you_mean(lookup(raw, parts), names)}"
            yield Mistake(parts, text, is_missing=details["type"] == "union_tag_not_found")
        case "value_error" if isinstance(context["error"], ImpossibleValue):
            yield _of_value(raw, parts, context["error"])
        case "value_error" if isinstance(context["error"], ImpossibleValues):
            yield from (_of_value(raw, parts, value) for value in context["error"].values)
        case _:
            nearest = did_you_mean(lookup(raw, parts), choices(annotation))
            yield Mistake(parts, f"{with_value(raw, parts)}: expected {type_text(annotation)}{nearest}")


def _no_such_key(kind: type[Section], raw: dict[str, Any], parts: Sequence[str]) -> str:
    *parents, last = parts
    table = table_of(at(kind, parents)) if parents else KINDS
    if table is not None and table.discriminator is not None:
        choosing = [*parents, table.discriminator]
        having = [name for name, section in table.sections.items() if last in section.model_fields]
        if having:
            return f"only for {'.'.join(choosing)} = {any_of(having)}, and it is {lookup(raw, choosing)}"
    return f"unknown key; {suggestion(kind, parts)}"


def _written(kind: type[Section], location: Sequence[int | str]) -> tuple[str, ...]:
    """The part of a pydantic location that the user wrote: it also has members of unions and places in lists."""
    parts: list[str] = []
    annotation: Any = kind
    for part in location:
        annotation = child(annotation, str(part))
        if annotation is None:
            break
        parts.append(str(part))
    return tuple(parts)
