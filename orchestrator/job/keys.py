"""The schema as a tree of keys: what a dotted key leads to, what its value may be, and which valid key is nearest.

Error lines, `--set` and the page of keys all read the pydantic classes through these functions.
"""

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from orchestrator.job.tables import Table
from orchestrator.job.values import Duration, Section, size_in_bytes

PLACEHOLDER = "NAME"  # stands for a name that the user chooses, as in data.eval.NAME.url
PLAIN_TYPES = {str: "text", int: "an integer", float: "a number", bool: "true or false", Any: "anything"}


@dataclass(frozen=True)
class Key:
    """One key of the schema.

    Attributes:
        path: dotted, from the root of the job.
        type: what its value may be, in words.
        field: its default and description.
        only: the names that have this key, if other names in the same table do not: "sgd".
    """

    path: str
    type: str
    field: FieldInfo
    only: str | None = None

    @property
    def description(self) -> str:
        """What it means: the text of the key, else that of its section."""
        return self.field.description or next((section.__doc__ or "" for section in sections_of(typed(self.field))), "")


# ------------------------------------------------------------------------------------------------- walking the schema


def typed(field: FieldInfo) -> Any:
    """The annotation of a field with its metadata, which pydantic keeps apart."""
    return Annotated[field.annotation, field]


def table_of(annotation: Any) -> Table[Any] | None:
    """The table whose names a value of this annotation is chosen from; None without such a choice."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        here = next((item for item in _flat(args[1:]) if isinstance(item, Table)), None)
        return here or table_of(args[0])
    if origin in (Union, types.UnionType):
        return next((table for member in args if (table := table_of(member)) is not None), None)
    return None


def alternatives(annotation: Any) -> list[Any]:
    """The members of a (nested, annotated) union, without None; anything else is its own only alternative."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        table = next((item for item in _flat(args[1:]) if isinstance(item, Table)), None)
        if table is not None and table.discriminator is not None:
            return list(dict.fromkeys(table.sections.values()))
        return alternatives(args[0])
    if origin in (Union, types.UnionType):
        return [found for member in args for found in alternatives(member)]
    return [] if annotation is types.NoneType else [annotation]


def sections_of(annotation: Any) -> list[type[Section]]:
    """The section classes that a value of this annotation may be an instance of."""
    return [found for found in alternatives(annotation) if isinstance(found, type) and issubclass(found, Section)]


def mapping_value(annotation: Any) -> Any | None:
    """The annotation of the values, if keys are the user's own (`data.eval`, `tracking.tags`); else None."""
    if table_of(annotation) is not None:
        return None
    mappings = [found for found in alternatives(annotation) if get_origin(found) is dict]
    return get_args(mappings[0])[1] if mappings else None


def children(annotation: Any) -> dict[str, FieldInfo]:
    """The keys of a section; of all its alternatives if it has several."""
    table = table_of(annotation)
    if table is not None and table.discriminator is None:
        return {
            name: FieldInfo(annotation=section, description=section.__doc__, default=None)
            for name, section in table.sections.items()
        }
    return {name: field for section in sections_of(annotation) for name, field in section.model_fields.items()}


def child(annotation: Any, key: str) -> Any | None:
    """The annotation of `key` inside a value of `annotation`; None if the schema has no such key."""
    value = mapping_value(annotation)
    if value is not None:
        return value
    field = children(annotation).get(key)
    return None if field is None else typed(field)


def at(kind: type[Section], parts: Sequence[str]) -> Any | None:
    """The annotation that the parts of a key lead to; None if the schema has no such key."""
    annotation: Any = kind
    for part in parts:
        annotation = child(annotation, part)
    return annotation


def split_key(kind: type[Section], dotted: str) -> list[str]:
    """A dotted key as its parts. Below a mapping to plain values the rest is one key: `grid.optimizer.lr`."""
    parts = dotted.split(".")
    annotation: Any = kind
    for depth, part in enumerate(parts):
        value = mapping_value(annotation)
        if value is not None and not sections_of(value):
            return [*parts[:depth], ".".join(parts[depth:])]
        annotation = child(annotation, part)
    return parts


def keys_of(kind: type[Section], prefix: str = "") -> Iterator[Key]:
    """Every key of a kind of job, depth first. A key that only some names of a table have says so."""
    for name, field in kind.model_fields.items():
        yield from _key_and_below(f"{prefix}{name}", field)


def _key_and_below(path: str, field: FieldInfo) -> Iterator[Key]:
    annotation = typed(field)
    yield Key(path, type_text(annotation), field)
    table, value = table_of(annotation), mapping_value(annotation)
    if table is not None and table.discriminator is None:
        for name, below in children(annotation).items():
            yield from _key_and_below(f"{path}.{name}", below)
    elif table is not None:
        yield from _keys_of_table(path, table)
    else:
        for section in sections_of(annotation if value is None else value):
            yield from keys_of(section, f"{path}." if value is None else f"{path}.{PLACEHOLDER}.")


def _keys_of_table(path: str, table: Table[Any]) -> Iterator[Key]:
    """The keys below a section that a name chooses: first the name, then those of all names."""
    choosing, sections = str(table.discriminator), table.sections
    first = next(iter(sections.values()))
    yield Key(f"{path}.{choosing}", any_of(list(sections)), first.model_fields[choosing])
    for key in dict.fromkeys(key for section in sections.values() for key in section.model_fields if key != choosing):
        having = {name: section for name, section in sections.items() if key in section.model_fields}
        only = any_of(list(having)) if len(having) < len(sections) else None
        for below in _key_and_below(f"{path}.{key}", next(iter(having.values())).model_fields[key]):
            yield replace(below, only=only)


# ------------------------------------------------------------------------------------------------------ types in words


def type_text(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """What a value may be, to stand after "expected": "a number > 0", "adamw or sgd", "an integer >= 1 or null"."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(args[0], [*args[1:], *metadata])
    if origin in (Union, types.UnionType):
        return any_of(["null" if member is types.NoneType else type_text(member, metadata) for member in args])
    if origin is Literal:
        return any_of([str(value) for value in args])
    if origin is tuple:
        return f"[{', '.join(type_text(member) for member in args)}]"
    if origin is list:
        return f"a list of {type_text(args[0])}"
    if origin is dict:
        table = next((item for item in _flat(metadata) if isinstance(item, Table)), None)
        return f"a mapping of names to {type_text(args[1])}" if table is None else _section_with(table.sections)
    if annotation is Duration:
        return "a duration such as {steps: 1000}, {epochs: 1.5} or {images: 4096}"
    if any(isinstance(item, BeforeValidator) and item.func is size_in_bytes for item in _flat(metadata)):
        return "a size such as 4GiB or 500MB"
    if annotation in PLAIN_TYPES:
        return PLAIN_TYPES[annotation] + _limits(metadata)
    return _section_with(children(Annotated[annotation, *metadata] if metadata else annotation))


def choices(annotation: Any) -> list[str]:
    """The words that a value may be, if it is a Literal or has one among its alternatives."""
    if get_origin(annotation) is Literal:
        return [str(value) for value in get_args(annotation)]
    members = alternatives(annotation)
    return [word for member in members if member is not annotation for word in choices(member)]


def any_of(words: Sequence[str]) -> str:
    """Words in a row: `a`, `a or b`, `a, b or c`."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _section_with(keys: Iterable[str]) -> str:
    return f"a section with {', '.join(keys) or 'no keys'}"


def _limits(metadata: Sequence[Any]) -> str:
    """The bounds among a field's metadata, to stand after its type: ` > 0`, ` >= 0 and < 1`."""
    signs = {
        annotated_types.Gt: (">", "gt"),
        annotated_types.Ge: (">=", "ge"),
        annotated_types.Lt: ("<", "lt"),
        annotated_types.Le: ("<=", "le"),
    }
    bounds = []
    for limit in _flat(metadata):
        if type(limit) in signs:
            sign, attribute = signs[type(limit)]
            bounds.append(f"{sign} {getattr(limit, attribute)}")
        elif getattr(limit, "pattern", None):
            bounds.append(f"matching {limit.pattern}")
    return "".join(f" {bound}" if i == 0 else f" and {bound}" for i, bound in enumerate(bounds))


def _flat(metadata: Sequence[Any]) -> list[Any]:
    return [found for item in metadata for found in (item.metadata if isinstance(item, FieldInfo) else [item])]


# ---------------------------------------------------------------------------------------------------------- suggestions


def nearest_keys(kind: type[Section], parts: Sequence[str]) -> list[str]:
    """The keys that were probably meant instead of one that does not exist. `parts[:-1]` exists."""
    wrong, prefix = parts[-1], "".join(f"{part}." for part in parts[:-1])
    siblings = list(children(at(kind, parts[:-1])))
    everywhere = {key.path: key.path.rsplit(".", 1)[-1] for key in keys_of(kind) if PLACEHOLDER not in key.path}

    shallow = sorted(everywhere, key=lambda path: path.count("."))
    nearest = [path for path in shallow if everywhere[path] == wrong][:3]
    if not nearest:
        nearest = [prefix + name for name in difflib.get_close_matches(wrong, siblings, n=1)]
    if not nearest:
        close = difflib.get_close_matches(wrong, everywhere.values(), n=1, cutoff=0.75)
        nearest = [path for path in shallow if everywhere[path] in close][:3]
    return nearest


def suggestion(kind: type[Section], parts: Sequence[str]) -> str:
    """What to write instead of a key that does not exist: the nearest, or all there are. `parts[:-1]` exists."""
    siblings = list(children(at(kind, parts[:-1])))
    nearest = nearest_keys(kind, parts)
    return f"did you mean {any_of(nearest)}?" if nearest else f"there are {', '.join(siblings) or 'none'}"
