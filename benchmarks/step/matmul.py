"""The ceiling: only the matrix products of a block's four dense layers, forward and backward."""

from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.step.task import Batch, Task
from model import ViTConfig
from orchestrator.engine.devices import without_bf16
from orchestrator.engine.settings import PRECISIONS


def layers(config: ViTConfig) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of the dense layers of one block."""
    width, hidden = config.width, config.mlp_dim
    return {"qkv": (width, 3 * width), "out": (width, width), "fc1": (width, hidden), "fc2": (hidden, width)}


def product_flops(config: ViTConfig) -> int:
    """FLOPs of one step per image: three products per layer of 2 * tokens * inputs * outputs each."""
    tokens = config.num_tokens
    return sum(3 * 2 * tokens * inputs * outputs for inputs, outputs in layers(config).values())


def computing_dtype(task: Task) -> torch.dtype:
    """The type in which ours computes products: float32 on a CPU without bf16 instructions."""
    dtype = PRECISIONS[task.precision]
    return torch.float32 if without_bf16(torch.device(task.device), dtype) else dtype


class _Layer(NamedTuple):
    """x (T, inputs), w (outputs, inputs), g (T, outputs), and memory for y, dx and dw."""

    x: Tensor
    w: Tensor
    g: Tensor
    y: Tensor
    dx: Tensor
    dw: Tensor


class Products:
    """y = x w^T, dx = g w and dw = g^T x of every layer, into allocated memory. A `benchmarks.step.task.Contender`."""

    parameters = 0

    def __init__(self, task: Task, device: torch.device) -> None:
        self._config, self._device, self._dtype = task.config, device, computing_dtype(task)
        self._images = 0
        self._layers: list[_Layer] = []

    def step(self, batch: Batch) -> Tensor:
        if len(batch.images) != self._images:
            self._layers = []  # frees the old ones first
            self._images = len(batch.images)
            tokens = self._images * self._config.num_tokens
            self._layers = [self._layer(tokens, *sizes) for sizes in layers(self._config).values()]
        for layer in self._layers:
            torch.mm(layer.x, layer.w.t(), out=layer.y)
            torch.mm(layer.g, layer.w, out=layer.dx)
            torch.mm(layer.g.t(), layer.x, out=layer.dw)
        return torch.zeros(())

    def _layer(self, tokens: int, inputs: int, outputs: int) -> _Layer:
        def random(*shape: int) -> Tensor:
            return torch.randn(shape, device=self._device).to(self._dtype)

        x, w, g = random(tokens, inputs), random(outputs, inputs), random(tokens, outputs)
        return _Layer(x, w, g, torch.empty_like(g), torch.empty_like(x), torch.empty_like(w))
