"""Files of a run's folder that are torn, missing or something else: each is named, with what to do."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from orchestrator.job.errors import JobError
from orchestrator.job.kinds import NetworkJob
from orchestrator.job.load import load_job
from orchestrator.run.folder import check_run, open_run, run_url
from orchestrator.run.paths import absolute
from orchestrator.run.summary import read_summary
from tests.paths import ROOT

HARMS: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "binary": lambda path: path.write_bytes(b"\x00\xff\xfe\x01"),
    "list": lambda path: path.write_text("[1, 2]"),
    "number": lambda path: path.write_text("9" * 5000),
    "deep": lambda path: path.write_text("[" * 100_000),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a bad sector": lambda path: (path.unlink(), path.symlink_to("/proc/self/mem")),
}


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NetworkJob:
    """A job whose run has done a step."""
    monkeypatch.setattr("data.storage.patience.PATIENCE", 0.1)
    job = absolute(load_job(ROOT / "jobs/pretrain_digits.yaml", [f"checkpoint.url={tmp_path}"]))
    open_run(job, "d" * 64)
    (Path(run_url(job)) / "first-step").write_text("now")
    (Path(run_url(job)) / "step-000000015-00000000").mkdir()
    return job


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("name", ["run.json", "job.yaml"])
def test_what_a_run_cannot_do_without_is_named(name: str, harm: str, job: NetworkJob) -> None:
    HARMS[harm](Path(run_url(job)) / name)
    for start in (check_run, open_run):
        with pytest.raises(
            JobError, match=rf"{name} is \w+.* \(.*\); move the run's folder away.* or put back"
        ) as error:
            start(job, "d" * 64)
        assert "\n" not in str(error.value)


def test_an_identity_can_be_written_again(job: NetworkJob) -> None:
    """As the message says."""
    path = Path(run_url(job)) / "run.json"
    before = json.loads(path.read_text())
    for harm in (lambda: path.write_text("{"), path.unlink):
        harm()
        with pytest.raises(JobError, match=r"run\.json is (damaged|missing)") as error:
            open_run(job, "d" * 64)
        text = str(error.value)
        path.write_text(text[text.index("{") : text.index("}") + 1].replace("ID", before["id"]))
        assert open_run(job, "d" * 64) == before["id"]


def test_a_run_of_before_gelu_and_epsilon_had_keys(job: NetworkJob) -> None:
    """It trained with the authors' values, so it continues with these, and with no others."""
    path = Path(run_url(job)) / "job.yaml"
    fields = yaml.safe_load(path.read_text())
    for key, other in (("gelu", "erf"), ("norm_eps", 1e-12)):
        del fields["model"][key]
        path.write_text(yaml.safe_dump(fields))
        assert check_run(job, "d" * 64) is not None
        changed = job.model_copy(update={"model": job.model.model_copy(update={key: other})})
        with pytest.raises(JobError, match=rf"model\.{key} = {other}: the run in .* was started with"):
            check_run(changed, "d" * 64)


def test_a_run_with_a_checkpoint_continues_without_the_weights_that_it_began_with(job: NetworkJob) -> None:
    """They may be gone, and the job may say so. Other weights are another run."""

    def of(init_from: str | None) -> NetworkJob:
        return job.model_copy(update={"model": job.model.model_copy(update={"init_from": init_from})})

    folder = Path(run_url(job))
    (folder / "job.yaml").unlink()
    (folder / "run.json").unlink()
    (folder / "first-step").unlink()
    (folder / "step-000000015-00000000").rmdir()
    identity = open_run(of("gs://b/one"), "d" * 64)
    (folder / "first-step").write_text("now")
    with pytest.raises(JobError, match=r"model\.init_from = None: the run in .* was started with gs://b/one"):
        check_run(of(None), "d" * 64)

    (folder / "step-000000015-00000000").mkdir()
    (folder / "step-000000015-00000000" / "manifest.json").write_text("{}")
    (folder / "initial.json").write_text(
        json.dumps({"url": "gs://b/one", "sha256": "0" * 64, "loaded": "", "not_loaded": ""})
    )
    assert open_run(of(None), "d" * 64) == identity
    assert open_run(of("gs://b/one"), "d" * 64) == identity
    with pytest.raises(JobError, match=r"model\.init_from = gs://b/two: the run in .* was started with gs://b/one"):
        check_run(of("gs://b/two"), "d" * 64)


def test_a_folder_with_anothers_checkpoint_and_nothing_else_begins_a_run(tmp_path: Path) -> None:
    job = absolute(load_job(ROOT / "jobs/pretrain_digits.yaml", [f"checkpoint.url={tmp_path}"]))
    (Path(run_url(job)) / "step-000000015-00000000").mkdir(parents=True)
    assert check_run(job, "d" * 64) is None


@pytest.mark.parametrize("harm", HARMS)
def test_a_torn_result_is_written_again(harm: str, job: NetworkJob, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(run_url(job)) / "summary.json"
    path.write_text(json.dumps({"step": 60}) + " " * 20)
    HARMS[harm](path)
    if harm == "a folder":
        with pytest.raises(JobError, match=r"summary\.json is a folder, where the run writes its result; move it away"):
            read_summary(job)
        return
    assert read_summary(job) is None
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{path} is damaged (" in line


def test_a_complete_run_that_is_made_longer_names_the_way(job: NetworkJob, tmp_path: Path) -> None:
    longer = absolute(
        load_job(ROOT / "jobs/pretrain_digits.yaml", [f"checkpoint.url={tmp_path}", "schedule.length.epochs=90"])
    )
    with pytest.raises(JobError, match=r"schedule\.length\.epochs = 90\.0: the run in .* another name, or undo"):
        check_run(longer, "d" * 64)
    (Path(run_url(job)) / "summary.json").write_text("{}")
    with pytest.raises(JobError) as error:
        check_run(longer, "d" * 64)
    assert f"another name, and `model.init_from: {run_url(job)}`" in str(error.value)
