"""Finds the tests that start servers or groups of processes, by the names that their code uses."""

import functools
import inspect
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

STARTERS = {
    "infra.local.ranks.run_ranks",
    "infra.local.stores.gcs_server",
    "infra.local.stores.s3_server",
    "tests.orchestrator.tracking.stores.Server",
}
FOLLOWED = ("tests.", "benchmarks.", "infra.")
"""Modules whose functions are searched, too, if a test uses them."""


def starts_servers(item: pytest.Item) -> bool:
    """A test, one of its fixtures, one of its parameters or what these call names one of `STARTERS`."""
    if not isinstance(item, pytest.Function):
        return False
    fixtures = [one.func for several in item._fixtureinfo.name2fixturedefs.values() for one in several]
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return any(starts(found) for found in (item.function, *fixtures, *parameters))


def starts(value: Any) -> bool:
    """A function, a class, or something that they use by name, is one of `STARTERS`."""
    seen: set[int] = set()
    waiting = [value]
    while waiting:
        found = _unwrapped(waiting.pop())
        if found is None or id(found) in seen:
            continue
        seen.add(id(found))
        if f"{found.__module__}.{found.__qualname__}" in STARTERS:
            return True
        if found.__module__.startswith(FOLLOWED):
            waiting += _uses(found)
    return False


def _unwrapped(value: Any) -> FunctionType | type | None:
    """The function or class behind a partial function, a method or a decorator."""
    while isinstance(value, functools.partial):
        value = value.func
    value = inspect.unwrap(value) if callable(value) else value
    value = getattr(value, "__func__", value)
    return value if isinstance(value, FunctionType | type) else None


@functools.cache
def _uses(found: FunctionType | type) -> list[Any]:
    """What a function or the methods of a class name: globals, attributes of modules, variables of outer functions."""
    if isinstance(found, type):
        return [*found.__bases__, *(value for value in vars(found).values() if callable(value))]
    names = {name for code in _codes(found.__code__) for name in code.co_names}
    used = [found.__globals__[name] for name in names if name in found.__globals__]
    modules = [value for value in used if isinstance(value, ModuleType) and value.__name__.startswith(FOLLOWED)]
    attributes = [vars(module)[name] for module in modules for name in names if name in vars(module)]
    return [*used, *attributes, *_held(found)]


def _held(function: Callable[..., Any]) -> Iterator[Any]:
    for cell in getattr(function, "__closure__", None) or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
