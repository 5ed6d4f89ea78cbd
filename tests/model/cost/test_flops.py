"""FLOPs against the paper and PyTorch's own counter; memory against the storages that exist during a step."""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from model import checkpoint_blocks, create_model, forward_macs, training_flops, vit_config
from model.cost.flops import activation_bytes, recomputed_flops
from model.variants import ModelConfigError

JFT_IMAGES, JFT_CLASSES = 303_000_000, 18_291


@pytest.mark.parametrize(
    ("name", "epochs", "exaflops", "tolerance"),
    [
        ("ViT-B/32", 7, 55, 0.03),
        ("ViT-B/16", 7, 224, 0.01),
        ("ViT-L/32", 7, 196, 0.01),
        ("ViT-L/16", 7, 783, 0.01),
        ("ViT-L/16", 14, 1567, 0.01),
        ("ViT-H/14", 14, 4262, 0.01),
    ],
)
def test_pre_training_compute_of_table_6(name: str, epochs: int, exaflops: float, tolerance: float) -> None:
    width = vit_config(name).width
    config = vit_config(name, num_classes=JFT_CLASSES, representation_size=width)
    assert training_flops(config) * JFT_IMAGES * epochs / 1e18 == pytest.approx(exaflops, rel=tolerance)


@pytest.mark.parametrize(
    ("name", "gigaflops"),
    [("B/32", 26.45), ("B/16", 105.4), ("L/32", 92.27), ("L/16", 369.3), ("H/14", 1003.8)],
)
def test_training_gigaflops_per_image(name: str, gigaflops: float) -> None:
    assert training_flops(vit_config(name)) / 1e9 == pytest.approx(gigaflops, rel=5e-4)


@pytest.mark.parametrize("pool", ["token", "gap"])
@pytest.mark.parametrize("representation_size", [None, 48])
@pytest.mark.parametrize("image_size", [32, 48])
def test_macs_equal_pytorchs_count(pool: str, representation_size: int | None, image_size: int) -> None:
    model = create_model(
        "Ti/8", num_classes=7, image_size=32, depth=2, pool=pool, representation_size=representation_size
    )
    model.eval()  # in training, the last block computes only the class token
    with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
        model(torch.zeros(1, 3, image_size, image_size))
    assert counter.get_total_flops() == 2 * forward_macs(model.config, image_size)


def test_image_size_defaults_to_the_configured_one() -> None:
    assert forward_macs(vit_config("B/16")) == forward_macs(vit_config("B/16", image_size=384), 224)
    assert training_flops(vit_config("B/16", image_size=384)) == 6 * forward_macs(vit_config("B/16"), 384)
    with pytest.raises(ModelConfigError, match="225"):
        forward_macs(vit_config("B/16"), 225)


@pytest.mark.parametrize("pool", ["token", "gap"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recomputed_flops_equal_pytorchs_count(pool: str, dropout: float) -> None:
    flops = {}
    for mode in ("none", "selective", "full"):
        model = create_model("Ti/8", num_classes=7, image_size=32, depth=3, pool=pool, dropout=dropout)
        checkpoint_blocks(model, mode)
        with FlopCounterMode(display=False) as counter, nn.attention.sdpa_kernel(nn.attention.SDPBackend.MATH):
            model(torch.zeros(1, 3, 32, 32), torch.zeros(1, dtype=torch.int64)).sum().backward()
        flops[mode] = counter.get_total_flops()
        assert recomputed_flops(model.config, mode) == flops[mode] - flops["none"]
    assert flops["full"] > flops["none"]


def test_recomputing_all_of_h14_costs_less_than_a_third() -> None:
    """The forward pass is a third of a block's training; its last product, a third of that, is not recomputed."""
    config = vit_config("H/14")
    assert recomputed_flops(config, "full") / training_flops(config) == pytest.approx(2 / 9, rel=0.05)


class Ledger(TorchDispatchMode):
    """Records the lifetime of every storage that an operation returns, in operations since the start."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.lives: dict[int, tuple[int, int]] = {}  # by number of the lifetime: (bytes, start)
        self.ends: dict[int, int] = {}  # by number of the lifetime
        self.living: dict[int, int] = {}  # number of the lifetime, by storage
        self.numbers = itertools.count()

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.now += 1
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf.untyped_storage()._cdata not in self.living:
                storage, number = leaf.untyped_storage(), next(self.numbers)
                self.lives[number] = (storage.nbytes(), self.now)
                self.living[storage._cdata] = number
                weakref.finalize(storage, self._freed, storage._cdata, number)
        return result

    def _freed(self, storage: int, number: int) -> None:
        self.ends[number] = self.now
        del self.living[storage]

    def peak(self, excluded: list[torch.Tensor]) -> int:
        """The largest number of bytes that existed at once, not counting `excluded`."""
        ignored = {self.living.get(tensor.untyped_storage()._cdata) for tensor in excluded}
        change = [0] * (self.now + 2)
        for number, (size, start) in self.lives.items():
            if number not in ignored:
                change[start] += size
                change[self.ends.get(number, self.now) + 1] -= size
        return max(itertools.accumulate(change))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
@pytest.mark.parametrize("depth", [2, 8])
@pytest.mark.parametrize("pool", ["token", "gap"])
def test_activation_memory_equals_the_measured_peak(mode: str, dropout: float, depth: int, pool: str) -> None:
    batch, gelu = 2, "erf" if depth == 2 else "tanh"  # both keep their input alone
    model = create_model("Ti/16", num_classes=3, image_size=128, depth=depth, dropout=dropout, pool=pool, gelu=gelu)
    checkpoint_blocks(model, mode)  # type: ignore[arg-type]
    images, gradient = torch.zeros(batch, 3, 128, 128), torch.ones(batch, 3)
    given = [*model.parameters(), images, gradient]
    with Ledger() as ledger:
        # Storages that existed before are not activations.
        for number, tensor in enumerate(given):
            ledger.living[tensor.untyped_storage()._cdata] = -1 - number
        model(images, torch.arange(batch)).backward(gradient)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert len(gradients) == len(list(model.parameters()))
    expected = batch * activation_bytes(model.config, mode, precision_bytes=4)  # type: ignore[arg-type]
    assert ledger.peak(excluded=gradients) == pytest.approx(expected, rel=1e-3)


def test_activation_memory_of_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'some' is not one of none, selective, full"):
        activation_bytes(vit_config("B/16"), "some")  # type: ignore[arg-type]
