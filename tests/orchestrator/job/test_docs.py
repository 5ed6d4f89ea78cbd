"""The JSON Schema and the page of keys: complete, right, and as committed."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import BaseModel

from orchestrator.job.docs import KEYS_FILE, SCHEMA_FILE, json_schema, keys_page
from orchestrator.job.keys import keys_of
from orchestrator.job.kinds import KINDS
from orchestrator.job.safe_yaml import parse_yaml
from orchestrator.job.tables import EVALUATORS

JOBS = sorted(Path("jobs").glob("*.yaml"))


def errors(job: Any) -> list[str]:
    return [error.message for error in jsonschema.Draft202012Validator(json_schema()).iter_errors(job)]


def test_the_committed_files_are_the_generated_ones() -> None:
    again = "python -m orchestrator schema --write"
    assert json.loads(SCHEMA_FILE.read_text()) == json_schema(), f"run {again}"
    assert KEYS_FILE.read_text() == keys_page(), f"run {again}"


def test_it_is_a_json_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_editors_accept_the_job_files(path: Path) -> None:
    assert errors(parse_yaml(path.read_text())) == []


def test_editors_refuse_what_the_program_refuses() -> None:
    text = Path("jobs/pretrain_digits.yaml").read_text()
    for key, value in [("kind", "pretran"), ("batch_size", 0), ("lr", 1e-3), ("objective", None), ("seed", "one")]:
        assert errors(parse_yaml(text) | {key: value}) != [], key
    job = parse_yaml(text)
    job["schedule"]["length"] = {"epochs": 1, "steps": 1}
    assert errors(job) != []
    del job["schedule"]
    assert errors(job) != []


def test_editors_accept_no_held_out_sets() -> None:
    job = parse_yaml(Path("jobs/pretrain_digits.yaml").read_text())
    job["data"]["eval"] = None
    assert errors(job) == []


@pytest.mark.parametrize("kind", KINDS.sections)
def test_every_key_is_on_the_page_with_its_meaning(kind: str) -> None:
    page = keys_page()
    assert f"| `{kind}` | {KINDS.sections[kind].__doc__} |" in page
    for key in keys_of(KINDS.sections[kind]):
        if key.path == "kind":
            continue
        name = key.path.rsplit(".", 1)[-1]
        assert key.description.strip(), key.path
        is_row = f"| `{key.path}` |" in page
        is_heading = f"## {key.path}\n" in page
        assert is_row or is_heading or name in ("steps", "epochs", "images"), key.path


def test_the_walk_over_the_schema_leaves_nothing_out() -> None:
    """Against pydantic's own JSON Schema: every property of every definition is a key of some kind of job."""
    found = {key.path.rsplit(".", 1)[-1] for kind in KINDS.sections.values() for key in keys_of(kind)}
    definitions = json_schema()["$defs"].values()
    named = set(EVALUATORS.sections)  # keys, too, but of no definition
    assert found - named == {name for definition in definitions for name in definition["properties"]}


def test_every_default_that_is_shown_is_the_one_that_is_used() -> None:
    rows = [line.split(" | ") for line in keys_page().splitlines() if line.startswith("| `")]
    shown = {row[0].strip("| `"): row[2].strip("`") for row in reversed(rows) if len(row) == 5}  # pretrain's come first
    compared = 0
    for key in keys_of(KINDS.sections["pretrain"]):
        default = key.field.get_default()
        if key.path in shown and not key.field.is_required() and key.field.default_factory is None:
            value = default.model_dump(exclude_defaults=True) if isinstance(default, BaseModel) else default
            assert parse_yaml(shown[key.path]) == (list(value) if isinstance(value, tuple) else value), key.path
            compared += 1
    assert compared > 30
