"""The watch that keeps tests without the mark `cluster` from starting Ray."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.cluster import until
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
        assert watch.look() == {started}
        subprocess.run(["pkill", "-P", str(shell.pid)], check=True)
    watch.end()


def test_the_mark_is_set_where_ray_is_used(request: pytest.FixtureRequest) -> None:
    marked = {item.path.name for item in request.session.items if item.get_closest_marker("cluster")}
    there = {item.path.name for item in request.session.items}
    assert marked >= there & {"test_run.py", "test_killed.py", "test_endings.py", "test_local.py"}
    assert request.node.get_closest_marker("cluster") is None
