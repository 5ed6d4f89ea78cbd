"""Which steps are traced, over restarts; what is written beside the run; and that no failure stops training."""

import gzip
import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from infra.local.ranks import run_ranks
from orchestrator.engine.phases import Phases
from orchestrator.history.profile.profiler import Profiler
from tests.orchestrator.small_run import BATCH, build_engine


@dataclass
class Run:
    """Rank 0 of a run whose steps are small matrix products."""

    url: str
    said: list[str] = field(default_factory=list)
    delivered: list[str] = field(default_factory=list)

    def profiler(self, first: int, last: int) -> Profiler:
        self.engine: Any = SimpleNamespace(device=torch.device("cpu"), phases=Phases(torch.device("cpu")))
        deliver, say = self.delivered.append, self.said.append
        return Profiler((first, last), self.engine, self.url, device="a CPU", workers=3, deliver=deliver, say=say)

    def train(self, profiler: Profiler, start: int, stop: int) -> None:
        profiler.resume(start)
        for step in range(start, stop):
            with self.engine.phases.time("forward"):
                torch.mm(torch.ones(8, 8), torch.ones(8, 8))
            profiler.stepped(step + 1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run"))


def steps_of(run: Run, folder: str) -> list[str]:
    """The names of the steps in a trace."""
    with gzip.open(f"{run.url}/{folder}/trace.json.gz") as file:
        names = [event["name"] for event in json.load(file)["traceEvents"]]
    assert names.count("aten::mm") == names.count("forward") > 0
    return sorted(name for name in names if name.startswith("ProfilerStep"))


def test_the_steps_that_are_asked_for(run: Run) -> None:
    profiler = run.profiler(2, 4)
    run.train(profiler, 0, 6)
    profiler.close()
    assert run.delivered == ["profile/steps-000002-000004"]
    assert steps_of(run, run.delivered[0]) == ["ProfilerStep#3", "ProfilerStep#4"]
    page = Path(run.url, run.delivered[0], "summary.md").read_text()
    assert "| steps | 2, from 2 to 4 steps done |" in page
    assert "| device | a CPU |" in page
    assert "| worker | rank 0 of 3 workers |" in page
    assert run.said == [f"the profile of steps 2 to 4: {run.url}/profile/steps-000002-000004/summary.md"]
    assert sorted(path.name for path in Path(run.url, run.delivered[0]).iterdir()) == ["summary.md", "trace.json.gz"]


def test_a_restart_in_the_middle_traces_what_is_left(run: Run) -> None:
    """The workers go away after step 3; the next ones go on from there, and their first step is not traced."""
    profiler = run.profiler(2, 6)
    run.train(profiler, 0, 3)
    profiler.close()
    assert run.said == ["the profile of steps 2 to 6 is cut short after step 3"]
    assert not Path(run.url).exists()
    profiler = run.profiler(2, 6)
    run.train(profiler, 3, 8)
    profiler.close()
    assert run.delivered == ["profile/steps-000004-000006"]
    assert steps_of(run, run.delivered[0]) == ["ProfilerStep#5", "ProfilerStep#6"]


def test_going_back_traces_the_steps_as_they_are_done_again(run: Run) -> None:
    profiler = run.profiler(2, 4)
    run.train(profiler, 0, 3)
    run.train(profiler, 1, 5)
    run.train(profiler, 0, 1)  # and back once more, while the step before the first one is traced
    profiler.close()
    assert run.said[0] == "the profile of steps 2 to 4 is cut short after step 3"
    assert len(run.said) == 2
    assert steps_of(run, "profile/steps-000002-000004") == ["ProfilerStep#3", "ProfilerStep#4"]


def test_a_start_behind_the_window_says_nothing(run: Run) -> None:
    for start in (4, 5, 100):
        profiler = run.profiler(2, 4)
        run.train(profiler, start, start + 3)
        profiler.close()
    assert (run.said, run.delivered) == ([], [])
    profiler = run.profiler(2, 4)
    run.train(profiler, 3, 6)
    profiler.close()
    assert run.said == ["the profile of steps 2 to 4 skipped: only one step of the window is left"]
    assert not Path(run.url).exists()


def test_no_failure_stops_training(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").write_text("not a folder")
    profiler = run.profiler(1, 2)
    run.train(profiler, 0, 3)
    profiler.close()
    assert len(run.said) == 1
    assert run.said[0].startswith("the profile of steps 1 to 2 could not be written (")

    def broken(trace: torch.profiler.profile) -> None:
        raise RuntimeError("no driver")

    monkeypatch.setattr(torch.profiler.profile, "prepare_trace", broken)
    profiler = run.profiler(1, 3)
    run.train(profiler, 0, 4)
    profiler.close()
    assert len(run.said) == 2
    assert run.said[1] == "the profile of steps 1 to 3 failed (RuntimeError: no driver)"
    assert run.delivered == []


def test_two_workers_under_deepspeed(tmp_path: Path) -> None:
    folder, split = run_ranks(2, profiled_training, str(tmp_path))[0]
    page = (tmp_path / folder / "summary.md").read_text()
    with gzip.open(tmp_path / folder / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    phases = [event for event in events if event["name"] in ("forward", "backward", "optimizer")]
    micro_batches = 3  # 12 slots, 5 at once
    assert len(phases) == 2 * micro_batches * 3
    assert "Collectives of gloo ran for " in page
    assert "gloo ran for 0.0% of the time" not in page
    # the trace's own spans and the sums that MLflow gets tell the same, but for the cost of the labels
    for phase in ("forward", "backward", "optimizer"):
        traced = sum(event["dur"] for event in phases if event["name"] == phase) / 1e6
        assert 0 < split[phase] <= 1.001 * traced


def profiled_training(url: str) -> tuple[str, dict[str, float]]:
    """Steps 1 and 2 of a run, traced on rank 0. Its folder, and the seconds of these two steps by phase."""
    engine = build_engine(1)
    delivered: list[str] = []
    profiler = None
    if dist.get_rank() == 0:
        profiler = Profiler((1, 3), engine, url, device="a CPU", workers=2, deliver=delivered.append, say=print)
        profiler.resume(0)
    share = BATCH // 2
    images = torch.randint(0, 256, (share, 3, 8, 8), dtype=torch.uint8)
    before: dict[str, float] = {}
    for step in range(3):
        if step == 1:
            before = engine.phases.totals()
        valid = torch.ones(share).bool()
        engine.train_step(images, torch.zeros(share, 1).long(), torch.ones(share, 1), valid, None, lr=1e-3)
        if profiler is not None:
            profiler.stepped(step + 1)
    split = engine.phases.since(before)
    if profiler is not None:
        profiler.close()
    return (*delivered, split) if delivered else ("", split)  # type: ignore[return-value]
