"""The command line: bad job files are answered with one line and exit code 2, at once, and nothing is started."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.__main__ import main
from orchestrator.job.errors import JobError
from tests.paths import ROOT

DIGITS = "jobs/pretrain_digits.yaml"

BAD = {
    "unknown key": ("model.heds=3", "model.heds", "model.heads"),
    "unknown section": ("optimiser.lr=1", "optimiser", "optimizer"),
    "wrong type": ("batch_size=many", "batch_size = many", "integer"),
    "heads do not divide": ("model.heads=7", "model.heads", "7 heads do not divide the width 64"),
    "image no multiple": ("model.image_size=9", "model.image_size", "nearest: 8 or 10"),
    "fewer images than workers": ("cluster.workers=65", "batch_size = 64", "65 workers"),
    "warm-up longer than run": ("schedule.warmup.epochs=61", "schedule.warmup", "longer than the run"),
    "no such URL": ("data.train.url=nowhere/train", "data.train.url = nowhere/train", "does not exist"),
    "no such bucket scheme": ("data.eval.test.url=ftpp://x/y", "ftpp://x/y", "data.eval.test.url"),
    "unknown variant": ("model.name=ViT-Q/16", "ViT-Q/16", "model.name"),
    "unknown choice": ("optimizer.name=adm", "adm", "adamw"),
    "negative rate": ("optimizer.lr=-1", "optimizer.lr = -1", "> 0"),
    "two units": ("schedule.length={steps: 1, epochs: 1}", "schedule.length", "exactly one"),
    "too few classes": ("model.num_classes=9", "model.num_classes = 9", "10 classes"),
    "no room for a worker": ("cluster.resources_per_worker.CPU=0", "cluster.resources_per_worker.CPU = 0", "CPU"),
    "resource misspelt": ("cluster.resources_per_worker.gpu=1", "resources_per_worker.gpu = 1", "GPU"),
    "memory as storage": ("checkpoint.url=memory://runs", "checkpoint.url = memory://runs", "workers do not share"),
    "weights to start from": ("model.init_from=README.md", "model.init_from", "none of the formats"),
    "set name": ("data.eval={a/b: {url: x}}", "data.eval", "a/b"),
    "no such home": ("checkpoint.url=~nobody_at_all/runs", "nobody_at_all", "home"),
    "not to be written": ("checkpoint.url=/proc/runs", "/proc", ""),
    "file store": ("tracking.uri=file:///tmp/x", "tracking.uri", "database or on a server"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_line_and_exit_code_2(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    override, *expected = BAD[name]
    monkeypatch.setenv("VIT_HOME", str(tmp_path))
    assert main(["run", str(ROOT / DIGITS), "--set", override]) == 2
    output = capsys.readouterr()  # type: ignore[attr-defined]
    assert output.out == ""
    first, *more = output.err.splitlines()
    assert not more or name == "too few classes", "a line for each mistake: here one for each set"
    assert first.startswith(f"error: {ROOT / DIGITS}: ")
    for text in expected:
        assert text in first
    assert not (tmp_path / "runs" / "pretrain_digits").exists()


@pytest.mark.parametrize("override", ["model.heads=7", "model.heds=3", "data.train.url=nowhere/train"])
def test_a_bad_job_is_refused_before_ray_or_torch_are_imported(override: str, tmp_path: Path) -> None:
    program = (
        "import sys; from orchestrator.__main__ import main; code = main(sys.argv[1:]); "
        "print(sorted({'ray', 'torch', 'deepspeed', 'mlflow'} & set(sys.modules))); sys.exit(code)"
    )
    words = [sys.executable, "-c", program, "run", DIGITS, "--set", override]
    began = time.monotonic()
    found = subprocess.run(
        words, cwd=ROOT, env={"VIT_HOME": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2, found.stderr
    assert found.stdout == "[]\n"
    assert time.monotonic() - began < 60  # a hang, not a speed: what is imported above decides that


def test_a_job_file_is_a_program(tmp_path: Path) -> None:
    environment = {"VIT_HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
    words = [f"./{DIGITS}", "--set", "batch_size=0"]
    found = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr == f"error: {DIGITS}: batch_size = 0: expected an integer >= 1 (from --set)\n"


@pytest.mark.parametrize("name", ["job.yaml", "run.json"])
def test_a_damaged_run_folder_is_said(name: str, tmp_path: Path) -> None:
    from orchestrator.job.load import load_job
    from orchestrator.run.folder import open_run, run_url
    from orchestrator.run.paths import absolute
    from orchestrator.run.summary import read_summary

    job = absolute(load_job(ROOT / DIGITS, [f"checkpoint.url={tmp_path}"]))
    identity = open_run(job, "digest")
    assert open_run(job, "digest") == identity
    folder = Path(run_url(job))
    (folder / "summary.json").write_text('{"step": 1')
    assert read_summary(job) is None
    (folder / name).write_text("{")
    with pytest.raises(JobError, match=rf"{name} is damaged"):
        open_run(job, "digest")


@pytest.mark.parametrize(
    ("override", "digest", "key"),
    [
        ("seed=1", "digest", "seed"),
        ("parallel.precision=bf16", "digest", "parallel.precision"),
        ("seed=0", "other", "data.train"),
    ],
)
def test_what_decides_the_result_may_not_change(override: str, digest: str, key: str, tmp_path: Path) -> None:
    from orchestrator.job.load import load_job
    from orchestrator.run.folder import check_run, mark_first_step, open_run, run_url
    from orchestrator.run.paths import absolute

    job = absolute(load_job(ROOT / DIGITS, [f"checkpoint.url={tmp_path}"]))
    open_run(job, "digest")
    mark_first_step(run_url(job))
    changed = absolute(load_job(ROOT / DIGITS, [f"checkpoint.url={tmp_path}", override]))
    for refuses in (check_run, open_run):
        with pytest.raises(JobError, match=rf"{key}.* was started with"):
            refuses(changed, digest)


@pytest.mark.parametrize(
    ("left", "size"),
    [("first-step", 1), ("step-00000005-00000000", None), ("tracking-0123.jsonl", 9), ("summary.json", 1)],
)
def test_only_a_run_without_a_step_makes_room_for_another_recipe(left: str, size: int | None, tmp_path: Path) -> None:
    from orchestrator.job.load import load_job
    from orchestrator.run.folder import check_run, open_run, run_url
    from orchestrator.run.paths import absolute

    job = absolute(load_job(ROOT / DIGITS, [f"checkpoint.url={tmp_path}"]))
    changed = absolute(load_job(ROOT / DIGITS, [f"checkpoint.url={tmp_path}", "seed=1"]))
    first = open_run(job, "digest")
    assert check_run(changed, "digest") is None
    second = open_run(changed, "digest")
    assert first != second
    assert check_run(changed, "digest") == second
    path = Path(run_url(job)) / left
    path.mkdir() if size is None else path.write_text("x" * size)
    with pytest.raises(JobError, match=r"seed = 0: the run in .* was started with 1"):
        open_run(job, "digest")


@pytest.mark.parametrize("override", ["cluster.workers=3", "parallel.zero_stage=3", "checkpoint.keep=9"])
def test_what_does_not_may(override: str, tmp_path: Path) -> None:
    from orchestrator.job.load import load_job
    from orchestrator.run.folder import open_run
    from orchestrator.run.paths import absolute

    first = open_run(absolute(load_job(ROOT / DIGITS, [f"checkpoint.url={tmp_path}"])), "digest")
    assert open_run(absolute(load_job(ROOT / DIGITS, [f"checkpoint.url={tmp_path}", override])), "digest") == first


@pytest.mark.parametrize("words", [[], ["rum"], ["run"], ["run", DIGITS, "--sett", "a=b"], ["run", "no/such.yaml"]])
def test_a_wrong_command_line_is_one_line(words: list[str]) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


def test_kinds_that_are_not_run_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "grid.yaml"
    job.write_text(f"kind: sweep\nbase: {ROOT / DIGITS}\ngrid: {{optimizer.lr: [0.001, 0.002]}}\n")
    assert main(["run", str(job)]) == 2
    assert "runs only pretrain" in capsys.readouterr().err
