"""Where the relative paths of a job file are."""

import os
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from orchestrator.run.paths import PathError, relative_paths_begin_at, resolve_url


@pytest.fixture(autouse=True)
def _a_home_and_a_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("VIT_HOME", raising=False)
    monkeypatch.chdir(tmp_path / "here")


def test_a_relative_path_begins_at_the_current_directory(tmp_path: Path) -> None:
    assert resolve_url("runs/data") == f"{tmp_path}/here/runs/data"
    assert resolve_url("./runs/../data/") == f"{tmp_path}/here/data"
    assert resolve_url("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/here/runs/mlflow.db"


def test_it_begins_at_vit_home_where_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIT_HOME", "~/vit-runs")
    assert resolve_url("runs") == f"{tmp_path}/home/vit-runs/runs"
    assert resolve_url("sqlite:///runs/mlflow.db") == f"sqlite:///{tmp_path}/home/vit-runs/runs/mlflow.db"


def test_a_database_lies_in_a_folder_whose_name_is_odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database's URI is one of the web's kind: a question mark ends its path, and %20 is a blank."""
    odd = tmp_path / "what? [100%20] #1"
    odd.mkdir()
    monkeypatch.chdir(odd)
    assert resolve_url("runs") == f"{odd}/runs"
    uri = resolve_url("sqlite:///runs/mlflow.db")
    assert uri == f"sqlite:///{tmp_path}/what%3F [100%2520] #1/runs/mlflow.db"
    assert make_url(uri).database == f"{odd}/runs/mlflow.db"
    assert resolve_url(uri) == uri


def test_it_survives_a_submitted_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uploaded = tmp_path / "ray/session/runtime_resources/working_dir_files/_ray_pkg_1f"
    uploaded.mkdir(parents=True)
    monkeypatch.chdir(uploaded)
    assert resolve_url("runs") == f"{tmp_path}/home/vit/runs"
    monkeypatch.setenv("VIT_HOME", str(tmp_path))
    assert resolve_url("runs") == f"{tmp_path}/runs"


def test_what_is_absolute_stays(tmp_path: Path) -> None:
    for url in [
        "/data/x",
        "gs://bucket/a/../b",
        "s3://bucket/x",
        "http://mlflow:5000",
        "sqlite:////abs/m.db",
        "memory://x",
    ]:
        assert resolve_url(url) == url
    assert resolve_url(resolve_url("runs")) == resolve_url("runs")
    assert resolve_url(resolve_url("sqlite:///m.db")) == resolve_url("sqlite:///m.db")


def test_home_and_variables_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "mine")
    assert resolve_url("~/x") == f"{tmp_path}/home/x"
    assert resolve_url("sqlite:///~/x.db") == f"sqlite:///{tmp_path}/home/x.db"
    assert resolve_url("gs://$BUCKET/x") == "gs://mine/x"
    assert resolve_url("${BUCKET}/x") == f"{tmp_path}/here/mine/x"


def test_a_variable_that_is_not_set_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUCKET", raising=False)
    with pytest.raises(PathError, match=r"^gs://\$\{BUCKET\}/x: the environment variable BUCKET is not set$"):
        resolve_url("gs://${BUCKET}/x")


def test_the_resolved_path_is_where_the_file_system_looks(tmp_path: Path) -> None:
    Path("a.txt").write_text("a")
    assert os.path.samefile(resolve_url("a.txt"), "a.txt")
    assert relative_paths_begin_at() == tmp_path / "here"
