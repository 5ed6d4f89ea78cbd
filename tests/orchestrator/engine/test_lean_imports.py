"""What `lean_imports` leaves out, against the pinned versions. After an upgrade, these tests say what has changed."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

TRAIN = """
import sys
import torch
import torch.distributed as dist
from orchestrator.engine.step import Engine
from orchestrator.job.choices import SGD, AdamW
from orchestrator.job.sections import Parallel

dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/store", rank=0, world_size=1)
images, valid = torch.ones(4, 3, 2, 2, dtype=torch.uint8), torch.ones(4, dtype=torch.bool)

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(12, 2)

    def forward(self, images, seeds=None):
        return self.layer(images.flatten(1).to(self.layer.weight.dtype))

def train(stage, precision, optimizer):
    torch.manual_seed(0)
    engine = Engine(
        Network(),
        lambda logits, labels, weights: logits.float().square().sum(1),
        {"layer.weight": True, "layer.bias": False},
        optimizer=optimizer,
        parallel=Parallel(zero_stage=stage, precision=precision),
        micro_batch=2,
        local_batch=4,
        device=torch.device("cpu"),
    )
    for _ in range(3):
        engine.train_step(images, torch.zeros(4, 1).long(), torch.ones(4, 1), valid, None, lr=0.1)
    engine.logits(images)
    print("gradient of", stage, precision, engine.gradient_norm())

adamw = AdamW(name="adamw", lr=0.1, weight_decay=0.1)
train(0, "float32", SGD(name="sgd", lr=0.1, weight_decay=0.1))
train(0, "bf16", adamw)
train(1, "float32", adamw)
train(1, "bf16", adamw)
train(2, "float32", adamw)
train(3, "bf16", adamw)
"""
FULL = """
import importlib
import deepspeed, torch._dynamo, torch._inductor
backend = importlib.import_module("deepspeed.comm.torch")

def never(*arguments, **named):
    raise AssertionError("training calls the all-reduce for inference")

backend.build_shm_op = lambda: None  # a minute of g++, for that all-reduce
backend.TorchBackend.inference_all_reduce = never
"""
LEFT_OUT = """
left_out = ("mlflow", "pandas", "deepspeed.autotuning.autotuner", "torch._inductor", "torch._dynamo.eval_frame")
loaded = [name for name in left_out if name in sys.modules]
assert not loaded, f"the training step has imported {loaded}"
"""


def run(code: str, *arguments: str) -> str:
    """The output of a program in a fresh process."""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    words = [sys.executable, "-c", code, *arguments]
    process = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stderr
    return process.stdout


def deepspeed_folder() -> Path:
    """Where DeepSpeed is installed."""
    found = importlib.util.find_spec("deepspeed")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


@pytest.mark.servers
def test_training_imports_none_of_it_and_computes_the_same(tmp_path: Path) -> None:
    """The same steps of every kind of engine, once with everything loaded beforehand.

    Only the all-reduce for inference is not built there; a step that called it would fail.
    """
    norms = []
    for name, code in (("lean", TRAIN + LEFT_OUT), ("full", FULL + TRAIN)):
        (tmp_path / name).mkdir()
        output = run(code, str(tmp_path / name)).splitlines()
        norms.append([line for line in output if line.startswith("gradient of ")])
    assert norms[0] == norms[1]
    assert len(norms[0]) == 6


@pytest.mark.servers
def test_it_is_needed() -> None:
    """DeepSpeed and torch still import all this by themselves. If this fails, remove the part that is not needed."""
    run(
        """
import sys, torch
import deepspeed
assert "mlflow" in sys.modules, "the autotuner no longer imports mlflow"
assert "torch._dynamo" not in sys.modules, "deepspeed imports the compiler"
torch.optim.SGD([torch.zeros(1)])
assert "torch._dynamo" in sys.modules, "optimizers no longer import the compiler"
assert "torch._inductor.compile_fx" not in sys.modules, "optimizers import all of the compiler"
import deepspeed.runtime.zero.muon.original_muon
assert "torch._inductor.compile_fx" in sys.modules, "Muon no longer compiles its functions"
"""
    )


def test_deepspeed_uses_nothing_of_the_autotuner_but_its_settings() -> None:
    """Of `deepspeed.autotuning`, only the launcher imports more than the settings. Workers do not run the launcher."""
    package = deepspeed_folder()
    imports = set()
    for file in package.rglob("*.py"):
        if file.is_relative_to(package / "autotuning") or file.is_relative_to(package / "launcher"):
            continue
        text = file.read_text()
        if "autotuning" in text:
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import):
                    imports |= {alias.name for alias in node.names if "autotuning" in alias.name}
                elif isinstance(node, ast.ImportFrom):
                    names = [node.module or "", *(alias.name for alias in node.names)]
                    if any(name.split(".")[-1] == "autotuning" or "autotuning." in name for name in names):
                        imports.add(f"{node.module}:{','.join(alias.name for alias in node.names)}")
    assert imports == {"autotuning.config:DeepSpeedAutotuningConfig"}
    init = ast.parse((package / "autotuning" / "__init__.py").read_text())
    assert [ast.unparse(node) for node in init.body] == ["from .autotuner import Autotuner"]


def test_deepspeed_asks_for_no_other_compatible_op() -> None:
    """`import_deepspeed` empties the table, so that no compiler is run to fill it."""
    package = deepspeed_folder()
    readers = {
        str(file.relative_to(package)): line.strip()
        for file in package.rglob("*.py")
        for line in file.read_text().splitlines()
        if "__compatible_ops__" in line and file.parent.name != "ops"
    }
    assert readers == {
        "comm/torch.py": "if builder is None or not deepspeed.ops.__compatible_ops__.get(builder.NAME, False):"
    }


@pytest.mark.servers
def test_the_compiler_can_still_be_used() -> None:
    run(
        """
import sys, torch
from orchestrator.engine.lean_imports import leave_out_compiler
leave_out_compiler()
weight = torch.nn.Parameter(torch.ones(2))
optimizer = torch.optim.SGD([weight], lr=1.0)
weight.grad = torch.ones(2)
optimizer.step()
assert "torch._dynamo.eval_frame" not in sys.modules
assert weight.tolist() == [0, 0]
double = torch.compile(lambda x: x * 2, backend="eager")
assert double(torch.ones(2)).tolist() == [2, 2]
assert sys.modules["torch._dynamo"].__file__ == torch._dynamo.__file__
assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
"""
    )


@pytest.mark.servers
@pytest.mark.parametrize("statement", ["import torch._dynamo.config as found", "found = torch._dynamo.config"])
def test_a_module_of_the_compiler_is_loaded_once(statement: str) -> None:
    run(
        f"""
import inspect, sys, torch
from orchestrator.engine.lean_imports import leave_out_compiler
leave_out_compiler()
inspect.getmodule(inspect.currentframe())
assert "torch._dynamo.eval_frame" not in sys.modules
{statement}
assert found is torch._dynamo.config is sys.modules["torch._dynamo.config"]
assert found.__spec__.origin == found.__file__
assert torch._dynamo.eval_frame.config is found
import torch._dynamo.debug_utils
"""
    )
