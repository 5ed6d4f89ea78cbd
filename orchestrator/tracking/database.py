"""A new SQLite database for MLflow, whole or not at all.

MLflow makes a database by a chain of migrations that take seconds. A process that is killed in the middle would leave a
half-made one, with which no MLflow can do anything any more. So it is made under another name beside its place, and
then linked there; a database that is there already is never replaced.
"""

import fcntl
import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote, unquote

PREFIX = "sqlite:///"
MIGRATION_LOGGERS = ("alembic", "mlflow.store.db.utils", "mlflow.tracking._tracking_service.utils")
"""They print every migration."""
MAKING = ".making"  # ending of the file that locks the making, and of the new database's name
BESIDE = ("-journal", "-wal", "-shm")  # endings of SQLite's own files beside a database
LEFT_BY_MIGRATIONS = "_alembic_tmp_"  # beginning of the names of tables that exist only during a migration


def path_of(uri: str) -> Path | None:
    """The file of a tracking URI; None if it names no SQLite database."""
    if not uri.startswith(PREFIX):
        return None
    return Path(unquote(uri.removeprefix(PREFIX).partition("?")[0])).expanduser().absolute()


def make(path: Path) -> None:
    """Make the database at `path` unless there is one. Imports mlflow. Processes that make it at once wait for one."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + MAKING)
    with open(lock, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not path.exists():
            new = path.with_name(f"{path.name}{MAKING}.db")
            for left in ("", *BESIDE):  # by a process that was killed; its journal would ruin the new database
                Path(f"{new}{left}").unlink(missing_ok=True)
            _migrate(new)
            os.link(new, path)
            new.unlink()
        lock.unlink(missing_ok=True)


def half_made(path: Path) -> bool:
    """Whether the file at `path` is a database whose migrations were interrupted."""
    if not path.is_file():
        return False
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            if any(name.startswith(LEFT_BY_MIGRATIONS) for name in names):
                return True
            return bool(names) and "alembic_version" not in names and "experiments" in names
    except sqlite3.Error:
        return False  # no database, or a locked one


def _migrate(path: Path) -> None:
    for logger in MIGRATION_LOGGERS:
        logging.getLogger(logger).setLevel(logging.WARNING)
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine_with_retry

    engine = create_sqlalchemy_engine_with_retry(f"{PREFIX}{quote(str(path))}")
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()
