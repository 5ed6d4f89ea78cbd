"""The choice of `auto`: the fastest step that fits by arithmetic and measurement. Choosing changes nothing else."""

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from infra.local.ranks import run_ranks
from model.cost.flops import activation_bytes, recomputed_flops, training_flops
from model.layers.recompute import MODES, CheckpointMode
from model.variants import ViTConfig, vit_config
from orchestrator.engine.memory.fit import (
    AMPLE_FACTOR,
    CHEAP_SHARE,
    FIXED_FLOPS,
    Choice,
    WorkerShare,
    choose,
    step_flops,
)
from orchestrator.engine.memory.measured import DID_NOT_FIT, measured_sizes
from orchestrator.engine.memory.needed import ACTIVATION_SHARE, HEAP, exchange_bytes, state_bytes
from orchestrator.job.kinds import PretrainJob
from orchestrator.job.load import load_job
from orchestrator.job.sections import Parallel
from orchestrator.run.recipe import recipe

GPU = torch.device("cuda")
B16, PARAMETERS, WORKERS = vit_config("ViT-B/16"), 86_567_656, 8


class Measure:
    """Measures what the arithmetic says, and in some modes `more` bytes per image. Remembers what was asked."""

    def __init__(self, more: Mapping[str, int] | None = None) -> None:
        self.more, self.asked = more or {}, []

    def __call__(self, mode: CheckpointMode, micro_batch: int) -> dict[int, int]:
        self.asked.append((mode, micro_batch))
        each = activation_bytes(B16, mode, 2) + self.more.get(mode, 0)
        return {images: images * each for images in measured_sizes(micro_batch)}


def choice_with_room(
    room_for_activations: float, measure: Measure | None = None, local_batch: int = 64, **keys: Any
) -> Choice:
    """The choice if the memory leaves so many bytes besides state and exchange."""
    parallel = Parallel(**keys)
    beside, _ = exchange_bytes(PARAMETERS, parallel, GPU)
    memory = math.ceil((state_bytes(PARAMETERS, parallel, WORKERS) + beside + room_for_activations) / ACTIVATION_SHARE)
    return choose(B16, parallel, WorkerShare(PARAMETERS, local_batch, WORKERS, memory, GPU), measure or Measure())


def bytes_of(mode: CheckpointMode, images: float) -> float:
    return images * activation_bytes(B16, mode, 2)


def test_the_whole_local_batch_without_recomputation_if_it_fits() -> None:
    chosen = choice_with_room(bytes_of("none", 65))
    assert (chosen.checkpointing, chosen.micro_batch) == ("none", 64)
    assert chosen.why.startswith("activation_checkpointing none, 1 x 64 images a step: ")
    assert "selective 1.05 times as long, full 1.2" in chosen.why


@pytest.mark.parametrize(("fit_in", "expected"), [(63.5, 32), (31.5, 22), (22.5, 22)])
def test_an_equal_part_if_the_whole_does_not_fit(fit_in: float, expected: int) -> None:
    assert choice_with_room(bytes_of("none", fit_in), activation_checkpointing="none").micro_batch == expected


def test_the_fastest_of_all_is_chosen() -> None:
    """Compared with a search over all modes and numbers of images."""
    share = WorkerShare(PARAMETERS, 64, WORKERS, 0, GPU)
    chosen = set()
    for room in range(60 * 2**20, 4 * 2**30, 40 * 2**20):
        table = {
            (mode, math.ceil(64 / passes)): step_flops(B16, mode, math.ceil(64 / passes), share)
            for mode in MODES
            for passes in range(1, 65)
            if max(bytes_of(mode, math.ceil(64 / passes)), 6 * PARAMETERS) <= room
        }
        if table:
            found = choice_with_room(room)
            assert table[found.checkpointing, found.micro_batch] == min(table.values())
            chosen.add(found.checkpointing)
    assert chosen == {"none", "selective", "full"}


def test_a_pass_runs_at_half_speed_if_its_arithmetic_takes_as_long_as_its_fixed_cost() -> None:
    share = WorkerShare(PARAMETERS, 1000, 1, 0, GPU)
    half = B16.depth * FIXED_FLOPS["cuda"] / training_flops(B16)  # images
    best = 1000 * training_flops(B16)
    assert step_flops(B16, "none", 1000, share) == pytest.approx(best * (1 + half / 1000))
    assert step_flops(B16, "none", 1, share) == pytest.approx(best * (1 + half))
    full = 1 + CHEAP_SHARE + recomputed_flops(B16, "full") / training_flops(B16)
    assert step_flops(B16, "full", 10, share) == pytest.approx(full * step_flops(B16, "none", 10, share))


def test_if_an_image_needs_more_than_the_arithmetic_fewer_fit() -> None:
    measure = Measure({"none": activation_bytes(B16, "none", 2) // 2})  # half as much again
    chosen = choice_with_room(bytes_of("none", 48), measure, activation_checkpointing="none")
    assert measure.asked == [("none", 32)]
    assert chosen.micro_batch == 32  # exactly
    assert choice_with_room(bytes_of("none", 47), measure, activation_checkpointing="none").micro_batch == 22


def test_if_an_image_needs_less_than_the_arithmetic_nothing_changes() -> None:
    measure = Measure({"none": -(activation_bytes(B16, "none", 2) // 2)})
    assert choice_with_room(bytes_of("none", 32), measure, activation_checkpointing="none").micro_batch == 32


def test_a_mode_that_does_not_fit_gives_way_to_the_next_and_each_is_measured_once() -> None:
    room = bytes_of("none", 65)
    measure = Measure({"none": DID_NOT_FIT})
    assert choice_with_room(room, measure).checkpointing == "selective"
    assert [mode for mode, _ in measure.asked] == ["none", "selective"]
    measure = Measure(dict.fromkeys(MODES, DID_NOT_FIT))
    with pytest.raises(ValueError, match="needs"):
        choice_with_room(room, measure)
    assert [mode for mode, _ in measure.asked] == ["none", "selective", "full"]


def test_a_given_number_of_images_is_kept() -> None:
    chosen = choice_with_room(bytes_of("selective", 40), micro_batch=40)
    assert (chosen.checkpointing, chosen.micro_batch) == ("selective", 40)
    assert choice_with_room(bytes_of("none", 70), micro_batch=1000).micro_batch == 64  # the local batch


def test_nothing_is_measured_if_there_is_no_choice() -> None:
    measure = Measure()
    assert choice_with_room(0, measure, micro_batch=7, activation_checkpointing="full") == Choice("full", 7, "")
    assert measure.asked == []


def test_nothing_is_measured_if_memory_is_ample() -> None:
    assert max(HEAP.values()) < AMPLE_FACTOR, "without a measurement, the holes of a heap would not be counted"
    measure = Measure()
    assert choice_with_room(bytes_of("none", AMPLE_FACTOR * 64), measure) == Choice("none", 64, "")
    assert measure.asked == []
    choice_with_room(bytes_of("none", AMPLE_FACTOR * 64 - 1), measure)
    assert measure.asked == [("none", 64)]


LARGE = vit_config("ViT-B/16", image_size=1024)  # one image needs more than the exchange of gradients


@pytest.mark.parametrize(
    ("config", "memory", "keys", "advice"),
    [
        (LARGE, 1.7, {"activation_checkpointing": "none"}, "parallel.activation_checkpointing: auto"),
        (B16, 1.33, {"micro_batch": 64}, "parallel.micro_batch: auto"),
        (B16, 1.0, {}, "parallel.zero_stage: 2"),
        (B16, 0.65, {}, "16 workers and parallel.zero_stage: 3"),
        (B16, 0.2, {}, "a device with more memory"),
    ],
)
def test_the_message_for_a_small_device_says_what_would_fit(
    config: ViTConfig, memory: float, keys: dict[str, Any], advice: str
) -> None:
    share = WorkerShare(PARAMETERS, 64, WORKERS, int(memory * 2**30), GPU)
    message = r"^ViT-B/16 needs \d+\.\d GiB a worker for .*, and a worker has \d\.\d: use "
    with pytest.raises(ValueError, match=message) as error:
        choose(config, Parallel(**keys), share, Measure())
    assert str(error.value).endswith(f": use {advice}")


def test_a_run_continues_with_another_choice() -> None:
    """The key is no part of the recipe: a run that began with a fixed mode can continue with `auto`."""
    path = Path("jobs/pretrain_digits.yaml")
    recipes = [
        recipe(load_job(path, [f"parallel.activation_checkpointing={mode}"]).model_dump(mode="json"))
        for mode in ("none", "auto")
    ]
    assert recipes[0] == recipes[1]
    assert load_job(path).parallel.activation_checkpointing == "auto"


def test_training_with_auto_equals_training_with_the_chosen_numbers_bitwise() -> None:
    for chosen, mode, micro_batch, same in run_ranks(2, train_with_auto_and_with_numbers):
        assert chosen.startswith(f"activation_checkpointing {mode}, ")
        assert mode != "none"  # memory is short
        assert micro_batch < 12
        assert same


def train_with_auto_and_with_numbers() -> tuple[str, str, int, bool]:
    """With memory for few images: the line, the choice, and whether both runs end with the same weights."""
    import ray.train

    from orchestrator.training import build, classify

    ray.train.get_context = lambda: SimpleNamespace(get_local_world_size=lambda: 2)
    build.worker_device = lambda job: torch.device("cpu")
    job = load_job(
        Path("jobs/pretrain_digits.yaml"), ["batch_size=24", "model.dropout=0.1", "parallel.micro_batch=auto"]
    )
    assert isinstance(job, PretrainJob)
    config = job.model.vit_config()
    parameters = 205_000
    beside, at_the_end = exchange_bytes(parameters, job.parallel, torch.device("cpu"))
    room = max(at_the_end, 5 * activation_bytes(config, "full", 4))
    memory = int((state_bytes(parameters, job.parallel, 2) + beside + room) / ACTIVATION_SHARE)
    build.free_memory = lambda device, workers_here: memory
    build.held_memory = lambda activations, checkpointing, device: activations

    def weights(job: PretrainJob) -> tuple[str, Any, dict[str, torch.Tensor]]:
        task = classify.Classify(job)
        torch.manual_seed(0)
        engine, chosen = build.build_engine(job, task, task.network())
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            images = torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8, generator=generator)
            labels = torch.randint(0, 10, (12, 1), generator=generator)
            valid, seeds = torch.ones(12, dtype=torch.bool), torch.arange(12)
            engine.train_step(images, labels, torch.ones(12, 1), valid, seeds, lr=1e-2)
        return chosen, engine, dict(engine.deepspeed.module.state_dict())

    chosen, engine, by_auto = weights(job)
    mode, micro_batch = engine.deepspeed.module.checkpointing, engine.micro_batch
    written_out = {"activation_checkpointing": mode, "micro_batch": micro_batch}
    parallel = job.parallel.model_copy(update=written_out)
    nothing_chosen, _, by_number = weights(job.model_copy(update={"parallel": parallel}))
    assert nothing_chosen == ""
    return chosen, mode, micro_batch, all(torch.equal(by_auto[name], by_number[name]) for name in by_number)
