"""What the tags say, against git itself and against the files."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement

from orchestrator.run.provenance import code_digest, provenance, requirements_text


def git(folder: Path, *words: str) -> str:
    who = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | who | alone).stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for package in ("orchestrator", "model", "data"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").write_text(f'"""{package}"""\n')
    (root / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "4.5.6"\n')
    return root


def test_without_a_checkout_the_version_and_the_digest_say_what_ran(project: Path) -> None:
    tags = provenance(project)
    assert tags["code.version"] == "4.5.6"
    assert not {"code.commit", "code.dirty"} & set(tags)
    assert (tags["python"], tags["platform"]) == (platform.python_version(), platform.platform())
    assert tags["package.torch"] == torch.__version__
    assert tags["package.mlflow"] == "3.17.2"
    assert all(isinstance(value, str) for value in tags.values())


def test_packages_sent_without_their_project_file(project: Path) -> None:
    (project / "pyproject.toml").unlink()
    assert "code.version" not in provenance(project)


def test_a_checkout_has_a_commit_and_is_clean_or_dirty(project: Path) -> None:
    git(project, "init", "-q")
    assert "code.commit" not in provenance(project), "no commit yet"
    git(project, "add", ".")
    git(project, "commit", "-q", "-m", "one")
    (project / "notes.txt").write_text("untracked files do not count")
    tags = provenance(project)
    assert tags["code.commit"] == git(project, "rev-parse", "HEAD").strip()
    assert tags["code.dirty"] == "false"
    (project / "model" / "__init__.py").write_text("x = 1\n")
    assert provenance(project)["code.dirty"] == "true"


def test_a_copy_inside_another_checkout_does_not_claim_its_commit(project: Path) -> None:
    git(project.parent, "init", "-q")
    git(project.parent, "commit", "-q", "--allow-empty", "-m", "someone else's")
    assert "code.commit" not in provenance(project)


def test_digest_follows_the_code_and_nothing_else(project: Path) -> None:
    before = code_digest(project)
    (project / "README.md").write_text("words")
    (project / "model" / "__pycache__").mkdir()
    (project / "model" / "__pycache__" / "a.pyc").write_bytes(b"x")
    assert code_digest(project) == before
    (project / "model" / "a.py").write_text("")
    added = code_digest(project)
    (project / "model" / "a.py").rename(project / "model" / "b.py")
    renamed = code_digest(project)
    (project / "model" / "b.py").write_text("x = 1\n")
    assert len({before, added, renamed, code_digest(project)}) == 4


def test_requirements_are_what_pip_reads_and_lists() -> None:
    ours = {(r.name.lower(), str(r.specifier)) for r in map(Requirement, requirements_text().splitlines())}
    command = [sys.executable, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check"]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    pips = {(r.name.lower(), str(r.specifier)) for r in map(Requirement, listed)}
    assert ours == pips
