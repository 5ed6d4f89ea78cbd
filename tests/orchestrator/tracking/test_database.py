"""A SQLite database for MLflow appears whole, whatever is killed while it is made."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient

from orchestrator.tracking import database
from orchestrator.tracking.refusal import ask
from tests.paths import ROOT

MAKE = "import sys; from pathlib import Path; from orchestrator.tracking.database import make; make(Path(sys.argv[1]))"
DIRECTLY = "import sys; from mlflow import MlflowClient; MlflowClient('sqlite:///' + sys.argv[1])"

HALF_MADE = ("CREATE TABLE alembic_version", "INSERT INTO _alembic_tmp_", "DROP TABLE", "ALTER TABLE _alembic_tmp_")


def start(program: str, path: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", program, str(path)], cwd=ROOT, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database that two processes made at once."""
    path = tmp_path_factory.mktemp("whole") / "of a run" / "mlflow.db"
    both = [start(MAKE, path) for _ in range(2)]
    assert [process.wait(300) for process in both] == [0, 0]
    return path


@pytest.mark.servers
def test_two_processes_make_one_database(whole: Path) -> None:
    assert [path.name for path in whole.parent.iterdir()] == ["mlflow.db"]
    assert not database.half_made(whole)
    client = MlflowClient(f"sqlite:///{whole}")
    assert [found.name for found in client.search_experiments()] == ["Default"]


@pytest.mark.servers
def test_one_that_is_there_is_never_replaced(whole: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mlflow.db"
    mine.write_bytes(b"mine")
    database.make(mine)
    assert mine.read_bytes() == b"mine"


@pytest.mark.servers
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


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Copies of a database in the middle of MLflow's migrations, by the beginning of the statement that comes next."""
    folder = tmp_path_factory.mktemp("states")
    making, found = folder / "making.db", dict[str, Path]()

    def copy(connection: object, cursor: object, statement: str, *_: object) -> None:
        for begin in HALF_MADE:
            if statement.lstrip().startswith(begin) and begin not in found:
                found[begin] = folder / str(len(found)) / "mlflow.db"
                found[begin].parent.mkdir()
                shutil.copy(making, found[begin])

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "before_cursor_execute", copy)
    try:
        MlflowClient(f"sqlite:///{making}").search_experiments()
    finally:
        sqlalchemy.event.remove(sqlalchemy.engine.Engine, "before_cursor_execute", copy)
    assert set(found) == set(HALF_MADE)
    return found


@pytest.mark.parametrize("following", HALF_MADE)
def test_a_half_made_database_is_recognised(following: str, states: dict[str, Path]) -> None:
    assert database.half_made(states[following])
    assert "did not finish making" in ask(f"sqlite:///{states[following]}", "vit")


@pytest.mark.servers
def test_what_mlflow_leaves_when_it_is_killed_is_used_or_named(tmp_path: Path) -> None:
    """A kill in the middle of a write leaves a journal, too. Then SQLite's own error can be the reason."""
    path = tmp_path / "mlflow.db"
    process = start(DIRECTLY, path)
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > 100_000) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    found = ask(f"sqlite:///{path}", "vit")
    assert found == "" or found.startswith((f"{path} is a database that", f"{path} cannot be used"))


@pytest.mark.parametrize("content", [b"", b"rubbish" * 1000])
def test_other_files_are_not_half_made(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert not database.half_made(path)
    path.write_bytes(content)
    assert not database.half_made(path)


def test_the_file_that_an_address_names(tmp_path: Path) -> None:
    assert database.path_of("http://host") is None
    assert database.path_of(f"sqlite:///{tmp_path}/a%5B1%5D.db?timeout=3") == tmp_path / "a[1].db"
