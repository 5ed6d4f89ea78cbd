"""Peak arithmetic rate of a device: the denominator of MFU and of TPUv3-core-days.

Known accelerators have a datasheet peak for dense 16-bit matrix products. Everything else (CPUs, float32, unknown
devices) is measured: the best of a few short matrix products, in the run's own precision and with its own number of
threads.
"""

import platform
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from model.layers.cpu_bfloat16 import CPU_HAS_BFLOAT16_PRODUCTS
from orchestrator.wording import count

MEASURE_SECONDS = 0.3  # approximate length of a measurement

_DATASHEET: tuple[tuple[str, float], ...] = (
    (r"\bB200\b", 2250e12),
    (r"\b(H100|H200|GH200)\b", 989e12),
    (r"\bA100\b", 312e12),
    (r"\bV100\b", 125e12),
    (r"\bL4\b", 121e12),
    (r"\bT4\b", 65e12),
    (r"\bTPU ?v6e\b", 918e12),
    (r"\bTPU ?v5p\b", 459e12),
    (r"\bTPU ?v5e\b", 197e12),
    (r"\bTPU ?v4\b", 275e12),
    (r"\bTPU ?v3\b", 123e12),
)
"""Dense FLOP/s of a device (a chip for TPUs) in bf16; in fp16 for the V100 and the T4, whose tensor cores lack bf16."""

_LESSER = re.compile(r"\b(MIG|NVL)\b|\b(H100|V100)[ -]PCIe\b", re.IGNORECASE)
"""Parts of a name that mark a slower variant, or a slice, of a device in the table."""


@dataclass(frozen=True)
class DevicePeak:
    name: str
    flops_per_second: float
    source: Literal["datasheet", "measured"]


def datasheet_peak(name: str, dtype: torch.dtype) -> float | None:
    """Dense FLOP/s in the datasheet of a device.

    Args:
        name: as `torch.cuda.get_device_name` spells it ("NVIDIA A100-SXM4-80GB", "Tesla T4") or short ("H100",
            "TPU v4").
        dtype: bf16 or fp16; there is no datasheet value for others.

    Returns:
        None if the table lacks the device, which includes MIG slices and the slower PCIe and NVL variants.
    """
    if dtype not in (torch.bfloat16, torch.float16) or _LESSER.search(name):
        return None
    return next((peak for pattern, peak in _DATASHEET if re.search(pattern, name, re.IGNORECASE)), None)


def device_name(device: torch.device) -> str:
    """A GPU's name as its driver spells it, or a CPU's model name and the number of threads of this process."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def without_bf16(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the model computes its bf16 products in float32 here. The bf16 peak is then meaningless."""
    return device.type == "cpu" and dtype == torch.bfloat16 and not CPU_HAS_BFLOAT16_PRODUCTS


def device_peak(device: torch.device | str, dtype: torch.dtype) -> DevicePeak:
    """The peak of `device` in `dtype`: the datasheet's if there is one, else measured now (about 0.3 s).

    On a CPU the measurement uses this process's `torch.get_num_threads()`: the peak of one worker's share of the
    machine.
    """
    device = torch.device(device)
    name = device_name(device)
    listed = datasheet_peak(name, dtype) if device.type == "cuda" else None
    if listed is not None:
        return DevicePeak(name, listed, "datasheet")
    return DevicePeak(name, measure_peak(device, torch.float32 if without_bf16(device, dtype) else dtype), "measured")


def measure_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of several n x n matrix products, 2 n^3 FLOPs each.

    The three layouts are those of a linear layer: x w^T forward, g w and g^T x backward; a library may be many times
    faster in one of them. n doubles while the three products together take less than 60 ms, which is too short to time
    well. So the same rule fits one CPU core and a GPU.
    """
    best, n = 0.0, 256
    deadline = time.perf_counter() + MEASURE_SECONDS
    while best == 0.0 or time.perf_counter() < deadline:
        a = torch.ones(n, n, device=device, dtype=dtype)
        seconds = [_seconds(x, y) for x, y in ((a, a.T), (a, a), (a.T, a))]
        best = max(best, 2 * n**3 / min(seconds))
        if sum(seconds) < 0.06 and n < 8192:
            n *= 2
    return best


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    """Wall time of one product a b."""
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    started = time.perf_counter()
    torch.mm(a, b)
    if a.device.type == "cuda":
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - started


def _cpu_name() -> str:
    """The processor's model name if Linux knows it, else its architecture; and the number of threads in use."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE) if cpuinfo.exists() else None
    model = found.group(1) if found else platform.machine()
    return f"{model}, {count(torch.get_num_threads(), 'thread')}"
