"""Joining the cluster that RAY_ADDRESS or `ray start` names, or starting a private one: within limits of time, and with
one line if that fails.
"""

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.clusters.address import check_address
from data.clusters.head import ask_head
from data.clusters.limit import ends_within
from data.clusters.machine import check_machine, ray_folder
from data.errors import NoCluster

START_SECONDS, JOIN_SECONDS = "CLUSTER_START_SECONDS", "CLUSTER_JOIN_SECONDS"
"""Names of environment variables: how long the start of a private cluster may take, and joining one."""
DEFAULTS = {START_SECONDS: 60.0, JOIN_SECONDS: 20.0}
PORT_WAIT = "RAY_gcs_server_port_wait_time_s"  # Ray's own limit for its first process: 30 s unless set
QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
ANSWER_SECONDS = 3.0  # time limit of a connection to a cluster
AUTO = "auto"  # Ray's word for the cluster that `ray start` began on this machine

_log = logging.getLogger(__name__)


def current_cluster() -> Path:
    """The file with the address of the cluster that `ray start` began here. A killed cluster leaves it behind."""
    return ray_folder() / "ray_current_cluster"


def cluster_is_named() -> bool:
    """Whether there is a cluster to join: RAY_ADDRESS names one, or one that `ray start` began here still runs.

    If not, start one: with `address="auto"` Ray would still read the stale address file of a cluster that has ended.
    """
    address = os.environ.get("RAY_ADDRESS")
    return _answers(current_cluster()) if not address else address != "local"


def check() -> None:
    """Check what can be checked before Ray starts or joins. Call it before `start` or `join`.

    Raises:
        NoCluster: the address of the named cluster is wrong, or no head answers there in time; or, for a private one,
            this machine lacks something.
    """
    if not cluster_is_named():
        check_machine()
        limit(START_SECONDS)
        return
    with _named():
        address = _address()
        ask_head(address, check_address(address, limit(JOIN_SECONDS)))


def start(owner: str, **options: Any) -> None:
    """Start a private cluster on this machine. Ends this process with code 2 if that takes longer than START_SECONDS.

    Args:
        owner: what begins that line, such as the job's file.
        options: of `ray.init`.

    Raises:
        NoCluster: Ray fails. None of its processes is left.
    """
    import ray

    seconds = limit(START_SECONDS)
    os.environ.setdefault(PORT_WAIT, f"{seconds:.0f}")
    logs = ray_folder() / "session_latest" / "logs"

    def line() -> str:
        return (
            f"{owner}: Ray has not started on this machine within {seconds:g} s (load {os.getloadavg()[0]:.0f} on "
            f"{os.cpu_count()} CPUs): run the command again when less runs here, or set {START_SECONDS}="
            f"{3 * seconds:g}; Ray's logs are in {logs}"
        )

    keep_pages_off()
    with ends_within(seconds, line), _sigterm_as_in_a_shell():
        try:
            ray.init(address="local", include_dashboard=False, **QUIET, **options)
        except Exception as error:  # Ray raises many kinds here
            text = f"Ray cannot start on this machine: {_first_sentence(error)}; its logs are in {logs}"
            raise NoCluster(text) from error


def join(owner: str, **options: Any) -> None:
    """Join the named cluster. Ends this process with code 2 if that takes longer than JOIN_SECONDS.

    Args:
        owner: what begins that line, such as the job's file.
        options: of `ray.init`.

    Raises:
        NoCluster: the cluster refuses this process.
    """
    import ray

    seconds = limit(JOIN_SECONDS)
    keep_pages_off()
    with _named(), ends_within(seconds, lambda: f"{owner}: {_where()}: {_not_joined(seconds)}"):
        address = _address()
        with _sigterm_as_in_a_shell():
            try:
                ray.init(address=address, **QUIET, **options)
            except Exception as error:  # Ray raises many kinds here
                raise NoCluster(_first_sentence(error)) from error


def keep_pages_off() -> None:
    """Have Ray log its messages about processes and nodes that died, and not print them: each fills a page. Those who
    handle a death say so in a line.
    """
    from ray._private import worker

    def note(data: dict[str, Any], ignore_prefix: bool) -> None:
        _log.info("Ray: %s", " ".join(data["lines"]))

    worker.print_to_stdstream = note  # Ray has no setting for it


def limit(name: str) -> float:
    """The seconds that an environment variable sets.

    Raises:
        NoCluster: they are no positive number.
    """
    text = os.environ.get(name) or str(DEFAULTS[name])
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e6:
        raise NoCluster(f"{name} = {text}: expected a number of seconds > 0, such as {DEFAULTS[name]:g}")
    return seconds


@contextmanager
def _named() -> Iterator[None]:
    """Adds to an error which cluster it is about."""
    try:
        yield
    except NoCluster as error:
        advice = "" if os.environ.get("RAY_ADDRESS") else "; RAY_ADDRESS=local starts a private one"
        raise NoCluster(f"{_where()}: cannot join that cluster: {error}{advice}") from error


def _where() -> str:
    named = os.environ.get("RAY_ADDRESS")
    return f"RAY_ADDRESS = {named}" if named else f"the cluster in {current_cluster()}"


def _address() -> str:
    named = os.environ.get("RAY_ADDRESS", "")
    if named not in ("", AUTO):
        return named.strip()
    try:
        return current_cluster().read_text().strip()
    except (OSError, UnicodeError):
        raise NoCluster("`ray start` has begun none on this machine; name the head's HOST:PORT") from None


def _answers(file: Path) -> bool:
    """Whether a server accepts connections at the address (HOST:PORT) in a file."""
    try:
        host, _, port = file.read_text().strip().rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS).close()
    except (OSError, ValueError, OverflowError):
        return False
    return True


def _not_joined(seconds: float) -> str:
    """Why joining takes so long, as far as it can be seen."""
    from ray._private.services import find_node_ids

    longer = f"{JOIN_SECONDS}={3 * seconds:g} waits longer"
    if not find_node_ids():
        return (
            "a head answers, and no node of it runs on this machine: run the command on one of its nodes, or "
            f"`ray job submit JOB`; {longer}"
        )
    return f"a head answers, and this process has not joined within {seconds:g} s; {longer}"


def _first_sentence(error: BaseException) -> str:
    """The first sentence of an error, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text.partition(". ")[0].rstrip(".")


@contextmanager
def _sigterm_as_in_a_shell() -> Iterator[None]:
    """Ray's handler of SIGTERM ends the process with the signal's number as its code; a shell adds 128."""
    try:
        yield
    except SystemExit as stop:
        raise SystemExit(128 + signal.SIGTERM if stop.code == signal.SIGTERM else stop.code) from None
