"""Tables of names, and the modules of `extensions` that add to them."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from orchestrator import JobError
from orchestrator.job import choices, tables
from orchestrator.job.docs import json_schema
from orchestrator.job.keys import keys_of
from orchestrator.job.kinds import KINDS, PretrainJob
from orchestrator.job.tables import Table
from orchestrator.job.values import Duration, Positive, Section
from tests.orchestrator.job.job_files import VALID, line_of, load_text

TABLES: list[Table[Any]] = [tables.OBJECTIVES, tables.OPTIMIZERS, tables.EVALUATORS, tables.SOURCES, KINDS]
LION = VALID.replace("name: adamw", "name: lion")


class Lion(choices.Optimizer):
    """Sign of a moving average."""

    name: Literal["lion"]
    """The optimizer."""
    beta: Positive = 0.9
    """Decay rate of the average."""


class Neighbours(Section):
    """Nearest neighbours."""

    k: int = 5
    """How many."""


class Seldom(choices.Evaluator):
    """An evaluator with a time of its own."""

    k: int = 5
    """How many."""


@pytest.fixture(autouse=True)
def _own_tables_folder_and_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for table in TABLES:
        monkeypatch.setattr(table, "_entries", dict(table._entries))
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def test_a_new_line_is_known_to_jobs_their_errors_and_the_schema() -> None:
    tables.OPTIMIZERS.add("lion", Lion, "mypackage.lion.create")
    job = load_text(LION)
    assert isinstance(job, PretrainJob)
    assert isinstance(job.optimizer, Lion)
    assert job.model_dump()["optimizer"] == {
        "name": "lion",
        "lr": 1e-3,
        "weight_decay": 0.1,
        "grad_clip": 1.0,
        "ema": None,
        "beta": 0.9,
    }
    assert line_of(LION, "optimizer.beta=-1") == "job.yaml: optimizer.beta = -1: expected a number > 0 (from --set)"
    assert line_of(LION, "optimizer.eps=1") == (
        "job.yaml: optimizer.eps: only for optimizer.name = adamw, and it is lion (from --set)"
    )
    assert line_of(LION, "optimizer.name=lino") == (
        "job.yaml: optimizer.name = lino: expected adamw, sgd or lion; did you mean lion? (from --set)"
    )
    assert {key.path: key.only for key in keys_of(PretrainJob)}["optimizer.beta"] == "lion"
    assert "Lion" in json_schema()["$defs"]


def test_evaluators_have_their_name_as_a_key() -> None:
    tables.EVALUATORS.add("near", Neighbours, "mypackage.near.measure")
    text = VALID + "evaluators:\n  near: {k: 3}\n"
    assert load_text(text).evaluators == {"near": Neighbours(k=3)}
    assert load_text(text).model_dump()["evaluators"] == {"near": {"k": 3}}
    assert load_text(VALID, "evaluators.near={}").evaluators == {"near": Neighbours()}
    assert load_text(text, "evaluators.near=null").evaluators == load_text(text, "evaluators=null").evaluators == {}
    assert load_text(VALID, "evaluators.near.k=7").evaluators == {"near": Neighbours(k=7)}
    assert line_of(text, "evaluators.near.k=x") == "job.yaml: evaluators.near.k = x: expected an integer (from --set)"
    assert (
        line_of(text, "evaluators.near.kk=1")
        == "job.yaml: evaluators.near.kk: unknown key; did you mean evaluators.near.k? (from --set)"
    )
    assert (
        line_of(text, "evaluators.nea.k=1")
        == "job.yaml: evaluators.nea: unknown key; did you mean evaluators.near? (from --set)"
    )
    assert (
        line_of(text, "evaluators=3")
        == "job.yaml: evaluators = 3: expected a section with few_shot, knn, probe, logistic, near (from --set)"
    )
    assert line_of(text, "evaluators.near=3") == "job.yaml: evaluators.near = 3: expected a section with k (from --set)"


def test_without_an_evaluator_in_the_table_none_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables.EVALUATORS, "_entries", {})
    assert (
        line_of(VALID, "evaluators.near.k=1") == "job.yaml: evaluators.near: unknown key; there are none (from --set)"
    )


@pytest.mark.parametrize(
    ("table", "name"),
    [(table, name) for table in TABLES for name in table.sections],
    ids=lambda value: value if isinstance(value, str) else value.chosen_by,
)
def test_every_implementation_of_ours_is_there(table: Table[Any], name: str) -> None:
    if table[name].path is None:
        with pytest.raises(JobError, match=rf"^kind = {name}: this version checks it, but has no implementation"):
            table.implementation(name)
    else:
        assert callable(table.implementation(name))


def test_a_function_gets_the_keys_of_its_own() -> None:
    tables.OPTIMIZERS.add("lion", Lion, "builtins.dict")
    assert tables.OPTIMIZERS.bound(Lion(name="lion", lr=1.0, weight_decay=0.1, beta=0.5))() == {"beta": 0.5}
    tables.SOURCES.add("shapes", choices.Shapes, "orchestrator.run.pack.shapes")  # as it was: nothing changes
    shapes = tables.SOURCES.bound(choices.Shapes(source="shapes", to="x", samples=7))
    assert shapes.keywords == {  # type: ignore[attr-defined]
        "samples": 7,
        "test_samples": 5000,
        "classes": 10,
        "image_size": 64,
        "multi_label": False,
    }
    tables.EVALUATORS.add("near", Neighbours, "builtins.dict")
    assert tables.EVALUATORS.bound(Neighbours(k=3), "near")() == {"k": 3}
    tables.EVALUATORS.add("seldom", Seldom, "builtins.dict")
    assert tables.EVALUATORS.bound(Seldom(k=3, every=Duration(steps=5)), "seldom")() == {"k": 3}, "every is ours"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("nowhere.lion.create", "ModuleNotFoundError: No module named 'nowhere'"),
        ("json.lion", "AttributeError: module 'json' has no attribute 'lion'"),
        ("json.__name__", None),
    ],
)
def test_a_function_that_cannot_be_imported(path: str, reason: str | None) -> None:
    tables.OPTIMIZERS.add("lion", Lion, path)
    with pytest.raises(JobError) as caught:
        tables.OPTIMIZERS.implementation("lion")
    expected = f"cannot import {path} ({reason})" if reason else f"{path} is not a function"
    assert str(caught.value) == f"optimizer.name = lion: {expected}"


def test_lines_that_do_not_fit() -> None:
    class Unnamed(choices.Optimizer):
        """No name."""

    class Named(choices.Optimizer):
        """Any name."""

        name: str

    here = f"{__name__}.test_lines_that_do_not_fit.<locals>"
    for name, section, path, line in [
        ("adamw", Lion, "a.b", "the name is taken by orchestrator.job.choices.AdamW"),
        ("knn", Neighbours, "a.b", f"{__name__}.Neighbours is not derived from orchestrator.job.choices.Optimizer"),
        ("lion", Unnamed, "a.b", f'{here}.Unnamed lacks the key name: Literal["lion"]'),
        ("lion", Named, "a.b", f'{here}.Named lacks the key name: Literal["lion"]'),
        ("lino", Lion, "a.b", f'{__name__}.Lion lacks the key name: Literal["lino"]'),
        ("lion", Lion, "create", "expected a dotted path such as package.module.function, found create"),
    ]:
        with pytest.raises(JobError) as caught:
            tables.OPTIMIZERS.add(name, section, path)  # type: ignore[arg-type]
        assert str(caught.value) == f"optimizer.name = {name}: {line}"


# ---------------------------------------------------------------------------------------------------------- extensions

MODULE = """
from typing import Literal
from orchestrator.job import choices, tables

class Lion(choices.Optimizer):
    name: Literal["lion"]
    beta: float = 0.9

tables.OPTIMIZERS.add("lion", Lion, "lions.create")
"""


def test_modules_beside_the_job_file_add_to_the_tables() -> None:
    Path("lions.py").write_text(MODULE)
    job = load_text(f"extensions: [lions]\n{LION}")
    assert (job.extensions, job.optimizer.beta) == (["lions"], 0.9)
    assert load_text(LION, "extensions=[lions]").optimizer.beta == 0.9
    assert sys.path[-1] == str(Path.cwd())  # last: it hides no package


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "ModuleNotFoundError: No module named 'broken'"),
        ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def f(:", "SyntaxError: invalid syntax (broken.py, line 1)"),
        (
            MODULE.replace("lion", "adamw"),
            "optimizer.name = adamw: the name is taken by orchestrator.job.choices.AdamW",
        ),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_line(content: str | None, reason: str) -> None:
    if content is not None:
        Path("broken.py").write_text(content)
    assert line_of(f"extensions: [broken]\n{VALID}") == f"job.yaml: extensions: cannot import broken ({reason})"


def test_extensions_are_a_list_of_names() -> None:
    assert line_of(VALID, "extensions=lions") == "job.yaml: extensions = lions: expected a list of text (from --set)"
    assert line_of(VALID, "extensions=[1]") == "job.yaml: extensions = [1]: expected a list of text (from --set)"
