"""A SQLite database for MLflow appears whole, whatever is killed while it is made."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking import database
from orchestrator.tracking.refusal import ask
from tests.paths import ROOT

MAKE = "import sys; from pathlib import Path; from orchestrator.tracking.database import make; make(Path(sys.argv[1]))"
DIRECTLY = "import sys; from mlflow import MlflowClient; MlflowClient('sqlite:///' + sys.argv[1])"


def start(program: str, path: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that two processes made at once."""
    path = tmp_path_factory.mktemp("whole") / "of a run" / "mlflow.db"
    both = [start(MAKE, path) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    return path


def test_two_processes_make_one_database(whole: Path) -> None:
    assert [path.name for path in whole.parent.iterdir()] == ["mlflow.db"]
    assert not database.half_made(whole)
    client = MlflowClient(f"sqlite:///{whole}")
    assert [found.name for found in client.search_experiments()] == ["Default"]


def test_one_that_is_there_is_never_replaced(whole: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mlflow.db"
    mine.write_bytes(b"mine")
    database.make(mine)
    assert mine.read_bytes() == b"mine"


def test_killed_at_any_moment_it_is_not_there_or_whole(tmp_path: Path) -> None:
    path, dice = tmp_path / "mlflow.db", random.Random(0)
    new = tmp_path / "mlflow.db.making.db"
    for _ in range(3):
        Path(f"{new}-journal").write_bytes(b"of another database")
        process = start(MAKE, path)
        deadline = time.monotonic() + 60
        while not new.exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(dice.uniform(0.0, 1.0))
        process.kill()
        process.wait()
        assert not path.exists()
    database.make(path)
    assert not database.half_made(path)
    assert [left.name for left in tmp_path.iterdir()] == ["mlflow.db"]


def test_what_mlflow_leaves_when_it_is_killed_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    for wait in (0.0, 0.3, 0.6):
        for left in tmp_path.iterdir():
            left.unlink()
        process = start(DIRECTLY, path)
        deadline = time.monotonic() + 60
        while not (path.exists() and path.stat().st_size > 100_000) and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(wait)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        found = ask(f"sqlite:///{path}", "vit")
        assert "did not finish making" in found or found == "", "MLflow goes on where it can"


@pytest.mark.parametrize("content", [b"", b"rubbish" * 1000])
def test_other_files_are_not_half_made(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert not database.half_made(path)
    path.write_bytes(content)
    assert not database.half_made(path)


def test_the_file_that_an_address_names(tmp_path: Path) -> None:
    assert database.path_of("http://host") is None
    assert database.path_of(f"sqlite:///{tmp_path}/a%5B1%5D.db?timeout=3") == tmp_path / "a[1].db"
