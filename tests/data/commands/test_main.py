import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from data import Index, Shard
from data.__main__ import COMMANDS, main
from data.shards.index import write_index


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "data", *words], capture_output=True, text=True, check=False)


def test_the_help_names_every_command(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert len(COMMANDS) >= 4
    for command in ("pack", "verify", "dedup", "show"):
        assert f"    {command} " in out


@pytest.mark.parametrize("command", ["pack", "verify", "dedup", "show"])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    out = capsys.readouterr().out
    assert left.value.code == 0
    assert f"usage: python -m data {command}" in out
    assert "--json" in out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["verify"], "required: URL"),
        (["show"], "required: URL"),
        (["dedup", "URL"], "required: --against"),
        (["nothing"], "invalid choice: 'nothing'"),
        ([], "required: COMMAND"),
        (["verify", "URL", "--workers", "0"], "--workers is at least 1"),
        (["dedup", "URL", "--against", "URL", "--workers", "-1"], "--workers is at least 1"),
        (["show", "URL", "--sheet", "a.jpg", "--no-sheet"], "not allowed with"),
    ],
)
def test_wrong_words_are_one_line(words, says, capsys):
    with pytest.raises(SystemExit) as left:
        main(words)
    out, err = capsys.readouterr()
    assert (left.value.code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
    assert "--help explains" in err


@pytest.mark.parametrize(
    "words", [["verify", "{}"], ["show", "{}"], ["dedup", "{}", "--against", "{}"], ["pack", "--index-only", "{}"]]
)
def test_a_place_with_nothing_is_one_line(words, tmp_path, capsys):
    code = main([word.format(tmp_path / "nothing") for word in words])
    out, err = capsys.readouterr()
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert err.startswith(f"error: python -m data {words[0]}: {tmp_path}/nothing: ")


def test_the_exit_code_reaches_the_shell(tmp_path):
    result = run("verify", str(tmp_path / "nothing"))
    assert (result.returncode, result.stdout, len(result.stderr.splitlines())) == (2, "", 1)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_ends_it_without_a_traceback(tmp_path, workers):
    """During shards that would take hours: sparse files of a terabyte."""
    names = ("a.tar", "b.tar")
    for name in names:
        (tmp_path / name).write_bytes(b"")
        os.truncate(tmp_path / name, 1 << 40)
    shards = tuple(Shard(name, 1, 1 << 40, name, np.zeros(1, np.int64)) for name in names)
    write_index(Index(str(tmp_path / "index.json"), shards, 1, False))
    words = [sys.executable, "-m", "data", "verify", str(tmp_path), "--workers", workers]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        wait_until_open(tmp_path / "a.tar", process.pid)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)  # ends when the last process that can write has ended
    assert (process.returncode, out, err) == (130, "", "python -m data verify: interrupted\n")


def wait_until_open(path: Path, pid: int) -> None:
    """Wait until the process or a child of it has the file open."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        family = [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                if any(file.path == str(path) for file in psutil.Process(member).open_files()):
                    return
        time.sleep(0.05)
    raise TimeoutError(path)


def test_names_that_are_no_text_are_printed(tmp_path):
    """As escapes, where the terminal takes text alone."""
    dest = os.fsdecode(os.fsencode(tmp_path) + b"/\xff")
    run = subprocess.run(
        [sys.executable, "-m", "data", "pack", "digits", dest],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
        capture_output=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, b"")
    assert rb"/\udcff/test" in run.stdout
