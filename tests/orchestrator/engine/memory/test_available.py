"""Free memory of a worker."""

from types import SimpleNamespace

import psutil
import pytest
import torch

from orchestrator.engine.memory import available

CPU = torch.device("cpu")


def test_what_others_have_taken_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the system's count set: the tests that run beside this one take memory and give it back."""
    mine = psutil.Process().memory_info().rss
    whole = available.device_memory(CPU, 2)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2 * whole, available=2**30))
    assert available.free_memory(CPU, 2) == pytest.approx(min(whole, 2**29 + mine), rel=0.05)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2 * whole, available=2 * whole))
    assert available.free_memory(CPU, 2) == whole
