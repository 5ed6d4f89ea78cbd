"""Peaks by device name, and the measured peak of devices without a known name."""

import pytest
import torch

from orchestrator.engine.devices import datasheet_peak, device_peak, measure_peak

# As torch.cuda.get_device_name spells them. Peaks: the vendors' datasheets, dense, TFLOP/s.
NAMES = [
    ("NVIDIA H200", 989),
    ("NVIDIA H100 80GB HBM3", 989),
    ("NVIDIA GH200 480GB", 989),
    ("NVIDIA B200", 2250),
    ("NVIDIA A100-SXM4-80GB", 312),
    ("NVIDIA A100-PCIE-40GB", 312),
    ("Tesla V100-SXM2-16GB", 125),
    ("Tesla T4", 65),
    ("NVIDIA L4", 121),
    ("TPU v4", 275),
    ("TPU v5e", 197),
    ("TPU v5p", 459),
    ("TPU v6e", 918),
    ("H100", 989),
]
UNKNOWN = [
    "NVIDIA L40S",
    "NVIDIA H20",
    "NVIDIA H100 PCIe",
    "NVIDIA H100 NVL",
    "NVIDIA H200 NVL",
    "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
    "Tesla V100-PCIE-16GB",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA A10G",
    "NVIDIA T400 4GB",
    "AMD EPYC",
]


@pytest.mark.parametrize(("name", "tflops"), NAMES)
def test_datasheet_peaks(name: str, tflops: float) -> None:
    assert datasheet_peak(name, torch.bfloat16) == tflops * 1e12
    assert datasheet_peak(name, torch.float32) is None, "the table lists 16-bit products"


@pytest.mark.parametrize("name", UNKNOWN)
def test_variants_and_unknown_devices_are_measured_instead(name: str) -> None:
    assert datasheet_peak(name, torch.bfloat16) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_is_measured(dtype: torch.dtype) -> None:
    peak = device_peak("cpu", dtype)
    assert peak.source == "measured"
    assert f"{torch.get_num_threads()} thread" in peak.name
    # A core computes at most AMX's 2,048 bf16 multiply-adds per cycle at 6 GHz, and at least 0.1 GFLOP/s.
    assert 1e8 < peak.flops_per_second < torch.get_num_threads() * 2048 * 2 * 6e9


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_in_the_table_reaches_about_its_datasheets_peak() -> None:
    peak = device_peak("cuda", torch.bfloat16)
    if peak.source == "measured":
        pytest.skip(f"{peak.name} is not in the table")
    assert 0.3 < measure_peak(torch.device("cuda"), torch.bfloat16) / peak.flops_per_second < 1.05
