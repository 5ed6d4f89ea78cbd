"""What the keys of a job file hold: numbers within bounds, durations, sections of further keys.

Values are never coerced: text is not a number, and `true` is not 1.
"""

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_serializer, model_validator

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Text = Annotated[str, Field(min_length=1)]


UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}


def size_in_bytes(value: Any) -> Any:
    """`4GiB` as a number of bytes; anything but text is left to the checks of a number."""
    if not isinstance(value, str):
        return value
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", value)
    if found is None or found[2] not in UNITS:
        raise ValueError(f"expected a size such as 4GiB or 500MB ({', '.join(UNITS)})")
    return round(float(found[1]) * UNITS[found[2]])


Size = Annotated[Count, BeforeValidator(size_in_bytes, json_schema_input_type=int | str)]
"""Bytes, as a number or with a unit."""


class ImpossibleValue(ValueError):
    """A value of the right type that cannot work beside the others. `key` is relative to the section that raises it."""

    def __init__(self, key: str, problem: str):
        super().__init__(problem)
        self.key = key


class ImpossibleValues(ValueError):
    """Several impossible values of one section."""

    def __init__(self, values: list[ImpossibleValue]) -> None:
        super().__init__("; ".join(f"{value.key}: {value}" for value in values))
        self.values = values


Check = Callable[[Any], Iterator[ImpossibleValue]]
"""A method of a section that yields the values that cannot work beside the others."""

AnyCheck = TypeVar("AnyCheck", bound=Check)


def fits(*keys: str) -> Callable[[AnyCheck], AnyCheck]:
    """Makes a method of a section one of its checks.

    Args:
        keys: those that the method reads, with dots for keys of sections below. The check is also made if other keys
            are wrong.
    """

    def mark(method: AnyCheck) -> AnyCheck:
        method.reads = tuple(tuple(key.split(".")) for key in keys)  # type: ignore[attr-defined]
        return method

    return mark


class Section(BaseModel):
    """A group of keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    @model_validator(mode="after")
    def _values_fit(self) -> Self:
        if found := [value for check, _ in checks_of(type(self)) for value in check(self)]:
            raise ImpossibleValues(found)
        return self


@cache
def checks_of(section: type[Section]) -> list[tuple[Check, tuple[tuple[str, ...], ...]]]:
    """The checks of a section, and the parts of each key that they read."""
    methods = [method for base in reversed(section.__mro__) for method in vars(base).values()]
    return [(method, method.reads) for method in methods if hasattr(method, "reads")]


class Duration(Section):
    """A length of training, in exactly one unit."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    steps: Count | None = None
    """Optimizer steps."""
    epochs: Positive | None = None
    """Passes over the training set; fractions are fine."""
    images: Count | None = None
    """Training images seen."""

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if len(self.as_dict()) != 1:
            raise ImpossibleValue("", "expected exactly one of steps, epochs or images")
        return self

    @model_serializer
    def as_dict(self) -> dict[str, int | float]:
        """`{unit: amount}`, as it is written in a job file."""
        amounts = {"steps": self.steps, "epochs": self.epochs, "images": self.images}
        return {unit: amount for unit, amount in amounts.items() if amount is not None}

    def __str__(self) -> str:
        return " ".join(f"{amount:.12g} {unit}" for unit, amount in self.as_dict().items())
