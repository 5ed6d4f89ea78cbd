"""Computing on a CPU: threads flush subnormal numbers, freed memory stays in the process, the driver needs no torch."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from orchestrator.cluster.connect import worker_environment

THREADS = """
import sys, threading
import torch
from orchestrator.engine.cpu import set_cpu_threads

def train():
    if "flush" in sys.argv:
        set_cpu_threads(2)
    elif "worker" in sys.argv:
        from types import SimpleNamespace
        import ray.train.torch
        from orchestrator.training import build
        ray.train.torch.get_device = lambda: torch.device("cpu")  # asks Ray's own session, which is not there
        build.worker_device(SimpleNamespace(cluster=SimpleNamespace(resources_per_worker={"CPU": 2})))
    else:
        torch.set_num_threads(2)
    normal = torch.full((2**22,), 1e-30)  # enough for both threads
    subnormal = normal * 1e-10
    print((subnormal == 0).float().mean().item(), torch.get_num_threads(), (normal == 0).any().item())

thread = threading.Thread(target=train)
thread.start()
thread.join()
"""

MEMORY = """
import resource, sys, threading
import torch
from orchestrator.engine.cpu import keep_freed_memory

def train():
    if "keep" in sys.argv:
        keep_freed_memory()
    x = torch.ones(2**24)
    for _ in range(8):  # the heap grows to what a step needs
        y = x * 2 + 1
    rounds = []
    for _ in range(4):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(4):
            y = x * 2 + 1
        rounds.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print(min(rounds))  # page faults of a round in which the heap did not grow

if "thread" in sys.argv:
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
else:
    train()
"""


@pytest.mark.servers
@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this CPU cannot flush subnormal numbers")
def test_every_thread_flushes_subnormal_numbers() -> None:
    def outcome(*how: str) -> list[str]:
        run = subprocess.run([sys.executable, "-c", THREADS, *how], capture_output=True, text=True, check=True)
        return run.stdout.split()

    assert outcome() == ["0.0", "2", "False"]
    assert outcome("flush") == ["1.0", "2", "False"]
    assert outcome("worker") == ["1.0", "2", "False"]


@pytest.mark.servers
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_steps_take_no_new_pages() -> None:
    def faults(*how: str, **environment: str) -> int:
        words = [sys.executable, "-c", MEMORY, *how]
        run = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        return int(run.stdout)

    pages = 4 * 2 * 4 * 2**24 // 4096  # eight tensors of 64 MiB
    assert faults() > pages / 2
    assert faults("keep") < pages / 100
    assert faults("keep", "thread") > pages / 2
    assert faults("keep", "thread", **worker_environment(gpu=False)) < pages / 100  # as Ray Train trains


def test_the_driver_reads_the_environment_without_torch() -> None:
    script = "import sys, orchestrator.engine.cpu; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
