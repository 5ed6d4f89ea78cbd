"""`export` as a user calls it, and the export of a run that is complete."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import load_file

from orchestrator.__main__ import main
from orchestrator.job.kinds import NetworkJob
from orchestrator.job.load import load_job
from orchestrator.kinds.one_run import export_complete
from orchestrator.run.paths import absolute
from tests.orchestrator.checkpoint.runs import write_run
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", step=3)
    return tmp_path / "run"


def test_export(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "run", "out", "--step", "3", "--dtype", "bf16"]) == 0
    assert capsys.readouterr().out == "out: ViT-Ti/2 of step 3, bf16\n"
    assert sorted(os.listdir("out")) == ["README.md", "model.json", "model.safetensors"]
    assert main(["export", "run@last", "out"]) == 2
    assert "out: is not empty; name another folder, or use --force" in capsys.readouterr().err
    assert main(["export", "run@last", "out", "--force"]) == 0
    assert json.loads(Path("out/model.json").read_text())["weights"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["nowhere", "out"], "nowhere: does not exist"),
        (["run", "file"], "file: is a file; name a folder"),
        (["run", "out", "--step", "4"], "run: no complete checkpoint at step 4; it has 3"),
        (["run", "out", "--step", "new"], "run@new#live: 'new' is no checkpoint"),
        (["run@3", "out", "--step", "3"], "run@3: names a checkpoint itself; leave out --step and --ema"),
        (["run", "out", "--ema"], "the run trained without optimizer.ema"),
        (["run", "out", "--step", "best"], "its job has no checkpoint.best"),
        (["run", "/proc/none/out"], "/proc/none/out: cannot be written (FileNotFoundError"),
    ],
)
def test_nothing_to_export(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").write_text("mine")
    assert main(["export", *words]) == 2
    (found,) = capsys.readouterr().err.splitlines()
    assert line in found
    assert not Path("out").exists()


def job_of(run: Path) -> NetworkJob:
    words = [f"checkpoint.url={run.parent}", f"name={run.name}"]
    return absolute(load_job(ROOT / "jobs/pretrain_digits.yaml", words))


def test_a_complete_run_is_exported_once(run: Path) -> None:
    summary = {"step": 3, "metrics": {"eval/test/top1": 0.5}}
    (run / "summary.json").write_text(json.dumps(summary))
    assert export_complete(job_of(run), summary) == f"{run}/export"
    written = (run / "export/model.json").stat().st_mtime_ns
    assert json.loads((run / "export/model.json").read_text())["provenance"]["accuracy"] == summary["metrics"]
    assert export_complete(job_of(run), summary) == f"{run}/export"
    assert (run / "export/model.json").stat().st_mtime_ns == written
    assert main(["export", "run", "out"]) == 0
    assert load_file("out/model.safetensors").keys() == load_file(run / "export/model.safetensors").keys()


def test_an_export_that_fails_takes_nothing_from_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "export").write_text("mine")
    assert export_complete(job_of(run), {"step": 3, "metrics": {}}) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: ")
    assert "--force` tries again" in line
    assert (run / "export").read_text() == "mine"
