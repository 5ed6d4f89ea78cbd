"""What a worker's environment says once it has joined the process group."""

import os
import subprocess

import pytest

from orchestrator.cluster import process_group
from orchestrator.cluster.process_group import ProcessGroup


def test_deepspeed_counts_workers_without_numactl(monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed asks for the number of devices at each reduction of gradients at ZeRO stage 3."""
    from ray.train.torch import config

    asked: list[object] = []
    for name in ("MASTER_ADDR", "MASTER_PORT", "LOCAL_SIZE"):
        monkeypatch.setenv(name, "")  # so that monkeypatch undoes what the code sets
        monkeypatch.delenv(name)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setattr(config, "_set_torch_distributed_env_vars", lambda: None)  # that sets LOCAL_WORLD_SIZE
    monkeypatch.setattr(config, "_setup_torch_process_group", lambda *_: None)
    monkeypatch.setattr(subprocess, "check_output", lambda words: asked.append(words) or b"")
    from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator

    accelerator = CPU_Accelerator()
    with pytest.raises(UnboundLocalError):
        accelerator.device_count()
    assert asked == [["numactl", "--hardware"]], "without the setting"
    process_group._join(ProcessGroup("gloo"), "127.0.0.1", 1, 4, 5)
    assert os.environ["LOCAL_SIZE"] == "3"
    assert accelerator.device_count() == 3
    assert len(asked) == 1
