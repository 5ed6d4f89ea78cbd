"""Of all tests: one token for the clusters they start, the marks `cluster` and `servers`, and the longest first."""

import os
import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from infra.local import ranks
from tests.cluster import RayHead, start_head
from tests.paths import ROOT
from tests.servers import starts_servers
from tests.watch import Watch

# Ray reads its authentication once, when it is first imported, and test modules import it.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

# Threads that wait for each other's work must not spin: processes that share the suite would wait for the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell that starts the tests in the background has them ignore Ctrl-C; what they start must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

ranks.preload("tests.ranks_preload")


# Fixtures with a Ray node. A test that starts a node by itself or a job carries the mark `cluster` in its file.
CLUSTERS = {"ray_head", "local_cluster"}
HEAD = "the tests that share a head"
ON_THE_HEAD = (
    *(
        f"tests/runs/test_{name}.py"
        for name in ("endings", "evaluate", "extensions", "killed", "odd_names", "rotten", "run")
    ),
    "tests/orchestrator/cluster/test_board.py",
    "tests/orchestrator/cluster/test_code_check.py",
    "tests/orchestrator/cluster/test_launch.py",
)
LONGEST_FIRST = ("runs", "orchestrator", "benchmarks", "model")
NODES = {"raylet"}
SERVERS = {"gcp_storage_emulator", "mlflow", "moto.server"}
STARTED = Watch(*NODES, *SERVERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the marks; the longest files come first, so that processes that share the suite end together."""
    for item in items:
        if CLUSTERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")
        elif starts_servers(item):
            item.add_marker("servers")

    def turn(item: pytest.Item) -> tuple[int, int]:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        place = LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)
        marks = ("cluster", "servers")
        return next((n for n, mark in enumerate(marks) if item.get_closest_marker(mark)), len(marks)), place

    items.sort(key=turn)


class OneHead(LoadFileScheduling):
    """Whole files go to processes, and all files that use a head and its long runs to one process."""

    def _split_scope(self, nodeid: str) -> str:
        return HEAD if nodeid.startswith(ON_THE_HEAD) else str(super()._split_scope(nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> OneHead | None:
    """For --dist loadfile."""
    return OneHead(config, log) if config.getvalue("dist") == "loadfile" else None


@pytest.fixture(autouse=True)
def no_server(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test without the marks starts no Ray node and no server; `make quick` relies on it."""
    before = set(STARTED.seen)
    yield
    if request.node.get_closest_marker("cluster"):
        STARTED.look()
        return
    refused = NODES | SERVERS
    if request.node.get_closest_marker("servers"):
        STARTED.look()
        refused = NODES
    for process, program in STARTED.seen.items():
        if process not in before and program in refused:
            mark = "cluster" if program in NODES else "servers"
            pytest.fail(f"{program} was started (process {process}): mark what starts it with pytest.mark.{mark}")


@pytest.fixture(autouse=True)
def no_named_cluster(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test without the mark `cluster` finds no cluster: tests beside it start some that `ray start` would name."""
    if not request.node.get_closest_marker("cluster"):
        monkeypatch.setenv("RAY_ADDRESS", "local")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed digits: folders train/ and test/. Not to be written to."""
    from data.sources.digits import pack_digits

    folder = tmp_path_factory.mktemp("digits")
    pack_digits(str(folder))
    return folder


@pytest.fixture(scope="session")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayHead]:
    """A head node of this test session's own, with a job server; it ends with the session."""
    with start_head(tmp_path_factory.mktemp("home")) as head:
        yield head
