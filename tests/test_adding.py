"""The modules of docs/adding.md, as they stand there, in a folder beside a job file."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from data import open_index
from orchestrator import load_job
from orchestrator.commands.run import run
from orchestrator.job.kinds import KINDS, PretrainJob
from orchestrator.job.tables import EVALUATORS, OBJECTIVES, OPTIMIZERS, SOURCES
from tests.paths import ROOT

TEXT = (ROOT / "docs/adding.md").read_text()
MODULES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", TEXT, re.DOTALL))
JOB = ROOT / "jobs/pretrain_digits.yaml"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with all modules and a job file; tables and imports are as before after the test."""
    tables: list[Any] = [OBJECTIVES, OPTIMIZERS, EVALUATORS, SOURCES, KINDS]
    for table in tables:
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "job.yaml").write_text(JOB.read_text())
    yield tmp_path
    for name in MODULES:
        sys.modules.pop(name, None)


def load(folder: Path, **changes: Any) -> PretrainJob:
    job = load_job(folder / "job.yaml", changes)
    assert isinstance(job, PretrainJob)
    return job


def test_there_is_one_of_each() -> None:
    assert sorted(MODULES) == ["certainty", "count", "focal", "lion", "squares"]
    assert TEXT.count("```python") == len(MODULES)


def test_the_optimizer_steps(folder: Path) -> None:
    optimizer = {"name": "lion", "lr": 0.5, "weight_decay": 0.5, "beta1": 0.5}
    job = load(folder, extensions=["lion"], optimizer=optimizer)
    weights = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
    lion = OPTIMIZERS.bound(job.optimizer)([{"params": [weights], "weight_decay": 0.5, "lr": 0.0}])
    weights.grad = torch.tensor([3.0, -0.1])
    lion.step()
    assert weights.tolist() == [1.0, -1.0], "the learning rate is 0 until the loop sets it"
    lion.param_groups[0]["lr"] = 0.5
    lion.step()
    assert weights.tolist() == [0.25, -0.25]


def test_the_objective_is_cross_entropy_without_its_factor(folder: Path) -> None:
    logits, targets = torch.randn(4, 3), torch.eye(3)[[0, 1, 2, 0]]
    plain = load(folder, extensions=["focal"], objective={"loss": "focal", "gamma": 0})
    expected = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    torch.testing.assert_close(OBJECTIVES.bound(plain.objective)(logits, targets), expected)
    focal = load(folder, extensions=["focal"], objective={"loss": "focal", "gamma": 2})
    factor = (1 - torch.exp(-expected)) ** 2
    torch.testing.assert_close(OBJECTIVES.bound(focal.objective)(logits, targets), factor * expected)


def test_the_evaluator_measures_valid_images(folder: Path) -> None:
    job = load(folder, extensions=["certainty"], evaluators={"certainty": {"url": "somewhere"}})
    batch = SimpleNamespace(valid=torch.tensor([True, True, False]), images=torch.tensor([[9.0, 0], [0, 0], [0, 9]]))
    engine = SimpleNamespace(device=torch.device("cpu"), micro_batch=2, logits=lambda images: images)

    @contextmanager
    def open_set(name: str, url: str) -> Iterator[SimpleNamespace]:
        assert url == "somewhere"
        yield SimpleNamespace(batches=[batch])

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        measure = EVALUATORS.bound(job.evaluators["certainty"], "certainty")
        metrics = measure(SimpleNamespace(engine=engine, open=open_set))
    finally:
        dist.destroy_process_group()
    assert metrics == {"mean": pytest.approx((torch.tensor(9.0).sigmoid().item() + 0.5) / 2)}


def test_the_source_packs_and_the_kind_counts(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = str(folder / "squares")
    job = load(folder, extensions=["squares"], **{"data.pack": {"source": "squares", "to": shards, "images": 50}})
    assert job.data.pack is not None
    for _ in range(2):  # the second time everything is there
        SOURCES.bound(job.data.pack)(shards)
    assert [open_index(f"{shards}/{split}").num_samples for split in ("train", "test")] == [50, 5]

    (folder / "count.yaml").write_text(f"kind: count\nextensions: [count]\nurl: {shards}/train\n")
    capsys.readouterr()
    assert run(SimpleNamespace(job=str(folder / "count.yaml"), overrides=[], json=False, take_over=False)) == 0  # type: ignore[arg-type]
    assert capsys.readouterr().out == "50\n"
