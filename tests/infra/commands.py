"""Command lines that only a cloud runs: run in a shell with stand-ins, and parsed by the real command."""

import contextlib
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click

GROUPS = {"ray": "ray.scripts.scripts", "mlflow": "mlflow.cli"}
"""The modules of the command lines; each takes seconds to import."""


def tool(name: str) -> str:
    """The path of a program that requirements-dev.txt installs."""
    found = shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    assert found, f"{name} is missing: install requirements-dev.txt"
    return found


def stand_ins(folder: Path, programs: tuple[str, ...]) -> Path:
    """Creates executables in `folder` that append their command line to `folder/calls` and succeed."""
    folder.mkdir(exist_ok=True)
    for program in programs:
        script = folder / program
        script.write_text(
            f"#!{sys.executable} -S\nimport json, sys\n"
            f"open({str(folder / 'calls')!r}, 'a').write(json.dumps([{program!r}, *sys.argv[1:]]) + chr(10))\n"
        )
        script.chmod(0o755)
    return folder


def called(folder: Path) -> list[list[str]]:
    """The calls of the stand-ins in `folder` so far."""
    calls = folder / "calls"
    return [json.loads(line) for line in calls.read_text().splitlines()] if calls.exists() else []


def run_line(line: str, folder: Path, **environment: str) -> list[list[str]]:
    """Runs a shell line with the stand-ins of `folder` first on PATH; returns the calls that it made."""
    before = len(called(folder))
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-c", line], env={**environment, "PATH": path}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{line}\n{done.stderr}"
    return called(folder)[before:]


def parse(words: list[str]) -> None:
    """Parses a `ray` or `mlflow` command line without running it.

    Raises:
        click.UsageError: there is no such command, option or value.
    """
    group = importlib.import_module(GROUPS[words[0]]).cli
    context = click.Context(group)
    name, command, rest = group.resolve_command(context, words[1:])
    assert command is not None
    with contextlib.redirect_stdout(io.StringIO()):
        command.make_context(name, rest, parent=context)
