"""Time stamps of a start, written by every process of it: when which function is entered or left.

Nothing of the program itself knows of them. A folder in PYTHONPATH holds a `sitecustomize` that calls `install`, and
every Python process that Ray starts inherits it. It imports little, since each of them does.
"""

import functools
import os
import sys
import time
from importlib.machinery import PathFinder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

FOLDER = "BENCHMARK_START_STAMPS"
"""Environment variable: the folder to which each process writes a file of its own."""

BEGUN = "begun"  # of a process: Python is there, and has imported nothing yet
ENTERED = {  # function -> stamp, as it is entered
    "ray:init": "ray.init",
    "ray.train.v2.api.data_parallel_trainer:DataParallelTrainer.fit": "fit",
    "ray.train.v2._internal.execution.controller.controller:TrainController.__init__": "controller",
    "ray.train.v2._internal.execution.worker_group.worker:RayTrainWorker.__init__": "worker",
    "torch.distributed:init_process_group": "group",
    "ray.train.v2._internal.execution.worker_group.worker:RayTrainWorker.run_train_fn": "function sent",
    "orchestrator.training.loop:train": "function",
    "orchestrator.engine.step:Engine.__init__": "engine",
}
LEFT = {  # function -> stamp, as it is left
    "ray:init": "ray.init done",
    "torch.distributed:init_process_group": "group done",
    "orchestrator.run.training_set:open_training_set": "data done",
    "orchestrator.engine.step:Engine.__init__": "engine done",
    "orchestrator.checkpoint.restore:restore": "restore done",
    "orchestrator.engine.step:Engine.train_step": "step done",
}
IMPORTED = (
    "ray",
    "ray.train",
    "ray.train.torch",
    "torch",
    "deepspeed",
    "mlflow",
    "pandas",
    "ray.data",
    "orchestrator.training.loop",
    "orchestrator.tracking.mlflow_run",
)
FIRST_ONLY = {"step done"}  # of which later ones are not written


def install() -> None:
    """Have this process write its stamps."""
    if FOLDER in os.environ:
        stamp(BEGUN + " " + " ".join(sys.orig_argv[1:])[:80])
        sys.meta_path.insert(0, _Wrapper())


def stamp(name: str) -> None:
    """Write one."""
    with open(f"{os.environ[FOLDER]}/{os.getpid()}.stamps", "a") as file:
        file.write(f"{time.time():.4f} {time.process_time():.3f} {name}\n")


class _Wrapper:
    """Wraps functions of modules when these are imported."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None", target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        wanted = [place for place in {**ENTERED, **LEFT} if place.partition(":")[0] == name]
        if not wanted and name not in IMPORTED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def exec_module(module: "ModuleType") -> None:
                if name in IMPORTED:
                    stamp("import " + name)
                load(module)
                for place in wanted:
                    _wrap(module, place)
                if name in IMPORTED:
                    stamp("imported " + name)

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _wrap(module: "ModuleType", place: str) -> None:
    owner: Any = module
    *owners, attribute = place.partition(":")[2].split(".")
    for each in owners:
        owner = getattr(owner, each)
    setattr(owner, attribute, _stamped(getattr(owner, attribute), ENTERED.get(place), LEFT.get(place)))


def _stamped(function: "Callable[..., Any]", entered: str | None, left: str | None) -> "Callable[..., Any]":
    written = set()

    def once(name: str | None) -> None:
        if name is not None and name not in written:
            written.update({name} & FIRST_ONLY)
            stamp(name)

    @functools.wraps(function)
    def wrapped(*args: "Any", **options: "Any") -> "Any":
        once(entered)
        result = function(*args, **options)
        once(left)
        return result

    return wrapped
