"""What the documents name exists: paths, links, modules, commands with their options, and messages."""

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT

LIST = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
LISTED = subprocess.run(LIST, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
FILES = frozenset(name for name in LISTED if (ROOT / name).is_file())
FOLDERS = frozenset(str(parent) for name in FILES for parent in Path(name).parents)
DOCUMENTS = sorted(name for name in FILES if name.endswith(".md"))
PACKAGES = ("orchestrator", "data", "model", "benchmarks", "infra")
CODE = sorted(name for name in FILES if name.endswith(".py") and name.split("/")[0] in PACKAGES)

PYTHONS_FILES = {"sitecustomize.py"}
RAYS_WORDS = {"its worker process has died"}  # in messages that we pass on

# Runs every command of a list in one process, which imports torch once.
RUN_HELP = """
import contextlib, io, json, runpy, sys
for module, *words in json.load(sys.stdin):
    sys.argv = [module, *words, "--help"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
    except BaseException as error:
        code = repr(error)
    print(json.dumps([module, *words]), json.dumps(code), json.dumps(said.getvalue()), sep="\\t")
"""


@functools.cache
def read(name: str) -> str:
    return (ROOT / name).read_text()


def current_text(document: str) -> str:
    """The document; of the changelog's tables of moved things only the last column, which says where they are now."""
    if document != "CHANGELOG.md":
        return read(document)
    return re.sub(r"^\|.*\| ([^|]*) \|$", r"\1", read(document), flags=re.MULTILINE)


def code_spans(text: str) -> list[str]:
    prose = re.sub(r"^```.*?^```$|^    .*?$", "", text, flags=re.DOTALL | re.MULTILINE)
    return re.findall(r"`([^`\n]+)`", prose)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths_exist(document: str) -> None:
    here = Path(document).parent
    missing = []
    for span in code_spans(current_text(document)):
        if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*/?", span):
            continue
        path = span.rstrip("/")
        places = {path, str(here / path)}
        if span.endswith(".py") and "/" not in span:
            found = any(Path(name).name == span for name in FILES)
        elif span.split("/")[0] in FOLDERS and (span.endswith("/") or "." in Path(span).name):
            found = bool(places & FILES) or bool(places & FOLDERS)
        else:
            continue
        if not found:
            missing.append(span)
    assert not missing


def test_paths_in_docstrings_and_comments_exist() -> None:
    ends = {"/".join(name.split("/")[i:]) for name in FILES for i in range(name.count("/") + 1)}
    missing = {
        f"{name}: {path}"
        for name in CODE
        for path in re.findall(r"(?<![\w/.{}-])(?:\w+/)*\w+\.(?:py|sh)\b(?!\.)", read(name))
        if path not in ends | PYTHONS_FILES
    }
    assert not missing


def anchors(document: str) -> set[str]:
    """As GitHub makes them of headings."""
    text = re.sub(r"^```.*?^```$", "", read(document), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"\s*\n\s*", " ", read(document))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        name = str((ROOT / document).parent.joinpath(path).resolve().relative_to(ROOT)) if path else document
        if name not in FILES | FOLDERS or (anchor and anchor not in anchors(name)):
            broken.append(target)
    assert not broken


def module_file(module: str) -> str | None:
    base = module.replace(".", "/")
    return next((name for name in (f"{base}.py", f"{base}/__init__.py") if name in FILES), None)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_modules_have_the_names_that_are_used(document: str) -> None:
    """`from MODULE import NAMES` in examples, and dotted names in the text (`data.` and `model.` may be job keys)."""
    text = current_text(document)
    uses = [
        (module, name.strip())
        for module, names in re.findall(rf"from ((?:{'|'.join(PACKAGES)})\b[\w.]*) import ([\w, ]+)", text)
        for name in re.sub(r" as \w+", "", names).split(",")
    ]
    for span in code_spans(text):
        if re.fullmatch(r"(?:orchestrator|benchmarks|infra)(\.\w+)+", span) and span not in FILES:
            module, _, name = span.rpartition(".")
            uses.append((module, name))
    wrong = []
    for module, name in uses:
        file = module_file(module) or module_file(module.rpartition(".")[0])  # else a method of a class in a module
        if not module_file(f"{module}.{name}") and not (file and re.search(rf"\b{name}\b", read(file))):
            wrong.append(f"{module}: {name}")
    assert not wrong


def commands() -> dict[tuple[str, ...], set[str]]:
    """Every `python -m` of our packages in the documents, with its words, such as "run", and all of its options."""
    found: dict[tuple[str, ...], set[str]] = {}
    for document in DOCUMENTS:
        text = re.sub(r"\\\n\s*", " ", current_text(document))
        for module, rest in re.findall(rf"python -m ((?:{'|'.join(PACKAGES)})\b[a-z_.]*)(?![\w.])([^`\n|#;)]*)", text):
            words = re.match(r"(?: [a-z][a-z0-9-]*(?=\s|$))*", rest)
            command = (module, *(words[0].split() if words else ()))
            found.setdefault(command, set()).update(re.findall(r"(?<=\s)--[a-z][\w-]*", rest))
    return found


def test_commands_and_their_options_exist() -> None:
    wanted = commands()
    process = subprocess.run(
        [sys.executable, "-c", RUN_HELP], input=json.dumps(list(wanted)), cwd=ROOT, capture_output=True, text=True
    )
    answers = [map(json.loads, line.split("\t")) for line in process.stdout.splitlines()]
    problems = {}
    for command, code, said in answers:
        unknown = {option for option in wanted.pop(tuple(command)) if option not in said}
        if code not in (0, None) or unknown:
            problems[" ".join(command)] = code or unknown
    assert not problems
    assert not wanted, process.stderr


def test_operations_explains_messages_that_are_said() -> None:
    """Capitals, numbers and ... in the first column of the failure tables stand for values; two more words may."""
    said = "\n".join(text for name in CODE if name.startswith(("orchestrator/", "data/")) for text in texts(name))
    section = read("docs/operations.md").split("## What each failure looks like")[1].split("### Preemption")[0]
    messages = {
        piece.strip()
        for row in re.findall(r"^\| (.*?) \|", section, flags=re.MULTILINE)
        for span in code_spans(row)
        for piece in re.split(r"\b[A-Z]+\b|\.\.\.|\d+|[:;,()]", span)
        if not re.match(r"ray |[\w/]+$", span)
    }
    unsaid = set()
    for message in messages - RAYS_WORDS:
        words = message.split()
        least = max(2, len(words) - 2)
        runs = [" ".join(words[i : i + least]) for i in range(len(words) - least + 1)]
        if runs and not any(run in said for run in runs):
            unsaid.add(message)
    assert not unsaid


def texts(name: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(read(name))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
