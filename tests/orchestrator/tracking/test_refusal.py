"""MLflow refuses, or is away: against real databases and servers that answer as a login page or without rights."""

import http.server
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.tracking.database import make
from orchestrator.tracking.description import RunDescription
from orchestrator.tracking.refusal import Asked, ask, refusal
from orchestrator.tracking.tracker import Tracker
from tests.orchestrator.tracking.stores import description, free_port, until


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    make(path)
    return path


@contextmanager
def answering(status: int, content: bytes, kind: str = "text/html") -> Iterator[str]:
    """The address of a server that always answers the same."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture(autouse=True)
def _one_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


LOGIN = b"<!DOCTYPE html><html>Sign in</html>"


@pytest.mark.parametrize(
    ("status", "content", "reason"),
    [
        (401, LOGIN, "it answers 401: set MLFLOW_TRACKING_USERNAME"),
        (403, b'{"error_code": "PERMISSION_DENIED", "message": "no"}', "it answers 403"),
        (200, LOGIN, "a page that is not MLflow's"),
        (404, LOGIN, "it answers 404: there is no MLflow"),
        (503, LOGIN, ""),
        (429, LOGIN, ""),
    ],
)
def test_answers_of_a_server(status: int, content: bytes, reason: str) -> None:
    with answering(status, content) as uri:
        found = ask(uri, "vit")
        assert reason in found
        assert bool(reason) == bool(found)
        assert "\n" not in found


def test_a_server_that_is_not_there_is_only_away() -> None:
    assert ask(f"http://127.0.0.1:{free_port()}", "vit") == ""


def test_a_deleted_experiment(store: Path) -> None:
    uri = f"sqlite:///{store}"
    client = MlflowClient(uri)
    assert ask(uri, "gone") == ""
    client.delete_experiment(client.create_experiment("gone"))
    assert "the experiment 'gone' was deleted: restore it" in ask(uri, "gone")


def test_files_that_are_no_database_of_this_mlflow(store: Path, tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    uri = f"sqlite:///{path}"
    path.write_bytes(b"a letter, and no database" * 100)
    assert f"{path} cannot be used as a database" in ask(uri, "vit")
    path.write_bytes(store.read_bytes())
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '90e64c465722'")
        connection.commit()
    assert "another version of MLflow" in ask(uri, "vit")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE _alembic_tmp_runs (x INTEGER)")
        connection.commit()
    before = path.read_bytes()
    assert "did not finish making" in ask(uri, "vit")
    assert path.read_bytes() == before


@pytest.mark.servers
def test_asked_beside_the_start_of_ray(store: Path, tmp_path: Path) -> None:
    (tmp_path / "letter.db").write_bytes(b"a letter" * 100)
    asked = Asked.about(f"sqlite:///{tmp_path}/letter.db", "vit")
    assert asked.waits
    assert "cannot be used as a database" in asked.answer()
    assert Asked.about(f"sqlite:///{store}", "vit").answer() == ""
    new = Asked.about(f"sqlite:///{tmp_path}/new/mlflow.db", "vit")
    assert not new.waits
    assert new.answer() == "", "a database that is being made is not waited for"
    assert new.process.wait(300) == 0
    assert (tmp_path / "new" / "mlflow.db").exists()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(sqlite3.OperationalError) table _alembic_tmp_runs already exists", "did not finish making"),
        ("(sqlite3.OperationalError) duplicate column name: workspace", "did not finish making"),
        ("(sqlite3.DatabaseError) malformed database schema - orphan index", "cannot be used as a database"),
        ("(sqlite3.OperationalError) attempt to write a readonly database", "cannot be used as a database"),
        ("Experiment(name=vit) already exists. Error: UNIQUE constraint failed", ""),  # made by another run just now
        ("(sqlite3.OperationalError) database is locked", ""),
    ],
)
def test_errors_of_a_database(text: str, reason: str, tmp_path: Path) -> None:
    found = refusal(RuntimeError(f"{text} [SQL: SELECT 1]"), f"sqlite:///{tmp_path}/mlflow.db")
    assert reason in found
    assert bool(reason) == bool(found)
    assert "SELECT" not in found


def test_errors_that_pass() -> None:
    for error in (ConnectionError("refused"), TimeoutError(), OSError(5, "Input/output error"), RuntimeError("locked")):
        assert refusal(error, "sqlite:////nowhere/mlflow.db") == ""
        assert refusal(error, "http://host") == ""


def test_a_run_that_goes_on_says_the_reason_and_keeps_its_points(tmp_path: Path) -> None:
    path = tmp_path / "store" / "mlflow.db"
    path.parent.mkdir()
    path.write_bytes(b"a letter, and no database" * 100)
    said: list[str] = []
    about: RunDescription = description(f"sqlite:///{path}")
    tracker = Tracker(about, spool_dir=tmp_path, say=said.append, system_seconds=None)
    tracker.log(1, {"loss": 0.5})
    until(lambda: said)
    assert "MLflow refuses the run at sqlite:///" in said[0]
    assert "cannot be used as a database" in said[0]
    assert "training continues, metrics are queued in" in said[0]
    assert len(said) == 1
    assert not tracker.close(timeout=0.5)
    assert tracker.trouble in said[0]
    assert '"loss":0.5' in next(tmp_path.glob("tracking-*.jsonl")).read_text()
