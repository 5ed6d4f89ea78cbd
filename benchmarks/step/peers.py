"""The other libraries, each trained as its users do: in plain PyTorch, without this project's model.

bf16 is torch.autocast over float32 weights. All contenders get the same uint8 images, normalise them on the device, and
have the same loss, parameter groups, fused AdamW and clipping. timm runs with its option for norms in bf16
(`set_fast_norm`), transformers with `attn_implementation="sdpa"`. Both compute GELU by the error function; ours by
tanh, as the authors' code does.
"""

import enum
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from benchmarks.step.task import GRAD_CLIP, OPTIMIZER, Batch, Task, objective
from model import decay_mask
from orchestrator.engine.optimizer import create_optimizer
from orchestrator.engine.phases import OPTIMIZER as OPTIMIZER_PHASE
from orchestrator.engine.step import normalise

TIMM_NAMES = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge"}


class Peer:
    """A network of another library. A `benchmarks.step.task.Contender`."""

    def __init__(self, task: Task, device: torch.device) -> None:
        build, self._logits = BUILDERS[task.impl]
        with device:
            network = build(task).train()
        weights = list(network.parameters())
        self.parameters = sum(p.numel() for p in weights)
        self._optimizer = create_optimizer(network, OPTIMIZER, decay_mask(network))
        for group in self._optimizer.param_groups:
            group["lr"] = OPTIMIZER.lr
        self._weights, self._objective = weights, objective(task)
        self._network = torch.compile(network) if task.compiled else network
        self._autocast = torch.autocast(device.type, torch.bfloat16, enabled=task.precision == "bf16")

    def step(self, batch: Batch) -> Tensor:
        with self._autocast:
            logits = self._logits(self._network(normalise(batch.images, torch.float32)))
        loss = self._objective(logits, batch.labels, batch.weights).mean()
        loss.backward()
        with record_function(OPTIMIZER_PHASE):
            torch.nn.utils.clip_grad_norm_(self._weights, GRAD_CLIP)
            self._optimizer.step()
            self._optimizer.zero_grad()
        return loss.detach()


def build_timm(task: Task) -> torch.nn.Module:
    _stand_in_for_torchvision()
    timm = import_module("timm")
    timm.layers.set_fast_norm()  # layers read it when they are created
    config = task.config
    letter = config.name.removeprefix("ViT-").partition("/")[0]
    network: torch.nn.Module = timm.create_model(
        f"vit_{TIMM_NAMES[letter]}_patch{config.patch_size}_224",
        img_size=config.image_size,
        depth=config.depth,
        embed_dim=config.width,
        mlp_ratio=config.mlp_dim / config.width,
        num_heads=config.heads,
        num_classes=config.num_classes,
    )
    network.set_grad_checkpointing(task.checkpointing == "full")  # type: ignore[operator]
    return network


def build_transformers(task: Task) -> torch.nn.Module:
    transformers = import_module("transformers")
    config = task.config
    network = transformers.ViTForImageClassification(
        transformers.ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            num_hidden_layers=config.depth,
            hidden_size=config.width,
            intermediate_size=config.mlp_dim,
            num_attention_heads=config.heads,
            num_labels=config.num_classes,
            attn_implementation="sdpa",
        )
    )
    if task.checkpointing == "full":
        network.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    built: torch.nn.Module = network
    return built


Builder = Callable[[Task], torch.nn.Module]
BUILDERS: dict[str, tuple[Builder, Callable[[Any], Tensor]]] = {
    "timm": (build_timm, lambda output: output),
    "transformers": (build_transformers, lambda output: output.logits),
}
"""By peer: how its network is built, and how the logits are read from its output."""


InterpolationMode = enum.Enum("InterpolationMode", "NEAREST BILINEAR BICUBIC BOX HAMMING LANCZOS")
"""timm reads the values of this enumeration of torchvision when it is imported."""


class _Empty(ModuleType):
    """A module that has every name, as an empty class."""

    __path__ = ()  # type: ignore[assignment]  # a package

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, type(name, (), {}))
        return getattr(self, name)


def _stand_in_for_torchvision() -> None:
    """Replaces torchvision by empty names if it is missing or built for another torch.

    timm imports it for data sets, augmentation and frozen batch norms. A ViT's training step uses none of these.
    """
    try:
        import_module("torchvision")
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        parts = ("", ".datasets", ".ops", ".ops.misc", ".transforms", ".transforms.functional")
        for name in (f"torchvision{part}" for part in parts):
            stand_in = _Empty(name)
            stand_in.__spec__ = ModuleSpec(name, None)
            sys.modules[name] = stand_in
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, stand_in)
        vars(sys.modules["torchvision.transforms.functional"])["InterpolationMode"] = InterpolationMode
