"""What a process frees, it has for the next step: counted by the system, which hands out pages one fault at a time."""

import os
import platform
import subprocess
import sys

import pytest

from orchestrator.cluster.connect import worker_environment

SCRIPT = """
import resource, sys, threading
import torch
from orchestrator.engine.cpu_memory import keep_freed_memory

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
    print(min(rounds))  # of the round in which the heap did not grow

if "thread" in sys.argv:
    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
else:
    train()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_steps_take_no_new_pages() -> None:
    def faults(*how: str, **environment: str) -> int:
        words = [sys.executable, "-c", SCRIPT, *how]
        run = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
        return int(run.stdout)

    pages = 4 * 2 * 4 * 2**24 // 4096  # of eight tensors of 64 MiB
    assert faults() > pages / 2
    assert faults("keep") < pages / 100
    assert faults("keep", "thread") > pages / 2
    assert faults("keep", "thread", **worker_environment(gpu=False)) < pages / 100  # as Ray Train trains
