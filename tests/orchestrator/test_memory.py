"""The micro-batch that fits, against counting bytes by hand."""

import pytest

from model.flops import activation_bytes
from model.variants import vit_config
from orchestrator.job_sections import Parallel
from orchestrator.memory import USABLE, auto_micro_batch, state_bytes


@pytest.mark.parametrize(
    ("stage", "precision", "world", "bytes_a_parameter"),
    [
        (0, "float32", 4, 4 + 4 + 8),
        (1, "float32", 4, 4 + 4 + 12 / 4),
        (0, "bf16", 4, 2 + 2 + 12),
        (1, "bf16", 4, 2 + 6 + 12 / 4),
        (2, "bf16", 4, 2 + 6 / 4 + 12 / 4),
        (3, "bf16", 4, 2 / 4 + 6 / 4 + 12 / 4),
    ],
)
def test_state(stage: int, precision: str, world: int, bytes_a_parameter: float) -> None:
    parallel = Parallel.model_validate({"zero_stage": stage, "precision": precision})
    assert state_bytes(1000, parallel, world) == pytest.approx(1000 * bytes_a_parameter, abs=3)


def micro(memory: float, local_batch: int = 64) -> int:
    config, parallel = vit_config("ViT-B/16"), Parallel(zero_stage=1, activation_checkpointing="full")
    return auto_micro_batch(config, 86_567_656, parallel, local_batch=local_batch, world_size=8, memory=int(memory))


def test_all_of_the_local_batch_where_it_fits() -> None:
    assert micro(80 * 2**30) == 64


def test_an_equal_part_where_it_does_not() -> None:
    config, parallel = vit_config("ViT-B/16"), Parallel(zero_stage=1, activation_checkpointing="full")
    state, each = state_bytes(86_567_656, parallel, 8), activation_bytes(config, "full", 2)
    for fit, expected in ((63.5, 32), (31.5, 22), (1.5, 1)):
        assert micro((state + fit * each) / USABLE) == expected


def test_too_small_a_device_is_said() -> None:
    with pytest.raises(ValueError, match=r"ViT-B/16 needs \d+\.\d GiB a worker"):
        micro(0.8 * 2**30)
