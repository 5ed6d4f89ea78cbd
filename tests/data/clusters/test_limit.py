"""The limit of time: a call that hangs in C ends the process with one line and code 2, and leaves nothing behind."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from data.clusters import joining
from data.clusters.joining import JOIN_SECONDS, START_SECONDS, limit
from data.clusters.limit import ends_within
from data.errors import NoCluster
from tests.paths import ROOT

HANGS = """
import signal, subprocess, sys, time
from data.clusters.limit import ends_within
before = subprocess.Popen(["sleep", "60"])
with ends_within(0.5, lambda: "job.yaml: too slow"):
    child = subprocess.Popen([sys.executable, "-c", "import subprocess; subprocess.run(['sleep', '60'])"])
    time.sleep(0.3)
    print(before.pid, child.pid, flush=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals))  # as a call in C, it is not interrupted
    time.sleep(60)
"""


def test_a_hanging_call() -> None:
    began = time.monotonic()
    ended = subprocess.run([sys.executable, "-c", HANGS], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (2, "error: job.yaml: too slow\n")
    assert time.monotonic() - began < 30
    assert not any(psutil.pid_exists(int(pid)) for pid in ended.stdout.split())


def test_a_call_that_fails() -> None:
    """What it had started ends, and only that."""
    started: list[int] = []

    def fails() -> None:
        with ends_within(60, lambda: ""):
            started.append(subprocess.Popen(["sleep", "60"]).pid)
            raise KeyError

    other = subprocess.Popen(["sleep", "60"])
    try:
        with pytest.raises(KeyError):
            fails()
        assert not psutil.pid_exists(started[0])
        assert other.poll() is None
        with ends_within(0.2, lambda: "not said"):
            pass
        time.sleep(0.3)
    finally:
        other.kill()
        other.wait()


def test_the_limits_are_set_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(START_SECONDS, raising=False)
    assert (limit(START_SECONDS), limit(JOIN_SECONDS)) == (60, 20)
    monkeypatch.setenv(START_SECONDS, "180")
    assert limit(START_SECONDS) == 180
    for text in ("soon", "-1", "0", "nan", "inf"):
        monkeypatch.setenv(START_SECONDS, text)
        with pytest.raises(NoCluster, match=f"^CLUSTER_START_SECONDS = {text}: expected a number of seconds > 0"):
            limit(START_SECONDS)


@pytest.mark.cluster
def test_a_start_that_takes_too_long() -> None:
    """Ray's first process starts, and nothing is left of it."""
    code = "import os; from data.clusters import joining; print(os.getpid(), flush=True); joining.start('job.yaml')"
    environment = {**os.environ, START_SECONDS: "0.6"}
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: job.yaml: Ray has not started on this machine within 0.6 s (load ")
    assert f"or set {START_SECONDS}=1.8; Ray's logs are in {joining.ray_folder()}/session_latest/logs" in line
    session = f"_{ended.stdout.strip()}"
    left = [
        each for each in psutil.process_iter(["cmdline"]) if any(session in word for word in each.info["cmdline"] or ())
    ]
    assert left == []
