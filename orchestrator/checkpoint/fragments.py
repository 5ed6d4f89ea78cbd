"""Where each rank keeps its part of the float32 weights and the optimizer state, for every ZeRO stage.

Five files depend on DeepSpeed's insides and may need work when its version changes; tests compare each with the pinned
version (tests/orchestrator/engine/test_deepspeed_internals.py and test_lean_imports.py):

    checkpoint/fragments.py     where DeepSpeed keeps weights and optimizer state
    engine/step.py              switches of its engine, which steps it applies, its first step on zero gradients
    engine/bf16_optimizer.py    a subclass of its optimizer
    engine/memory/needed.py     the sizes of its buffers
    engine/lean_imports.py      what it imports

DeepSpeed flattens parameters into a few long float32 tensors, which its inner optimizer updates, and distributes pieces
of them over the ranks by stage, precision and world size. A `Fragment` says which elements of which named parameter a
rank holds, and where. Checkpoints are written and read as fragments, so they fit any stage and any world size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from orchestrator.engine.step import Engine


@dataclass(frozen=True)
class Fragment:
    """Elements [start, start + numel) of the flattened parameter `name`, on this rank.

    Attributes:
        flat: the float32 tensor that the inner optimizer updates.
        offset: of the fragment in `flat`.
    """

    name: str
    start: int
    numel: int
    flat: Tensor
    offset: int

    def view(self, tensor: Tensor) -> Tensor:
        """The fragment's elements of `flat`, or of an optimizer state with the same shape."""
        return tensor.detach().view(-1).narrow(0, self.offset, self.numel)


def parameter_sizes(engine: Engine) -> dict[str, int]:
    """The number of elements of every parameter of the model."""
    # under ZeRO 3 a parameter is empty between uses, and `ds_numel` has its size
    return {name: int(getattr(p, "ds_numel", p.numel())) for name, p in engine.deepspeed.module.named_parameters()}


def held_fragments(engine: Engine) -> list[Fragment]:
    """This rank's fragments: at stages 1 to 3 disjoint over the ranks, at stage 0 all parameters, whole."""
    stage = engine.deepspeed.zero_optimization_stage()
    named = list(engine.deepspeed.module.named_parameters())
    if stage == 3:
        return list(_stage3(engine.deepspeed.optimizer, named))
    if stage in (1, 2):
        return list(_stage1_and_2(engine.deepspeed.optimizer, named))
    return list(_stage0(engine.deepspeed.optimizer, named))


def owned_fragments(engine: Engine) -> list[Fragment]:
    """The fragments that this rank writes. Together the ranks write every element exactly once."""
    fragments = held_fragments(engine)
    if engine.deepspeed.zero_optimization_stage() > 0:
        return fragments
    rank, world = dist.get_rank(), dist.get_world_size()
    owned = []
    for f in fragments:  # all ranks have all parameters: rank r writes the r-th of W slices of each
        first, last = f.numel * rank // world, f.numel * (rank + 1) // world
        if first < last:
            owned.append(Fragment(f.name, f.start + first, last - first, f.flat, f.offset + first))
    return owned


def optimizer_state(engine: Engine, flat: Tensor) -> dict[str, Tensor]:
    """The optimizer's tensors with the shape of `flat`; none before the first step."""
    state = engine.deepspeed.basic_optimizer.state.get(flat, {})
    return {key: value for key, value in state.items() if isinstance(value, Tensor) and value.shape == flat.shape}


def allocate_optimizer_state(engine: Engine, keys: list[str], updates: int) -> None:
    """Allocate the optimizer's state of every flat tensor, as after so many updates: zeros for `keys`.

    Checkpoints hold the tensors with the shape of the parameter. The optimizer's own step count follows from `updates`.
    """
    inner = engine.deepspeed.basic_optimizer
    for flat in {id(f.flat): f.flat for f in held_fragments(engine)}.values():
        state = inner.state[flat]
        for key in optimizer_state(engine, flat).keys() - set(keys):
            del state[key]  # an average of the weights, say, that began after the checkpoint
        for key in keys:
            if key not in state:
                state[key] = torch.zeros_like(flat, memory_format=torch.preserve_format).detach()
        if not keys:  # saved before the first update: the optimizer allocates its state itself
            state.clear()
        elif not isinstance(inner, torch.optim.SGD):  # SGD does not count its steps
            state["step"] = torch.tensor(float(updates), device=flat.device)  # the fused kernel needs it on this device


def publish_weights(engine: Engine) -> None:
    """Copy restored float32 weights to the parameters that the model computes with. Collective."""
    stage = engine.deepspeed.zero_optimization_stage()
    optimizer = engine.deepspeed.optimizer
    if stage in (1, 2):
        optimizer.update_lp_params()
    elif stage == 3:
        persistent = optimizer.persistent_parameters
        if persistent:
            persistent[0].partition(persistent)
        for group, flat in enumerate(optimizer.fp32_partitioned_groups_flat):
            optimizer.fp16_partitioned_groups_flat[group].data.copy_(flat.data)
            optimizer._unflatten_partitioned_parameters(group)
        if persistent:
            persistent[0].all_gather(persistent)
    elif hasattr(optimizer, "fp32_groups"):
        for working, master in _pairs(optimizer):
            working.data.copy_(master.data)


def _stage0(optimizer: Any, named: list[tuple[str, Tensor]]) -> Iterator[Fragment]:
    masters = {id(w): m for w, m in _pairs(optimizer)} if hasattr(optimizer, "fp32_groups") else {}
    for name, parameter in named:
        master = masters.get(id(parameter), parameter)  # float32 runs update the parameters themselves
        yield Fragment(name, 0, parameter.numel(), master, 0)


def _pairs(optimizer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for working, masters in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
        yield from zip(working, masters, strict=True)


def _stage1_and_2(optimizer: Any, named: list[tuple[str, Tensor]]) -> Iterator[Fragment]:
    # BF16_Optimizer (stage 1 with float32 accumulation) and the ZeRO optimizer have different names for it.
    flats = getattr(optimizer, "fp32_groups_flat_partition", None) or optimizer.single_partition_of_fp32_groups
    for name, parameter in named:
        mapping = getattr(parameter, "_hp_mapping", None)
        if mapping is not None:
            here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Fragment(name, here.start, here.numel, flats[mapping.param_group_index], there.start)


def _stage3(optimizer: Any, named: list[tuple[str, Tensor]]) -> Iterator[Fragment]:
    rank = dist.get_rank()
    for name, parameter in named:
        group, offset, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = rank * parameter.ds_tensor.ds_numel  # type: ignore[attr-defined]
        numel = min(parameter.ds_numel - start, parameter.ds_tensor.ds_numel)  # type: ignore[attr-defined]
        if numel > 0:  # otherwise this rank holds only padding
            yield Fragment(name, start, numel, optimizer.fp32_partitioned_groups_flat[group], offset)
