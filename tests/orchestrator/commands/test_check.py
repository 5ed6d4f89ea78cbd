"""`check`: the resolved job, what it would do, and the mistakes that `run` would name; nothing is written."""

import json
from pathlib import Path

import pytest
import yaml

from data.sources.digits import pack_digits
from orchestrator import load_job
from orchestrator.__main__ import main
from orchestrator.run.folder import mark_first_step, open_run, run_url
from orchestrator.run.inputs import open_inputs
from orchestrator.run.paths import absolute
from orchestrator.tracking import refusal
from tests.paths import ROOT

DIGITS = str(ROOT / "jobs/pretrain_digits.yaml")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test asks MLflow unless it says so: that takes seconds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VIT_HOME", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(refusal.Asked, "refused_or_away", lambda self: (self.stop(), ("", ""))[1])


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    pack_digits(str(folder))
    return folder


def check(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict:
    """What `check --json` prints last. The rest must be a job file."""
    words = [word for override in overrides for word in ("--set", override)]
    assert main(["check", DIGITS, *words, "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    assert yaml.safe_load("\n".join(text)) == json.loads(last)["job"]
    return json.loads(last)


def test_a_new_job_is_foreseen_before_its_images_are_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = check(capsys, "schedule.length.epochs=2.5", "schedule.warmup=null", "evaluate.every.steps=25")
    assert list(tmp_path.iterdir()) == [], "check writes nothing"
    inputs = open_inputs(load_job(DIGITS, ["schedule.length.epochs=2.5", "schedule.warmup=null"]))
    assert facts["steps"] == inputs.calendar.total_steps == 58
    assert facts["steps_per_epoch"] == inputs.calendar.steps_per_epoch
    assert facts["packs"] == {
        f"{tmp_path}/runs/data/digits/train": inputs.train.index.num_samples,
        f"{tmp_path}/runs/data/digits/test": inputs.held_out["test"].num_samples,
    }
    assert (facts["start"], facts["step"], facts["evaluations"], facts["cluster"]) == ("new", 0, 3, "private")
    assert facts["job"]["data"]["train"]["url"] == f"{tmp_path}/runs/data/digits/train"


def test_a_run_that_is_there(packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.pack=null", f"data.train.url={packed}/train", f"data.eval.test.url={packed}/test"]
    words.append(f"checkpoint.url={tmp_path}/runs")
    job = absolute(load_job(DIGITS, words))
    open_run(job, open_inputs(job).train.digest)
    mark_first_step(run_url(job))
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert check(capsys, *words)["packs"] == {}
    assert main(["check", DIGITS, *(word for text in [*words, "seed=1"] for word in ("--set", text))]) == 2
    refused = capsys.readouterr().err
    assert main(["run", DIGITS, *(word for text in [*words, "seed=1"] for word in ("--set", text))]) == 2
    assert capsys.readouterr().err == refused
    assert "seed = 1: the run in" in refused
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_what_run_refuses_is_refused_in_the_same_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = [
        (3, ["batch_size=many", "sead=1", "seed"]),
        (2, ["cluster.resources_per_worker.unicorn=1", "data.eval.x.url=/no", "data.eval.x.augment.crop=center"]),
        (3, ["checkpoint.url=/proc/x", "tracking.uri=file:///x", "batch_size=5000"]),
    ]
    for mistakes, overrides in wrong:
        words = [word for text in overrides for word in ("--set", text)]
        said = []
        for command in ("check", "run"):
            assert main([command, DIGITS, *words]) == 2
            output = capsys.readouterr()
            assert output.out == ""
            said.append(output.err)
        assert said[0] == said[1]
        assert said[0].count("error: ") == mistakes
    assert list(tmp_path.iterdir()) == []


def test_the_first_ten_mistakes_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for number in range(13) for word in ("--set", f"no_such_key_{number:02d}=1")]
    assert main(["check", DIGITS, *words]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[2] for line in lines[:-1]] == [f"no_such_key_{number:02d}" for number in range(10)]
    assert lines[-1] == "error: and 3 more"


@pytest.mark.cluster
def test_mlflow_is_asked(
    packed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    words = ["data.pack=null", f"data.train.url={packed}/train", f"data.eval.test.url={packed}/test"]
    (tmp_path / "no.db").write_text("this is no database" * 100)
    assert (
        main(["check", DIGITS, *(word for t in [*words, "tracking.uri=sqlite:///no.db"] for word in ("--set", t))]) == 2
    )
    assert "tracking.uri = sqlite:///" in (said := capsys.readouterr().err)
    assert "MLflow refuses the run: " in said
    facts = check(capsys, *words, "tracking.uri=http://127.0.0.1:9")
    assert "MLflow is away" in facts["warnings"][0]

    assert refusal.ask(f"sqlite:///{tmp_path}/good.db", "vit") == ""
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    assert check(capsys, *words, f"tracking.uri=sqlite:///{tmp_path}/good.db")["warnings"] == []
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before
