"""The threads that compute take numbers for zero that a CPU stumbles over: each of them, as Ray Train starts them."""

import subprocess
import sys

import pytest
import torch

SCRIPT = """
import sys, threading
import torch
from orchestrator.engine.cpu import compute_with

def train():
    if "flush" in sys.argv:
        compute_with(2)
    elif "worker" in sys.argv:
        from types import SimpleNamespace
        import ray.train.torch
        from orchestrator.training import build
        ray.train.torch.get_device = lambda: torch.device("cpu")  # asks Ray's own session, which is not there
        build.worker_device(SimpleNamespace(cluster=SimpleNamespace(resources_per_worker={"CPU": 2})))
    else:
        torch.set_num_threads(2)
    normal = torch.full((2**22,), 1e-30)  # so many that both threads have a share
    subnormal = normal * 1e-10
    print((subnormal == 0).float().mean().item(), torch.get_num_threads(), (normal == 0).any().item())

thread = threading.Thread(target=train)
thread.start()
thread.join()
"""


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush subnormal numbers")
def test_every_thread_flushes_subnormal_numbers() -> None:
    def outcome(*how: str) -> list[str]:
        run = subprocess.run([sys.executable, "-c", SCRIPT, *how], capture_output=True, text=True, check=True)
        return run.stdout.split()

    assert outcome() == ["0.0", "2", "False"]
    assert outcome("flush") == ["1.0", "2", "False"]
    assert outcome("worker") == ["1.0", "2", "False"]
