"""What our code takes from DeepSpeed's insides, against the pinned version. After an upgrade, the messages name our
files to read. (What a step computes and how much memory it takes is in test_step.py and memory/test_needed.py, what a
checkpoint holds in test_restore.py, and what an import leaves out in test_lean_imports.py.)
"""

import hashlib
import importlib
import inspect
import re
from pkgutil import resolve_name
from typing import Any

import pytest
import torch

from infra.local.ranks import run_ranks
from orchestrator.engine.lean_imports import import_deepspeed
from orchestrator.engine.memory import needed
from tests.orchestrator.small_run import BATCH, build_engine
from tests.paths import ROOT

STEP, BF16, NEEDED = "engine/step.py", "engine/bf16_optimizer.py", "engine/memory/needed.py"
IMPORTS, FRAGMENTS = "engine/lean_imports.py", "checkpoint/fragments.py"

ENGINE = "deepspeed.runtime.engine:DeepSpeedEngine"
BF16_OPTIMIZER = "deepspeed.runtime.bf16_optimizer:BF16_Optimizer"
UNFUSED = "deepspeed.runtime.fp16.unfused_optimizer:FP16_UnfusedOptimizer"
ZERO_1_AND_2 = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
ZERO_3 = "deepspeed.runtime.zero.stage3:DeepSpeedZeroOptimizer_Stage3"

SOURCES = {
    # Overridden, or called between what is overridden.
    f"{BF16_OPTIMIZER}._update_hp_grad": (BF16, "026f6bb3edea2557"),
    f"{BF16_OPTIMIZER}.accumulate_hp_grads_and_remove_lp": (BF16, "4792e4da4c695a7e"),
    f"{BF16_OPTIMIZER}.backward_epilogue": (BF16, "c5efcb29beb1a7a7"),
    f"{BF16_OPTIMIZER}.clear_hp_grads": (BF16, "82cb16a0c5b97d8e"),
    f"{BF16_OPTIMIZER}.get_grads_for_norm": (BF16, "81ed7f0b119f7ad8"),
    f"{BF16_OPTIMIZER}.get_grads_for_reduction": (BF16, "2ed8bbe28ad43103"),
    f"{BF16_OPTIMIZER}.step": (BF16, "9b21d4a28f8714d9"),
    f"{BF16_OPTIMIZER}.update_hp_grads": (BF16, "e36698422d4d5d5d"),
    f"{ENGINE}._backward_epilogue": (BF16, "5d52976af041dc08"),
    # Which steps are applied, and that clipping and reduction can be switched off.
    f"{ENGINE}._take_model_step": (STEP, "c4c6e01aa1fc4e7d"),
    f"{ENGINE}.get_global_grad_norm": (STEP, "93f2c578325b9c9c"),
    f"{ENGINE}.is_gradient_accumulation_boundary": (STEP, "3b2d8869fe1c9ca3"),
    f"{ENGINE}.was_step_applied": (STEP, "beb1e1c559ad7f6e"),
    # The step on zero gradients that is undone.
    f"{UNFUSED}.initialize_optimizer_states": (STEP, "59c37209d79fa8b2"),
    f"{ZERO_3}.initialize_optimizer_states": (STEP, "e7929e87483515f8"),
    # Where the float32 weights are, and how they reach the network.
    "deepspeed.utils.mixed_precision_linkage:link_hp_params": (FRAGMENTS, "6e5e840b03770f0b"),
    f"{BF16_OPTIMIZER}.update_lp_params": (FRAGMENTS, "128911db918ae80c"),
    f"{ZERO_1_AND_2}.update_lp_params": (FRAGMENTS, "3cdce069e3c66082"),
    f"{ZERO_3}._unflatten_partitioned_parameters": (FRAGMENTS, "00cc8a3f65af736f"),
    f"{ZERO_3}.get_param_id": (FRAGMENTS, "a6dc96bd483c1400"),
}
"""Function -> (our file that relies on how it works, SHA-256 of its source, shortened)."""

DIRECT = "orchestrator.engine.bf16_optimizer:DirectAccumulationOptimizer"
OPTIMIZERS = {
    (0, "float32"): "torch.optim.adamw:AdamW",
    (0, "bf16"): UNFUSED,
    (1, "float32"): ZERO_1_AND_2,
    (1, "bf16"): DIRECT,
    (2, "float32"): ZERO_1_AND_2,
    (2, "bf16"): ZERO_1_AND_2,
    (3, "float32"): ZERO_3,
    (3, "bf16"): ZERO_3,
}
"""(stage, precision) -> the class of the engine's optimizer."""

OF_ENGINES = ["basic_optimizer", "enable_backward_allreduce", "optimizer.param_groups"]
OF_OPTIMIZERS = {
    UNFUSED: ["fp16_groups", "fp32_groups"],
    ZERO_1_AND_2: ["single_partition_of_fp32_groups", "update_lp_params"],
    DIRECT: [
        *("fp32_groups_flat_partition", "update_lp_params"),
        *("_global_grad_norm", "fp32_groups_gradients", "fp32_groups_has_gradients", "optimizer"),
    ],
    ZERO_3: [
        *("_unflatten_partitioned_parameters", "get_param_id", "grad_position", "persistent_parameters"),
        *("fp16_partitioned_groups_flat", "fp32_partitioned_groups_flat"),
    ],
}
_MAPPING = [
    *("_hp_mapping.lp_fragment_address.start", "_hp_mapping.lp_fragment_address.numel"),
    *("_hp_mapping.hp_fragment_address.start", "_hp_mapping.param_group_index"),
]
OF_PARAMETERS = {
    UNFUSED: [],
    ZERO_1_AND_2: _MAPPING,
    DIRECT: _MAPPING,
    ZERO_3: ["all_gather", "ds_numel", "ds_tensor.ds_numel", "partition"],
}
"""What our code reads or calls; of optimizers and parameters, by the class of the optimizer."""

NAMES = {
    STEP: ["basic_optimizer", "enable_backward_allreduce", "was_step_applied"],
    BF16: ["_global_grad_norm", "_hp_grad", "_update_hp_grad", "fp32_groups_gradients", "fp32_groups_has_gradients"],
    NEEDED: ["MEMORY_OPT_ALLREDUCE_SIZE", "stage3_max_live_parameters"],
    IMPORTS: ["deepspeed.autotuning", "deepspeed.runtime", "__compatible_ops__"],
    FRAGMENTS: [
        *("_hp_mapping", "hp_fragment_address", "lp_fragment_address", "param_group_index", "basic_optimizer"),
        *("ds_numel", "ds_tensor", "fp16_groups", "fp32_groups", "fp32_groups_flat_partition"),
        *("single_partition_of_fp32_groups", "update_lp_params", "grad_position", "get_param_id"),
        *("persistent_parameters", "fp16_partitioned_groups_flat", "fp32_partitioned_groups_flat"),
        "_unflatten_partitioned_parameters",
    ],
}
"""Our file -> names of DeepSpeed's insides in it."""


def test_the_files_that_depend_on_deepspeeds_insides() -> None:
    """No other file of the orchestrator does."""
    names = {name for names in NAMES.values() for name in names}
    for path in (ROOT / "orchestrator").rglob("*.py"):
        file, text = path.relative_to(ROOT / "orchestrator").as_posix(), path.read_text()
        found = {name for name in names if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text)}
        imports = re.search(r"^\s*(import|from) deepspeed\b", text, re.MULTILINE) is not None
        if file in NAMES:
            assert set(NAMES[file]) <= found, f"{file}: bring NAMES up to date"
        else:
            assert not found, f"{file} depends on DeepSpeed's insides: move that to one of {sorted(NAMES)}"
            assert not imports, f"{file} imports DeepSpeed"


@pytest.mark.parametrize("function", SOURCES)
def test_a_function_is_the_one_that_we_know(function: str) -> None:
    deepspeed = import_deepspeed()
    file, known = SOURCES[function]
    found = hashlib.sha256(inspect.getsource(resolve_name(function)).encode()).hexdigest()[:16]
    assert found == known, (
        f"{function} has changed in DeepSpeed {deepspeed.__version__}: check that orchestrator/{file} still fits, "
        f"then set the digest here to {found!r}"
    )


def test_defaults() -> None:
    import_deepspeed()
    engine: Any = importlib.import_module("deepspeed.runtime.engine")
    zero: Any = importlib.import_module("deepspeed.runtime.zero.config")
    advice = f"DeepSpeed's default has changed: set it in orchestrator/{NEEDED}, too"
    assert engine.MEMORY_OPT_ALLREDUCE_SIZE == needed.ALL_REDUCE_ELEMENTS, advice
    assert zero.DeepSpeedZeroConfig().max_live_parameters == needed.GATHERED_ELEMENTS, advice


def test_engines_have_what_is_read() -> None:
    (faults,) = run_ranks(1, faults_of_engines)
    assert not faults, "\n".join(faults)


def faults_of_engines() -> list[str]:
    """What an engine of each stage and precision lacks after a step; one line each."""
    deepspeed = import_deepspeed()
    faults = []
    for (stage, precision), expected in OPTIMIZERS.items():
        engine = build_engine(stage, precision=precision, dropout=0.0)
        where = f"stage {stage} in {precision}"
        states = [value for state in engine.deepspeed.basic_optimizer.state.values() for value in state.values()]
        if any(value.any() for value in states if isinstance(value, torch.Tensor)):
            faults.append(f"{where}: the optimizer's state is not zero before the first step: see orchestrator/{STEP}")
        images = torch.zeros(BATCH, 3, 8, 8, dtype=torch.uint8)
        labels, weights, valid = torch.zeros(BATCH, 1).long(), torch.ones(BATCH, 1), torch.ones(BATCH).bool()
        engine.train_step(images, labels, weights, valid, None, lr=0.0)

        kind = type(engine.deepspeed.optimizer)
        if (name := f"{kind.__module__}:{kind.__qualname__}") != expected:
            faults.append(f"{where}: the optimizer is {name} and not {expected}: see orchestrator/{FRAGMENTS}")
            continue
        lacks = [name for name in OF_ENGINES if not has(engine.deepspeed, name)]
        lacks += [name for name in OF_OPTIMIZERS.get(expected, []) if not has(engine.deepspeed.optimizer, name)]
        for parameter in engine.deepspeed.module.parameters():
            lacks += [name for name in OF_PARAMETERS.get(expected, []) if not has(parameter, name)]
        faults += [f"{where}: no {name}: see {' and '.join(users(name))}" for name in dict.fromkeys(lacks)]
    return [f"DeepSpeed {deepspeed.__version__}, {fault}" for fault in faults]


def has(thing: Any, path: str) -> bool:
    """Whether it has an attribute, or an attribute's attribute."""
    for name in path.split("."):
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True


def users(path: str) -> list[str]:
    """Our files that use one of the names in a path."""
    return [f"orchestrator/{file}" for file, names in NAMES.items() if set(path.split(".")) & set(names)]
