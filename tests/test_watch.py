"""What keeps Ray, servers and groups of processes out of `make quick`: the watch, and the marks."""

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.local import stores
from infra.local.ranks import run_ranks
from tests.cluster import until
from tests.servers import starts
from tests.watch import Watch


def test_a_program_is_seen_that_a_child_of_a_child_starts(tmp_path: Path) -> None:
    """By its file's name, so that a script of that name does not count."""
    program = tmp_path / "napper"
    shutil.copy("/bin/sleep", program)
    script = tmp_path / "scripts" / "napper"
    script.parent.mkdir()
    script.write_text("#!/bin/sh\nsleep 60\n")
    script.chmod(0o755)
    watch = Watch("napper")
    with subprocess.Popen(["sh", "-c", f"{script} & {program} 60 & echo $!; wait"], stdout=subprocess.PIPE) as shell:
        assert shell.stdout is not None
        started = int(shell.stdout.readline())
        until(lambda: watch.seen, "the program is seen")
        assert watch.look() == {started: "napper"}
        subprocess.run(["pkill", "-P", str(shell.pid)], check=True)
    watch.end()


def test_a_module_is_seen_that_python_runs() -> None:
    watch = Watch("http.server")
    command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        until(lambda: watch.seen, "the server is seen")
        server.kill()
    assert watch.seen == {server.pid: "http.server"}
    watch.end()


def marked(request: pytest.FixtureRequest, mark: str) -> set[str]:
    """The files in which a test carries a mark."""
    return {item.path.name for item in request.session.items if item.get_closest_marker(mark)}


def test_the_mark_is_set_where_ray_is_used(request: pytest.FixtureRequest) -> None:
    there = {item.path.name for item in request.session.items if item.path.parent.name == "runs"}
    assert marked(request, "cluster") >= there & {"test_run.py", "test_killed.py", "test_endings.py", "test_local.py"}
    assert request.node.get_closest_marker("cluster") is None


def through_a_helper() -> None:
    with reached_by_a_method() as server:
        assert server


def reached_by_a_method() -> "Bucket":
    return Bucket()


class Bucket:
    def __enter__(self) -> str:
        return ExitStack().enter_context(stores.gcs_server()).url

    def __exit__(self, *_: object) -> None:
        pass


def in_a_function_inside() -> None:
    def inner() -> None:
        run_ranks(1, print)

    inner()


@pytest.mark.parametrize(
    "test",
    [through_a_helper, in_a_function_inside, functools.partial(run_ranks, 1), functools.cache(in_a_function_inside)],
)
def test_what_starts_a_server_is_found(test: Callable[..., None]) -> None:
    assert starts(test)


@pytest.mark.parametrize("test", [until, stores.file_server, print, None, "run_ranks", Watch])
def test_what_starts_none_is_not(test: object) -> None:
    assert not starts(test)
