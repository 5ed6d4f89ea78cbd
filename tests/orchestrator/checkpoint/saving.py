"""Saving without training: in place of a DeepSpeed engine, a state that is a known function of the step."""

import os
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch

from infra.local.stores import Server
from orchestrator.checkpoint.restore import restore
from orchestrator.engine.step import Engine

SIZES = (700, 300, 1100, 5)


class Unsharded:
    """Parameters with one optimizer state each, with the attributes of DeepSpeed's engine at ZeRO stage 0."""

    def __init__(self) -> None:
        self.module = torch.nn.ParameterDict({f"p{i}": torch.zeros(size) for i, size in enumerate(SIZES)})
        self.optimizer = SimpleNamespace()
        self.basic_optimizer = SimpleNamespace(state=defaultdict(dict))

    def zero_optimization_stage(self) -> int:
        return 0


def stand_in() -> Any:
    """An engine that has only a state."""
    return SimpleNamespace(deepspeed=Unsharded(), device=torch.device("cpu"))


def set_state(engine: Engine, step: int) -> None:
    """Set an engine's state, in place, to the state after `step` steps."""
    for i, parameter in enumerate(engine.deepspeed.module.values()):
        state = engine.deepspeed.basic_optimizer.state[parameter]
        for name, sign in (("weight", 1), ("exp_avg", -1)):
            values = sign * (step + i * 1e4 + torch.arange(parameter.numel()) / 7)
            if name == "weight":
                parameter.data.copy_(values)
            elif name in state:
                state[name].copy_(values)
            else:
                state[name] = values


def has_state(engine: Engine, step: int) -> bool:
    """Whether an engine's state is exactly that of a step."""
    expected = stand_in()
    set_state(expected, step)
    here, there = engine.deepspeed, expected.deepspeed
    return all(
        torch.equal(here.module[name], there.module[name])
        and torch.equal(
            here.basic_optimizer.state[here.module[name]]["exp_avg"],
            there.basic_optimizer.state[there.module[name]]["exp_avg"],
        )
        for name in here.module
    )


def restored_step(run: str) -> int | None:
    """Restore a checkpoint and check that the state is exactly that of its step; returns the step."""
    engine = stand_in()
    manifest = restore(engine, run)
    if manifest is None:
        return None
    assert has_state(engine, manifest.step)
    assert manifest.totals == {"steps": manifest.step}
    return manifest.step


def be_impatient(server: Server | None = None) -> None:
    """Set small files and short waits for this process, which a test started; `server` answers gs:// and s3://."""
    import orchestrator.checkpoint.snapshot
    from data.storage import patience

    orchestrator.checkpoint.snapshot.FILE_BYTES = 4000
    patience.REQUEST_SECONDS, patience.PATIENCE, patience.ATTEMPTS = 2.0, 1.0, 3
    patience.FIRST_WAIT, patience.LONGEST_WAIT = 0.02, 0.2
    if server is not None:
        os.environ.update(server.environment)
