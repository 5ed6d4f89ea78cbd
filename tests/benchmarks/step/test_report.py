"""FLOPs against formulas and counters, utilisation and ratios against numbers by hand."""

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import model
from benchmarks.step.matmul import Products, product_flops
from benchmarks.step.report import Measured, hardware_flops, ratios, report
from benchmarks.step.search import Trial
from benchmarks.step.task import synthetic
from tests.benchmarks.step.tiny import CPU, TASK, task


def counted(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_the_ceiling_is_the_products_of_a_block() -> None:
    """By hand for B/16: 12 D^2 multiply-accumulates per token, 2 FLOPs each, three times."""
    config = model.vit_config("B/16")
    assert product_flops(config) == 3 * 2 * 197 * 12 * 768**2
    products = Products(TASK, CPU)
    batch = synthetic(TASK.config, 3, CPU)
    assert counted(lambda: products.step(batch)) == 3 * product_flops(TASK.config)


@pytest.mark.parametrize("impl", ["ours", "timm"])
def test_hardware_flops_equal_pytorchs_count(impl: str) -> None:
    """Of the forward pass, as ours trains and as a network that computes every token; and with full checkpointing."""
    images = torch.rand(2, 3, TASK.config.image_size, TASK.config.image_size)
    vit = model.VisionTransformer(TASK.config).train(impl == "ours")  # evaluation computes every token

    def forward_backward() -> None:
        vit(images).sum().backward()

    with sdpa_kernel(SDPBackend.MATH):  # the only CPU kernel that the counter knows
        forward = counted(lambda: vit(images)) / 2
        kept = counted(forward_backward)
        model.checkpoint_blocks(vit, "full")
        again = (counted(forward_backward) - kept) / 2
    assert hardware_flops(task(impl=impl)) == 3 * forward
    assert hardware_flops(task(impl=impl, checkpointing="selective")) == 3 * forward
    assert hardware_flops(task(impl=impl, checkpointing="full")) == 3 * forward + again


def test_utilisation_of_a_known_device() -> None:
    """By hand: an H200 at 1,000 images per second of H/14. For float32 there is no datasheet peak."""
    flops = 6 * 167.295e9  # ViT paper, Table 6: 167 GMACs
    for precision, known in (("bf16", True), ("float32", False)):
        found = Measured(task(model="H/14", precision=precision, device="cuda", sizes={}))
        found.climbed, found.rounds = [Trial(64, [990.0], 80 * 10**9, 1.0)], {0: [990.0, 1000.0], 1: [1001.0]}
        products = Measured(task(model="H/14", impl="matmul", precision=precision, device="cuda", sizes={}))
        products.climbed = [Trial(64, [100.0], 10**9, 0.0)]
        products.rounds = {0: [700e12 / product_flops(found.task.config)]}
        line = report([products], [found], torch.device("cuda"), "NVIDIA H200")
        (row,) = line["rows"]
        assert (row["images_per_s"], row["images_per_s_min"], row["images_per_s_max"]) == (1000.0, 990.0, 1001.0)
        assert (row["batch"], row["peak_gb"]) == (64, 80.0)
        assert row["mfu"] == (pytest.approx(flops * 1000 / 989e12, rel=1e-3) if known else None)
        assert row["mfu_measured"] == pytest.approx(flops * 1000 / 700e12, rel=1e-3)
        assert line["matmul_tflops"] == pytest.approx(700, rel=1e-3)


def test_ratios_are_taken_within_turns() -> None:
    """In every turn, ours has 1.2 times the rate of transformers, though the machine is half as fast in some turns.

    Ours has twice the rate of timm, although timm was the fastest of all alone.
    """

    def contender(impl: str, rounds: dict[int, list[float]], **changes: object) -> Measured:
        found = Measured(task(impl=impl, **changes), rounds=rounds)
        found.climbed = [Trial(2, list(rates), 1, 0.0) for rates in rounds.values()]
        return found

    broken = contender("timm", {0: [1000.0]}, checkpointing="full")
    broken.error = "it failed"
    contenders = [
        contender("ours", {0: [12.0, 12.1, 11.9], 1: [10.0], 2: [6.0], 3: [6.0], 4: [12.0]}),
        contender("ours", {0: [9.0]}, checkpointing="full"),
        contender("timm", {0: [20.0, 21.0], 1: [5.0], 2: [3.0]}),
        broken,
        contender("transformers", {0: [10.0], 3: [5.0], 4: [10.0]}),
        contender("transformers", {0: [8.0]}, checkpointing="full"),
        contender("ours", {0: [6.0]}, compiled=True),  # no turns
        contender("timm", {0: [4.0]}, compiled=True),
        contender("ours", {0: [6.0]}, precision="bf16"),  # nothing to compare with
    ]
    eager, compiled = ratios(contenders)
    assert (eager["model"], eager["compiled"], eager["best_peer"]) == ("ViT-B/16", False, "transformers")
    assert (eager["ours_over_best_peer"], eager["least"], eager["most"], eager["turns"]) == (1.2, 1.2, 1.2, 2)
    assert (compiled["ours_over_best_peer"], compiled["best_peer"], compiled["turns"]) == (1.5, "timm", 0)
