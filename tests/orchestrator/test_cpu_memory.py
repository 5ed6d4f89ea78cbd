"""What a process frees, it has for the next step: counted by the system, which hands out pages one fault at a time."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from orchestrator.cpu_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
x = torch.ones(2**24)
for _ in range(8):  # the heap grows to what a step needs
    y = x * 2 + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    y = x * 2 + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_steps_take_no_new_pages() -> None:
    faults = {}
    for how in ("keep", "return"):
        run = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, check=True)
        faults[how] = int(run.stdout)
    pages = 4 * 2 * 4 * 2**24 // 4096  # of eight tensors of 64 MiB
    assert faults["return"] > pages / 4  # some go back
    assert faults["keep"] < pages / 100
