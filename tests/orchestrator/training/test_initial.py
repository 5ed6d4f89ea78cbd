"""`model.init_from`: the same first weights on all ranks and at every stage, loaded once."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

import model
from infra.local.ranks import run_ranks
from model.objectives import dense_targets, softmax_cross_entropy
from orchestrator.checkpoint.fragments import held_fragments
from orchestrator.checkpoint.initial import InitialError
from orchestrator.checkpoint.notes import Owner
from orchestrator.engine.step import Engine
from orchestrator.job.kinds import NetworkJob
from orchestrator.job.load import load_job
from orchestrator.run.folder import initial_tags
from orchestrator.training.initial import begin_with
from tests.orchestrator.checkpoint.runs import IDENTITY, MODEL, write_run

OWNER = Owner(IDENTITY, 100)


def job(init_from: str, **settings: Any) -> NetworkJob:
    changes = {f"model.{key}": value for key, value in {**MODEL, "init_from": init_from, **settings}.items()}
    loaded = load_job("jobs/pretrain_digits.yaml", changes)
    assert isinstance(loaded, NetworkJob)
    return loaded


def begin(url: str, run: str, settings: Mapping[str, Any]) -> tuple[list[str] | str, dict[str, np.ndarray]]:
    """On each rank: the lines or the error, and the weights."""
    the_job = job(url, **settings)
    torch.manual_seed(dist.get_rank())  # ranks that would differ if they did not get rank 0's
    network = model.VisionTransformer(the_job.model.vit_config())
    try:
        lines: list[str] | str = begin_with(the_job, network, run, OWNER, torch.device("cpu"))
    except InitialError as error:
        lines = str(error)
    return lines, {name: p.detach().numpy().copy() for name, p in network.named_parameters()}


def at_all_stages(url: str, run: str) -> dict[int, bool]:
    """By ZeRO stage: whether each float32 weight that this rank holds is the one of the file."""
    same = {}
    for stage in range(4):
        the_job = job(url, dropout=0.0)
        network = model.VisionTransformer(the_job.model.vit_config())
        begin_with(the_job, network, run, OWNER, torch.device("cpu"))
        expected = {name: p.detach().clone().view(-1) for name, p in network.named_parameters()}
        engine = Engine(
            network,
            lambda logits, labels, weights: softmax_cross_entropy(logits, dense_targets(labels, weights, 10)),
            model.decay_mask(network),
            optimizer=the_job.optimizer,
            parallel=the_job.parallel.model_copy(update={"zero_stage": stage}),
            micro_batch=4,
            local_batch=math.ceil(8 / dist.get_world_size()),
            device=torch.device("cpu"),
        )
        same[stage] = all(
            torch.equal(f.view(f.flat), expected[f.name][f.start : f.start + f.numel]) for f in held_fragments(engine)
        )
    return same


def test_every_stage_begins_with_the_weights(tmp_path: Path) -> None:
    write_run(tmp_path / "from")
    for same in run_ranks(2, at_all_stages, f"{tmp_path}/from", f"{tmp_path}/run"):
        assert same == dict.fromkeys(range(4), True)


def test_all_ranks_get_the_weights_of_the_file(tmp_path: Path) -> None:
    network = write_run(tmp_path / "from", step=7)
    results = run_ranks(2, begin, f"{tmp_path}/from@7", f"{tmp_path}/run", {})
    for lines, found in results:
        assert lines == [f"{tmp_path}/from@7: loaded 44 tensors", f"{tmp_path}/from@7: not loaded: nothing"]
        assert all(np.array_equal(found[name], p.detach()) for name, p in network.named_parameters())
    note = json.loads((tmp_path / "run" / "initial.json").read_text())
    assert len(note["sha256"]) == 64
    assert initial_tags(f"{tmp_path}/run") == {
        "init_from.url": f"{tmp_path}/from@7",
        "init_from.sha256": note["sha256"],
        "init_from.loaded": "loaded 44 tensors",
        "init_from.not_loaded": "not loaded: nothing",
    }


def test_a_run_with_a_checkpoint_loads_nothing(tmp_path: Path) -> None:
    """It needs neither the file nor its URL; a checkpoint of another run is not its own."""
    write_run(tmp_path / "run", step=3)
    for lines, _ in run_ranks(1, begin, f"{tmp_path}/gone", f"{tmp_path}/run", {}):
        assert lines == []
    (checkpoint,) = (tmp_path / "run").glob("step-*")
    (checkpoint / "owner.json").write_text(json.dumps({"run": "f" * 32, "written": 1}))
    write_run(tmp_path / "from")
    for lines, _ in run_ranks(1, begin, f"{tmp_path}/from", f"{tmp_path}/run", {}):
        assert len(lines) == 2


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("gone", {}, "does not exist"),
        ("from", {"num_classes": 12}, "head.bias (10,) instead of (12,)"),
        ("from@9", {}, "no complete checkpoint at step 9; it has 1"),
    ],
)
def test_no_such_weights(tmp_path: Path, url: str, settings: dict[str, Any], words: str) -> None:
    write_run(tmp_path / "from")
    for lines, _ in run_ranks(2, begin, f"{tmp_path}/{url}", f"{tmp_path}/run", settings):
        assert words in lines
    assert not (tmp_path / "run").exists()


def test_a_file_that_changed_before_the_first_checkpoint(tmp_path: Path) -> None:
    write_run(tmp_path / "from")
    run_ranks(1, begin, f"{tmp_path}/from", f"{tmp_path}/run", {})
    write_run(tmp_path / "from", step=2)
    ((lines, _),) = run_ranks(1, begin, f"{tmp_path}/from", f"{tmp_path}/run", {})
    assert "has changed since the run began; it begins again with what is there now" in lines[0]
