"""Whether MLflow refuses a run, which waiting does not mend, or is only away.

As a program it reads {"uri": ..., "experiment": ..., "make": ...} from standard input, asks MLflow, and prints why
MLflow refuses. A line that begins with AWAY says instead why it does not answer.
"""

import json
import logging
import os
import re
import subprocess
import sys
from dataclasses import dataclass

from orchestrator.redact import redact_text
from orchestrator.run.paths import PROJECT
from orchestrator.tracking import database
from orchestrator.tracking.database import MIGRATION_LOGGERS
from orchestrator.wording import one_line

AWAY = "away: "
QUICKLY = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}  # environment of a question that nothing depends on
ASK_SECONDS = 30.0  # after the cluster is there; a tracker that takes longer counts as away
PASSING_STATUS = (408, 409, 425, 429, 499)
PASSING_CODES = ("RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST")  # of what was made or deleted just now
OTHER_SCHEMA = "out-of-date database schema"
NOT_JSON = "in a valid JSON format"
SQLITE = re.compile(  # texts of SQLite's errors that stay
    r"file is not a database|malformed|no such (table|column)|readonly database|unable to open database file"
    r"|file is encrypted"
)
INTERRUPTED = re.compile(r"table \S+ already exists|duplicate column")  # of migrations that are done a second time


def refusal(error: BaseException, uri: str) -> str:
    """Why MLflow refuses and what to do, in one line; empty if the error may pass."""
    text = redact_text(" ".join(str(error).split()))
    path = database.path_of(uri)
    if path is not None and (database.half_made(path) or INTERRUPTED.search(text)):
        return (
            f"{path} is a database that MLflow did not finish making, because it was killed meanwhile; move the file "
            "away (it holds no run) with its -journal, and a new one is made"
        )
    if OTHER_SCHEMA in text:
        return (
            f"the database is of another version of MLflow, or MLflow did not finish making it; copy it, then run "
            f"`mlflow db upgrade {redact_text(uri)}`, or move it away"
        )
    if path is not None and SQLITE.search(text):
        return f"{path} cannot be used as a database ({_short(text)}); name another file, or mend this one"
    if isinstance(error, DeletedExperiment):
        return str(error)
    if isinstance(error, PermissionError):
        return f"no right to use it ({_short(text)})"
    if NOT_JSON in text:
        return "it answers with a page that is not MLflow's, such as a login; give the address of the MLflow server"
    status = 0 if getattr(error, "error_code", "") in PASSING_CODES else _status(error)
    if status in (401, 403):
        return (
            f"it answers {status}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, where the command and the workers run"
        )
    if status == 404:
        return "it answers 404: there is no MLflow at this address"
    if 400 <= status < 500 and status not in PASSING_STATUS:
        return f"it answers {status} ({_short(text)})"
    if type(error).__name__ == "UnsupportedModelRegistryStoreURIException":
        return "MLflow does not know this kind of address"
    return ""


class DeletedExperiment(ValueError):
    """The job's experiment was deleted in MLflow."""


@dataclass(frozen=True)
class Asked:
    """A process that asks MLflow whether it takes the run, beside the start of Ray. It imports mlflow.

    Attributes:
        process: prints the reason of a refusal, or nothing.
        waits: whether there is something to wait for: a database that is being made cannot refuse.
    """

    process: "subprocess.Popen[str]"
    waits: bool

    @classmethod
    def about(cls, uri: str, experiment: str, *, make: bool = True) -> "Asked":
        """Start to ask. `make`: make a database that is missing."""
        path = database.path_of(uri)
        path_of_ours = [str(PROJECT), os.environ.get("PYTHONPATH")]  # the command may run in any folder
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**({} if make else QUICKLY), **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path_of_ours))},
            start_new_session=True,  # a Ctrl-C does not interrupt the making of a database
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"uri": uri, "experiment": experiment, "make": make}))
        process.stdin.close()
        return cls(process, path is None or path.exists())

    def answer(self) -> str:
        """Why MLflow refuses, in one line; empty if it does not, or gives no answer in ASK_SECONDS."""
        if not self.waits and self.process.poll() is None:
            return ""
        try:
            self.process.wait(ASK_SECONDS)
        except subprocess.TimeoutExpired:
            return ""
        return "" if (said := self._said()).startswith(AWAY) else said

    def refused_or_away(self) -> tuple[str, str]:
        """(why MLflow refuses, why it does not answer): each in one line, empty if that is not so."""
        try:
            self.process.wait(ASK_SECONDS)
        except subprocess.TimeoutExpired:
            self.stop()
            return "", f"no answer in {ASK_SECONDS:.0f} s"
        said = self._said()
        if self.process.returncode:
            return "", f"the question ended with code {self.process.returncode}"
        return ("", said.removeprefix(AWAY)) if said.startswith(AWAY) else (said, "")

    def _said(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.read().strip()

    def stop(self) -> None:
        """End the process. A database that it is making stays half-made under its other name, for the next one."""
        self.process.kill()
        self.process.wait()


def ask(uri: str, experiment: str) -> str:
    """Why MLflow refuses runs in the experiment; empty if it takes them, or is away.

    Makes the database if it is missing.
    """
    said = _said_by(uri, experiment, make=True)
    return "" if said.startswith(AWAY) else said


def _said_by(uri: str, experiment: str, *, make: bool) -> str:
    """Why MLflow refuses runs in the experiment; empty if it takes them. If it is away, AWAY and the reason.

    Args:
        make: make the database if it is missing; else nothing is asked then.
    """
    for logger in MIGRATION_LOGGERS:
        logging.getLogger(logger).setLevel(logging.ERROR)
    try:
        if path := database.path_of(uri):
            if not make and not path.exists():
                return ""
            database.make(path)
            if database.half_made(path):
                return refusal(RuntimeError(), uri)  # MLflow would go on with the migrations and fail
        from mlflow import MlflowClient

        found = MlflowClient(uri, registry_uri=uri).get_experiment_by_name(experiment)
        check_experiment(experiment, found)
    except Exception as error:  # of the store, its driver or the network
        return refusal(error, uri) or f"{AWAY}{redact_text(_short(one_line(error)))}"
    return ""


def check_experiment(name: str, experiment: object) -> None:
    """Check that an experiment, as MLflow gives it, was not deleted.

    Raises:
        DeletedExperiment: it was.
    """
    if experiment is not None and getattr(experiment, "lifecycle_stage", "") != "active":
        command = f"mlflow experiments restore -x {getattr(experiment, 'experiment_id', '')}"
        raise DeletedExperiment(f"the experiment {name!r} was deleted: restore it ({command}) or name another one")


def _status(error: BaseException) -> int:
    """The status of an HTTP answer, 0 if it was none."""
    read = getattr(error, "get_http_status_code", None)
    status = read() if callable(read) else getattr(getattr(error, "response", None), "status_code", 0)
    found = next((word for word in ("401", "403", "404") if f"error code {word}" in str(error)), None)
    return int(found or status or 0)


def _short(text: str) -> str:
    text = text.partition(" [SQL")[0]
    return text if len(text) <= 200 else f"{text[:200]}..."


if __name__ == "__main__":
    question = json.load(sys.stdin)
    print(_said_by(question["uri"], question["experiment"], make=question["make"]))
