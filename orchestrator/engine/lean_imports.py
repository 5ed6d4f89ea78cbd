"""DeepSpeed without the libraries that it imports and training never calls. They are most of a worker's start.

    left out                      is imported by                                   CPU seconds
    mlflow, pandas, fastapi       DeepSpeed's autotuner                            1.3
    torch._inductor, networkx     DeepSpeed's Muon, which compiles its functions   1.0
    torch._dynamo, sympy          each of torch's optimizers                       1.1

All of them can still be imported. Measured with DeepSpeed 0.19.8 and torch 2.13; a test says when this changes.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

AUTOTUNING = "deepspeed.autotuning"
COMPILER = "torch._dynamo"


def import_deepspeed() -> Any:
    """`import deepspeed`, without its autotuner."""
    if "deepspeed" not in sys.modules:
        _leave_out_autotuner()
        importlib.import_module("deepspeed")
        _import_muon_uncompiled()
        # Leave out a CPU all-reduce for inference, which training never calls. Building it takes minutes of g++ on a
        # new machine, and the lock file of a killed build would stop every later start. DeepSpeed would run a C
        # compiler to fill this table, and looks only that all-reduce up in it.
        vars(sys.modules["deepspeed.ops"])["__compatible_ops__"] = {}
    return sys.modules["deepspeed"]


def leave_out_compiler() -> None:
    """Keep torch's optimizers from loading torch's compiler, if nothing has loaded it yet.

    Optimizers import the compiler only to tell it what not to compile. A stand-in takes these calls. It loads the
    compiler as soon as anything else asks for it.
    """
    if COMPILER not in sys.modules:
        sys.modules[COMPILER] = _NoCompiler()
        sys.meta_path.insert(0, _CompilerModules())


def _leave_out_autotuner() -> None:
    """Replace the `__init__` of the autotuner's package by an empty one. DeepSpeed reads the settings beside it."""
    found = importlib.util.find_spec("deepspeed")
    if found is None or found.submodule_search_locations is None:
        return  # the import says why
    package = ModuleType(AUTOTUNING)
    package.__path__ = [str(Path(folder) / "autotuning") for folder in found.submodule_search_locations]
    sys.modules[AUTOTUNING] = package


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's Muon without compiling its functions. DeepSpeed compares every optimizer with it."""
    compiler: Any = importlib.import_module("deepspeed.runtime.compiler")
    usual = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    finally:
        compiler.compile = usual


class _NoCompiler(ModuleType):
    """The stand-in for `torch._dynamo`."""

    def __init__(self) -> None:
        super().__init__(COMPILER)
        self.__path__: list[str] = []  # of a package, so that imports of its modules reach `_CompilerModules`

    @staticmethod
    def disable(function: Any, *_: object, **__: object) -> Any:
        """The function itself: it is not compiled."""
        return function

    @staticmethod
    def graph_break(*_: object, **__: object) -> None:
        """Nothing: no graph is being compiled."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked of all modules, for instance by `inspect`
            raise AttributeError(name)
        return getattr(_load_compiler(), name)


class _CompilerModules:
    """Loads the compiler when one of its modules is imported, and hands out the module that came with it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Called by Python for every import."""
        if not name.startswith(f"{COMPILER}."):
            return None
        compiler = _load_compiler()
        if (module := sys.modules.get(name)) is None:
            return PathFinder.find_spec(name, compiler.__path__, target)
        self._usual, vars(module)["__spec__"] = module.__spec__, None  # with one, Python would execute the module again
        return ModuleSpec(name, self)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """The module that is loaded already."""
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        """Called by Python instead of executing the module."""
        vars(module)["__spec__"] = self._usual


def _load_compiler() -> ModuleType:
    if isinstance(sys.modules.get(COMPILER), _NoCompiler):
        del sys.modules[COMPILER]
        sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _CompilerModules)]
    return importlib.import_module(COMPILER)
