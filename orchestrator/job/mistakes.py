"""What is wrong with a job, in one line: pydantic's errors in the words of the schema.

model.heds: unknown key; did you mean model.heads?
optimizer.lr = -1: expected a number > 0 (and 2 more)
"""

from collections.abc import Sequence
from typing import Any

from pydantic import ValidationError

from orchestrator.job.errors import JobError, did_you_mean, lookup, with_value
from orchestrator.job.keys import any_of, at, child, choices, suggestion, table_of, type_text
from orchestrator.job.kinds import KINDS, Job
from orchestrator.job.values import ImpossibleValue, Section


def problem(job: Job, key: str, text: str) -> JobError:
    """The error of a key of a loaded job, with the value it has."""
    return JobError(f"{job.source}: {with_value(job.model_dump(), key.split('.'))}: {text}")


def first_mistake(raw: dict[str, Any], error: ValidationError) -> str:
    """The first problem and the number of others. Unknown keys come first: other keys are missing because of them."""
    kind = KINDS.sections.get(str(raw.get("kind")), Job)
    lines: dict[str, str] = {}  # by key: pydantic reports one error for each alternative of a value
    for details in sorted(error.errors(), key=lambda details: details["type"] != "extra_forbidden"):
        if details["type"] == "default_factory_not_called":  # follows from another problem in its section
            continue
        key, text = _mistake(kind, raw, details)
        is_suggested = details["type"] == "missing" and any(f"did you mean {key}?" in line for line in lines.values())
        if not is_suggested:
            lines.setdefault(key, text)
    first, others = next(iter(lines.values())), len(lines) - 1
    return f"{first} (and {others} more)" if others else first


def _mistake(kind: type[Section], raw: dict[str, Any], details: Any) -> tuple[str, str]:
    """The dotted key and the line of one pydantic error."""
    location, context = details["loc"], details.get("ctx", {})
    if details["type"] == "extra_forbidden":
        parts = [*_written(kind, location[:-1]), str(location[-1])]
        return ".".join(parts), f"{'.'.join(parts)}: {_no_such_key(kind, raw, parts)}"

    parts = _written(kind, location)
    annotation = at(kind, parts)
    match details["type"]:
        case "missing" if len(parts) == len(location):
            text = f"{'.'.join(parts)}: missing; expected {type_text(annotation)}"
        case "union_tag_not_found" | "union_tag_invalid":
            table = table_of(annotation) or KINDS
            parts.append(str(table.discriminator))
            names = list(table.sections)
            text = f"{with_value(raw, parts)}: expected {any_of(names)}{did_you_mean(lookup(raw, parts), names)}"
        case "value_error" if isinstance(context["error"], ImpossibleValue):
            parts += [part for part in context["error"].key.split(".") if part]
            text = f"{with_value(raw, parts)}: {context['error']}"
        case "value_error" if parts[:1] != ["data"]:
            # A ModelConfigError: `model` has no jobs, so it names its own key and value.
            parts = ["model", context["error"].key]
            text = f"model.{context['error']}"
        case _:
            nearest = did_you_mean(lookup(raw, parts), choices(annotation))
            text = f"{with_value(raw, parts)}: expected {type_text(annotation)}{nearest}"
    return ".".join(parts), text


def _no_such_key(kind: type[Section], raw: dict[str, Any], parts: Sequence[str]) -> str:
    *parents, last = parts
    table = table_of(at(kind, parents)) if parents else KINDS
    if table is not None and table.discriminator is not None:
        choosing = [*parents, table.discriminator]
        having = [name for name, section in table.sections.items() if last in section.model_fields]
        if having:
            return f"only for {'.'.join(choosing)} = {any_of(having)}, and it is {lookup(raw, choosing)}"
    return f"unknown key; {suggestion(kind, parts)}"


def _written(kind: type[Section], location: Sequence[int | str]) -> list[str]:
    """The part of a pydantic location that the user wrote: it also has members of unions and places in lists."""
    parts: list[str] = []
    annotation: Any = kind
    for part in location:
        annotation = child(annotation, str(part))
        if annotation is None:
            break
        parts.append(str(part))
    return parts
