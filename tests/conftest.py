"""Of all tests: one token for the clusters they start, the mark `cluster`, and the longest first."""

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
from tests.watch import Watch

# Ray reads its authentication once, when it is first imported, and test modules import it.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)

# Threads that wait for each other's work must not spin: processes that share the suite would wait for the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell that starts the tests in the background has them ignore Ctrl-C; what they start must not.
signal.signal(signal.SIGINT, signal.default_int_handler)

ranks.preload("tests.ranks_preload")


# Fixtures with a Ray node. A test that starts a node by itself, a job or MLflow's server carries the mark in its file.
CLUSTERS = {"ray_head", "local_cluster"}
HEAD = "the tests that share a head"
ON_THE_HEAD = (
    *(
        f"tests/runs/test_{name}.py"
        for name in ("endings", "evaluate", "extensions", "killed", "odd_names", "rotten", "run")
    ),
    "tests/orchestrator/cluster/test_code_check.py",
    "tests/orchestrator/cluster/test_launch.py",
)
LONGEST_FIRST = ("runs", "orchestrator", "benchmarks", "model")
RAYLETS = Watch("raylet")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Set the mark `cluster`; the longest files come first, so that processes that share the suite end together."""
    for item in items:
        if CLUSTERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("cluster")

    def turn(item: pytest.Item) -> tuple[bool, int]:
        folder = item.path.relative_to(ROOT / "tests").parts[0]
        place = LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)
        return item.get_closest_marker("cluster") is None, place

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
def no_raylet(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test without the mark `cluster` starts no Ray node; `make quick` relies on it."""
    before = set(RAYLETS.seen)
    yield
    if request.node.get_closest_marker("cluster"):
        RAYLETS.look()
    elif started := RAYLETS.seen - before:
        pytest.fail(f"a Ray node was started (process {min(started)}): mark what starts it with pytest.mark.cluster")


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
