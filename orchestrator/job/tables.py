"""What a job can name: objectives, optimizers, evaluators and sources of images. (The kinds are in `job/kinds.py`.)

A table has one line for each name: the class of its section in the job file, and the dotted path of the function that
implements it, which is imported where it is needed: no torch is loaded here. The unions of the job, the error lines,
the JSON Schema and `docs/job-keys.md` are built from the tables.

A module of the job's key `extensions` adds lines of its own; `docs/adding.md` has an example of each.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Generic, Literal, TypeVar, get_args, get_origin

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticKnownError, core_schema

from orchestrator.job import choices
from orchestrator.job.errors import JobError
from orchestrator.job.values import Section
from orchestrator.wording import one_line

S = TypeVar("S", bound=Section)


@dataclass(frozen=True)
class Entry(Generic[S]):
    """One name of a table.

    Attributes:
        section: its keys in a job file.
        path: dotted path of the function that implements it; None if this version can only check the section.
    """

    section: type[S]
    path: str | None


class Table(Generic[S]):
    """Names with their sections and implementations.

    As an annotation a table stands for its sections: `Annotated[choices.Optimizer, OPTIMIZERS]` is a value that one of
    them describes. Names that are added later count, too.

    Args:
        chosen_by: the key of the job that holds the name, such as "optimizer.name".
        base: the class that all sections are derived from. Its keys are not the implementation's: the program uses
            them.
        by_key: the name is not the value of `chosen_by`, but a key in it: {NAME: section}.
        ours: a class that sections may be derived from; the program uses its keys, too. Default: `base`.
    """

    def __init__(
        self, chosen_by: str, base: type[S], *, by_key: bool = False, ours: type[Section] | None = None
    ) -> None:
        self.chosen_by = chosen_by
        self.base = base
        self._ours = ours or base
        self.discriminator = None if by_key else chosen_by.rpartition(".")[2]
        self._entries: dict[str, Entry[S]] = {}

    @property
    def sections(self) -> dict[str, type[S]]:
        """The section of each name, in the order of the table."""
        return {name: entry.section for name, entry in self._entries.items()}

    def __getitem__(self, name: str) -> Entry[S]:
        return self._entries[name]

    def add(self, name: str, section: type[S], path: str | None) -> None:
        """Add a line. To add the same line again changes nothing.

        Args:
            name: as job files have it.
            section: a class derived from `base`, with `Literal[name]` as the type of the key that holds the name.
            path: dotted path of a function. It is called with the section's own keys as keyword arguments: those that
                neither `base` has nor hold the name.

        Raises:
            JobError: the name is taken, or the section does not fit.
        """
        known = self._entries.get(name)
        if known is not None and (_full_name(known.section), known.path) != (_full_name(section), path):
            raise JobError(f"{self._at(name)}: the name is taken by {_full_name(known.section)}")
        if not issubclass(section, self.base):
            raise JobError(f"{self._at(name)}: {_full_name(section)} is not derived from {_full_name(self.base)}")
        if self.discriminator is not None and name not in _words(section, self.discriminator):
            needed = f'{self.discriminator}: Literal["{name}"]'
            raise JobError(f"{self._at(name)}: {_full_name(section)} lacks the key {needed}")
        if path is not None and "." not in path:
            raise JobError(f"{self._at(name)}: expected a dotted path such as package.module.function, found {path}")
        self._entries[name] = Entry(section, path)

    def implementation(self, name: str) -> Callable[..., Any]:
        """Import the function of a name.

        Raises:
            JobError: there is none, or it cannot be imported.
        """
        path = self._entries[name].path
        if path is None:
            raise JobError(f"{self._at(name)}: this version checks it, but has no implementation of it")
        try:
            found: Callable[..., Any] = resolve_name(path)
        except Exception as error:  # the module is not ours
            raise JobError(f"{self._at(name)}: cannot import {path} ({_reason(error)})") from error
        if not callable(found):
            raise JobError(f"{self._at(name)}: {path} is not a function")
        return found

    def bound(self, section: S, name: str | None = None) -> Callable[..., Any]:
        """The implementation, with the section's own keys as keyword arguments.

        Args:
            section: of a job.
            name: of the section; needed if the section does not hold it.

        Raises:
            JobError: the implementation cannot be imported.
        """
        if name is None:
            name = str(getattr(section, str(self.discriminator)))
        ours = self._ours if isinstance(section, self._ours) else self.base
        keys = type(section).model_fields.keys() - ours.model_fields.keys() - {self.discriminator}
        return partial(self.implementation(name), **{key: getattr(section, key) for key in keys})

    def _at(self, name: str) -> str:
        return f"{self.chosen_by}.{name}" if self.discriminator is None else f"{self.chosen_by} = {name}"

    # ---------------------------------------------------------------------------------------------------- as a type

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validated)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return handler(self._schema())

    def _validated(self, value: Any) -> Any:
        if self.discriminator is None:
            return self._validated_by_key(value)
        if isinstance(value, tuple(self.sections.values())):
            return value
        if not isinstance(value, dict):
            raise PydanticKnownError("dict_type")
        if self.discriminator not in value:
            raise PydanticKnownError("union_tag_not_found", {"discriminator": self.discriminator})
        name = value[self.discriminator]
        if not isinstance(name, str) or name not in self._entries:
            expected = ", ".join(self._entries)
            context = {"discriminator": self.discriminator, "tag": str(name), "expected_tags": expected}
            raise PydanticKnownError("union_tag_invalid", context)
        return self._entries[name].section.model_validate(value)

    def _validated_by_key(self, value: Any) -> dict[str, S]:
        """The sections by name. Null instead of all of them, or of one, stands for none."""
        if value is not None and not isinstance(value, dict):
            raise PydanticKnownError("dict_type")
        sections: dict[str, S] = {}
        problems: list[InitErrorDetails] = []
        for name, keys in (value or {}).items():
            if name not in self._entries:
                problems.append({"type": "extra_forbidden", "loc": (name,), "input": keys})
            elif keys is not None:
                try:
                    sections[name] = self._entries[name].section.model_validate(keys)
                except ValidationError as error:
                    problems += [_below(name, details) for details in error.errors()]
        if problems:
            raise ValidationError.from_exception_data(self.chosen_by, problems)
        return sections

    def _schema(self) -> CoreSchema:
        """What editors complete and check."""
        models = {name: section.__pydantic_core_schema__ for name, section in self.sections.items()}
        if self.discriminator is not None:
            return core_schema.tagged_union_schema(models, discriminator=self.discriminator)
        fields = {
            name: core_schema.typed_dict_field(core_schema.nullable_schema(model), required=False)
            for name, model in models.items()
        }
        return core_schema.nullable_schema(core_schema.typed_dict_schema(fields, extra_behavior="forbid"))


def _below(name: str, details: ErrorDetails) -> InitErrorDetails:
    """An error of a section, located in the mapping that holds it."""
    location, context = (name, *details["loc"]), details.get("ctx", {})
    return {"type": details["type"], "loc": location, "input": details["input"], "ctx": context}


def load_extensions(modules: Sequence[str], folder: Path | None = None) -> None:
    """Import the modules of the job's key `extensions`, which add lines to the tables.

    Args:
        modules: dotted names.
        folder: that of the job file, where modules are looked for, too. Workers have it on their PYTHONPATH.

    Raises:
        JobError: a module cannot be imported, or a line cannot be added.
    """
    if modules and folder is not None and str(folder) not in sys.path:
        sys.path.append(str(folder))  # last: a file beside the job must not hide a package
    importlib.invalidate_caches()
    for module in modules:
        try:
            importlib.import_module(module)
        except Exception as error:  # the module is not ours
            raise JobError(f"extensions: cannot import {module} ({_reason(error)})") from error


def _full_name(section: type) -> str:
    return f"{section.__module__}.{section.__qualname__}"


def _words(section: type[Section], key: str) -> tuple[Any, ...]:
    """The words that a key of a section may be; empty if it has no such key, or not one of given words."""
    field = section.model_fields.get(key)
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, JobError) else f"{type(error).__name__}: {one_line(error)}".rstrip(": ")


OBJECTIVES = Table("objective.loss", choices.Objective)
"""function(logits (B, K), targets (B, K), **keys) -> loss of each sample (B,) float32"""
OBJECTIVES.add("sigmoid", choices.CrossEntropy, "model.objectives.sigmoid_cross_entropy")
OBJECTIVES.add("softmax", choices.CrossEntropy, "model.objectives.softmax_cross_entropy")

OPTIMIZERS = Table("optimizer.name", choices.Optimizer)
"""function(parameter groups, **keys) -> torch.optim.Optimizer"""
OPTIMIZERS.add("adamw", choices.AdamW, "orchestrator.engine.optimizer.adamw")
OPTIMIZERS.add("sgd", choices.SGD, "orchestrator.engine.optimizer.sgd")

SOURCES = Table("data.pack.source", choices.Pack)
"""function(folder, **keys), which leaves shards with their indexes in folder/train and folder/test"""
SOURCES.add("digits", choices.Digits, "orchestrator.run.pack.digits")
SOURCES.add("shapes", choices.Shapes, "orchestrator.run.pack.shapes")

EVALUATORS = Table("evaluators", Section, by_key=True, ours=choices.Evaluator)
"""function(measurement, **keys) -> metrics by name, of an `orchestrator.training.measurement.Measurement`"""
EVALUATORS.add("few_shot", choices.FewShot, "orchestrator.training.evaluators.fewshot.measure")
EVALUATORS.add("knn", choices.Neighbours, "orchestrator.training.evaluators.knn.measure")
EVALUATORS.add("probe", choices.Probe, "orchestrator.training.evaluators.probe.measure")
EVALUATORS.add("logistic", choices.Logistic, "orchestrator.training.evaluators.logistic.measure")
