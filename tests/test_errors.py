"""Errors of all commands begin with `error: `, on one line of stderr, and the exit code is 2."""

import importlib

import pytest

COMMANDS = {
    "orchestrator": ("run", "check", "export", "predict", "features", "schema"),
    "data": ("pack", "verify", "dedup", "show"),
    "model": ("summary", "convert"),
}
WRONG = [
    *((package, [command, "--no-such-option"]) for package, commands in COMMANDS.items() for command in commands),
    *((package, words) for package in COMMANDS for words in ([], ["no-such-command"])),
    ("orchestrator", ["run", "no/such.yaml"]),
    ("orchestrator", ["check", "no/such.yaml"]),
    ("data", ["verify", "/no/such/set"]),
    ("data", ["show", "/no/such/set"]),
    ("model", ["summary", "ViT-Q/16"]),
]


@pytest.mark.parametrize(("package", "words"), WRONG)
def test_an_error_is_one_line(package: str, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = importlib.import_module(f"{package}.__main__").main(words)
    except SystemExit as stop:  # argparse
        code = stop.code
    output = capsys.readouterr()
    assert code == 2
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1


def test_no_command_is_left_out() -> None:
    for package, names in COMMANDS.items():
        modules = importlib.import_module(f"{package}.__main__").COMMANDS
        assert {module.__name__.rpartition(".")[2] for module in modules} == set(names)
