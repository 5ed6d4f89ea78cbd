"""The work of a child process: a batch that does not fit, and where the time goes."""

import math
from types import SimpleNamespace

import pytest
import torch

import model
from benchmarks.step import peers, worker
from benchmarks.step.phases import CATEGORIES
from tests.benchmarks.step.tiny import TASK, task


def test_running_out_of_memory_is_no_failure() -> None:
    def failing(error: Exception) -> SimpleNamespace:
        def take(batch: object) -> None:
            raise error

        return SimpleNamespace(step=take, parameters=0)

    for message in ("CUDA out of memory. Tried to allocate 2 GiB", "DefaultCPUAllocator: can't allocate memory"):
        assert worker.attempt(TASK, failing(RuntimeError(message)), 2) is None
    assert worker.attempt(TASK, failing(torch.OutOfMemoryError("CUDA out of memory.")), 2) is None
    with pytest.raises(RuntimeError, match="shapes"):
        worker.attempt(TASK, failing(RuntimeError("shapes cannot be multiplied")), 2)


def test_products_dominate_a_wide_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer with a wide model is measured and profiled, in this process."""
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
