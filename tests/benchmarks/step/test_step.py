"""benchmarks/step: whole, on tiny models, and its parts against formulas, counters and brute force."""

import dataclasses
import functools
import importlib.util
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import model
from benchmarks.step import __main__ as step
from benchmarks.step import peers, worker
from benchmarks.step.matmul import Products, product_flops
from benchmarks.step.phases import CATEGORIES
from benchmarks.step.report import Measured, hardware_flops, ratios, report
from benchmarks.step.search import Trial
from benchmarks.step.task import Task, synthetic
from model.objectives import dense_targets, softmax_cross_entropy
from tests.paths import ROOT

CPU = torch.device("cpu")
# Everything of requirements.txt but torch, deepspeed and what deepspeed brings along.
ABSENT = ["ray", "mlflow", "yaml", "webdataset", "fsspec", "gcsfs", "braceexpand", "safetensors", "cv2", "turbojpeg"]
ABSENT += ["imagehash", "PIL", "tenacity", "aiohttp", "sklearn", "scipy", "pyarrow", "pandas"]
TASK = Task(
    model="B/16",
    impl="ours",
    compiled=False,
    precision="float32",
    checkpointing="none",
    zero_stage=0,
    loss="softmax",
    batches=(2,),
    device="cpu",
    threads=1,
    memory=10**10,
    warm_up=1,
    windows=1,
    seconds=0.01,
    profile=True,
    sizes={"image_size": 64, **step.TINY},
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A child process sets its threads; what is called here does it to this process."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="shows what happens without it")
def test_a_small_run(tmp_path: Path) -> None:
    """The whole script, with torch and deepspeed alone: ours is measured, a peer is broken and the other one absent."""
    (tmp_path / "timm.py").write_text("raise ValueError('broken on purpose')\n")
    (tmp_path / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n")
    remembered = tmp_path / "batches.json"
    arguments = ["--quick", "--device", "cpu", "--threads", "1", "--compiled", "no", "--remember", str(remembered)]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.step", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 1, run.stderr  # a contender failed
    assert run.stderr.count("transformers is left out: it is not installed\n") == 1
    assert run.stderr.count("failed") == 1
    assert "ViT-B/16 float32 timm failed: ValueError: broken on purpose\n" in run.stderr

    *table, last = run.stdout.splitlines()
    found = json.loads(last)
    assert found["device"].endswith(", 1 thread")
    ours, broken = found["rows"]
    assert (ours["impl"], ours["model"], ours["precision"], ours["compiled"]) == ("ours", "ViT-B/16", "float32", False)
    assert (ours["checkpointing"], ours["zero_stage"], ours["error"]) == ("none", 0, None)
    assert 0 < ours["images_per_s_min"] <= ours["images_per_s"] <= ours["images_per_s_max"]
    assert list(ours["tried"]) == ["2", "4"]
    assert ours["tried"][str(ours["batch"])] == max(ours["tried"].values())
    assert 0.1 < ours["peak_gb"] < 5  # the whole process: gigabytes, not bytes or megabytes
    assert math.isclose(ours["loss"], 10 * math.log(2), rel_tol=0.1)  # sigmoids of 10 classes at 0
    assert set(ours["breakdown"]) == set(CATEGORIES)
    assert math.isclose(sum(ours["breakdown"].values()), 1.0, abs_tol=1e-3)
    assert min(ours["breakdown"][name] for name in ("matmul", "optimizer", "elementwise")) > 0
    assert (ours["mfu"], ours["idle"]) == (None, None)  # no datasheet, no GPU
    assert found["matmul_tflops"] == found["matmul"][0]["tflops"]
    training_flops = model.training_flops(dataclasses.replace(TASK, loss="sigmoid").config)
    expected = ours["images_per_s"] * training_flops / (1e12 * found["matmul_tflops"])
    assert math.isclose(ours["mfu_measured"], expected, rel_tol=0.02)  # rounding of small numbers

    assert (broken["impl"], broken["images_per_s"]) == ("timm", None)
    assert broken["error"] == "ValueError: broken on purpose"
    assert "Traceback" in broken["details"]
    assert found["ratios"] == []
    assert any("broken on purpose" in line for line in table)
    assert ours["batch"] in json.loads(remembered.read_text()).values()


def task(**changes: object) -> Task:
    return dataclasses.replace(TASK, **changes)  # type: ignore[arg-type]


def test_a_task_survives_the_way_to_its_process() -> None:
    assert Task.from_json(TASK.to_json()) == TASK


def test_memory_that_does_not_suffice_is_no_failure() -> None:
    def failing(error: Exception) -> SimpleNamespace:
        def take(batch: object) -> None:
            raise error

        return SimpleNamespace(step=take, parameters=0)

    for message in ("CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory"):
        assert worker.attempt(TASK, failing(RuntimeError(message)), 2) is None
    assert worker.attempt(TASK, failing(torch.OutOfMemoryError("CUDA out of memory.")), 2) is None
    with pytest.raises(RuntimeError, match="shapes"):
        worker.attempt(TASK, failing(RuntimeError("shapes cannot be multiplied")), 2)


# FLOPs


def counted(function: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


def test_the_ceiling_is_made_of_the_blocks_products() -> None:
    """By hand for B/16: 12 D^2 multiply-accumulates a token, 2 FLOPs each, three times."""
    config = model.vit_config("B/16")
    assert product_flops(config) == 3 * 2 * 197 * 12 * 768**2
    products = Products(TASK, CPU)
    batch = synthetic(TASK.config, 3, CPU)
    assert counted(lambda: products.step(batch)) == 3 * product_flops(TASK.config)


@pytest.mark.parametrize("impl", ["ours", "timm"])
def test_hardware_flops_are_those_that_a_counter_counts(impl: str) -> None:
    """Forward, as ours trains and as a network that computes every token; and what full checkpointing adds to it."""
    images = torch.rand(2, 3, TASK.config.image_size, TASK.config.image_size)
    vit = model.VisionTransformer(TASK.config).train(impl == "ours")  # evaluation computes every token

    def forward_backward() -> None:
        vit(images).sum().backward()

    with sdpa_kernel(SDPBackend.MATH):  # the counter knows no other one of a CPU
        forward = counted(lambda: vit(images)) / 2
        kept = counted(forward_backward)
        model.checkpoint_blocks(vit, "full")
        again = (counted(forward_backward) - kept) / 2
    assert hardware_flops(task(impl=impl)) == 3 * forward
    assert hardware_flops(task(impl=impl, checkpointing="selective")) == 3 * forward
    assert hardware_flops(task(impl=impl, checkpointing="full")) == 3 * forward + again


def test_utilisation_of_a_known_device() -> None:
    """An H200 at 1,000 images a second of H/14, by hand; float32 has no datasheet peak."""
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
    """Ours is 1.2 times transformers in every turn, though the machine is half as fast in some.

    It is twice timm, which was the fastest of all alone.
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


TIMM = """
import types
import model

layers = types.SimpleNamespace(set_fast_norm=lambda: None)

def create_model(name, img_size, depth, embed_dim, mlp_ratio, num_heads, num_classes):
    sizes = dict(depth=depth, width=embed_dim, mlp_dim=int(embed_dim * mlp_ratio), heads=num_heads)
    vit = model.VisionTransformer(model.vit_config("B/16", image_size=img_size, num_classes=num_classes, **sizes))
    vit.set_grad_checkpointing = lambda on: None
    return vit
"""


def test_turns_of_two_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ours and a peer that is the same model; then of a peer that ends before its turn."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "timm.py").write_text(TIMM)

    def found(impl: str) -> Measured:
        alone = Measured(task(impl=impl, memory=10**10, seconds=0.01, warm_up=2))
        alone.climbed, alone.rounds = [Trial(2, [1.0], 10**9, 0.0)], {0: [1.0]}
        return alone

    ours, peer = found("ours"), found("timm")
    step.take_turns(ours, peer, range(5, 8))
    assert ours.error is peer.error is None, (ours.details, peer.details)
    assert list(ours.rounds) == list(peer.rounds) == [0, 5, 6, 7]
    assert all(len(rates) == 1 and rates[0] > 0 for one in (ours, peer) for rates in one.rounds.values())
    (ratio,) = ratios([ours, peer])
    assert ratio["turns"] == 3

    (tmp_path / "timm.py").write_text("raise ValueError('broken on purpose')\n")
    ours, peer = found("ours"), found("timm")
    step.take_turns(ours, peer, range(1, 3))
    assert (ours.error, peer.error) == (None, "ValueError: broken on purpose")
    assert "Traceback" in peer.details

    ours.task = peer.task = task(memory=10**9)  # less than both need
    step.take_turns(ours, peer, range(1, 3))
    assert list(ours.rounds) == [0]


# Peers


def test_a_peers_step_is_the_same_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a network that stands in for a library's: losses of a plain loop with AdamW, decay of kernels and clipping."""
    settings = peers.OPTIMIZER.model_copy(update={"lr": 1e-2})
    monkeypatch.setattr(peers, "OPTIMIZER", settings)
    monkeypatch.setitem(
        peers.BUILDERS, "timm", (lambda task: model.VisionTransformer(task.config), lambda output: output)
    )
    torch.manual_seed(0)
    peer = peers.Peer(task(impl="timm"), CPU)
    torch.manual_seed(0)
    vit = model.VisionTransformer(TASK.config)
    assert peer.parameters == sum(p.numel() for p in vit.parameters()) == worker.count_parameters(TASK)

    mask = model.decay_mask(vit)
    groups = [
        {"params": [p for name, p in vit.named_parameters() if mask[name] == decays], "weight_decay": 0.1 * decays}
        for decays in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2)
    batch = synthetic(TASK.config, 4, CPU)
    expected, norms = [], []
    for _ in range(6):
        logits = vit(batch.images.float() / 127.5 - 1)
        loss = softmax_cross_entropy(logits, dense_targets(batch.labels, batch.weights, 10)).mean()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(vit.parameters(), 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    losses = [float(peer.step(batch)) for _ in expected]
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=0)
    assert max(norms) > 1, "nothing was clipped"
    assert losses[-1] < 0.5 * losses[0]


def test_another_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    smaller = model.VisionTransformer(model.vit_config("B/16", **{**TASK.sizes, "depth": 1}))
    monkeypatch.setitem(peers.BUILDERS, "timm", (lambda task: smaller, lambda output: output))
    with pytest.raises(RuntimeError, match="parameters instead of"):
        worker.answer(task(impl="timm"))


def test_a_compiled_peer_is_one_graph_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fixed sizes, on every rung: what a compiler is given, which here compiles nothing."""
    batches: list[list[object]] = []

    def compiler(graph: torch.fx.GraphModule, inputs: list[object]) -> Callable[..., object]:
        images = [x for x in inputs if isinstance(x, torch.Tensor) and x.shape[1:] == (3, 64, 64)]
        symbols = [x for x in inputs if not isinstance(x, torch.Tensor)]  # a size that may vary is an input, too
        batches.append([*(x.shape[0] for x in images), *symbols])
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=compiler))
    monkeypatch.setitem(
        peers.BUILDERS, "timm", (lambda task: model.VisionTransformer(task.config), lambda output: output)
    )
    shallow = {**TASK.sizes, "depth": 1}
    worker.answer(task(impl="timm", compiled=True, batches=(2, 4), profile=False, sizes=shallow))
    assert batches == [[2], [4]]


# Where the time goes


def test_products_dominate_a_wide_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work, in this process: a wide model of a peer, measured and profiled."""
    builder = (lambda task: model.VisionTransformer(task.config), lambda output: output)
    monkeypatch.setitem(peers.BUILDERS, "timm", builder)
    wide = {"image_size": 64, "depth": 1, "width": 768, "mlp_dim": 3072, "heads": 12, "num_classes": 10}
    answer = worker.answer(task(impl="timm", sizes=wide, batches=(32,)))
    (trial,) = answer["trials"]
    assert (trial["batch"], len(trial["rates"])) == (32, 1)
    assert math.isfinite(trial["loss"])
    shares = trial["profile"]["breakdown"]
    assert list(shares) == list(CATEGORIES)
    assert math.isclose(sum(shares.values()), 1.0, abs_tol=1e-3)
    assert shares["matmul"] > 0.4
    assert max(shares, key=lambda name: shares[name]) == "matmul"
    assert all(shares[name] > 0 for name in ("attention", "normalisation", "elementwise", "optimizer"))
    assert shares["communication"] == 0
    assert 0 < trial["profile"]["top"][0][1] < 1
