"""infra/Dockerfile: it passes the linter, its files exist, and it copies only what a run needs."""

import fnmatch
import re
import subprocess

from tests.infra import commands
from tests.paths import ROOT

RECIPE = ROOT / "infra" / "Dockerfile"
TEXT = RECIPE.read_text()


def instructions(name: str) -> list[str]:
    """The arguments of every instruction of that name, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"(?m)^#.*\n", "", TEXT))
    return [line.partition(" ")[2].strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_recipe_is_linted() -> None:
    command = [commands.tool("hadolint"), "--config", ROOT / "infra" / ".hadolint.yaml", RECIPE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout


def test_it_is_cuda_and_not_root() -> None:
    (base,) = instructions("FROM")
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-\w+", base)
    assert instructions("USER")[-1] == "1000:1000"  # numbers: Kubernetes then knows that it is not root
    assert "--uid 1000 " in TEXT
    assert "RAY_AUTH_MODE=token" in " ".join(instructions("ENV"))
    assert TEXT.rindex("USER ") > TEXT.rindex("COPY ")  # they belong to root, so a job cannot change them


def test_pins_come_before_the_code() -> None:
    """A change of the code must not reinstall the packages, which are gigabytes."""
    install = next(line for line in instructions("RUN") if line.startswith("pip install"))
    for line in instructions("COPY")[:-1]:
        for name in line.split()[:-1]:
            assert (ROOT / name).is_file()
    for name in ("requirements.txt", "infra/requirements.txt", "constraints.txt"):
        assert f" /tmp/pins/{name}" in install
    assert TEXT.index("pip install") < TEXT.index("COPY . .")


def test_every_requirement_is_pinned() -> None:
    lines = (ROOT / "infra" / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[\w\-\[\],]+==[\w.]+", line) for line in lines if not line.startswith("#"))


def test_only_what_a_run_needs_is_sent_to_the_builder() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    sent = {name for name in tracked.stdout.splitlines() if not ignored(name)}
    folders = {name.partition("/")[0] for name in sent if "/" in name}
    assert folders <= {"data", "infra", "jobs", "model", "orchestrator"}
    assert {"jobs/pretrain_h14.yaml", "orchestrator/__main__.py", "data/order/sample_order.py", "model/vit.py"} <= sent
    for secret in (".git/config", ".venv/bin/python", "runs/gcp.yaml", ".env", "key.json", "data/__pycache__/x.pyc"):
        assert ignored(secret), secret


def ignored(name: str) -> bool:
    """Whether .dockerignore excludes a file. The last pattern that matches the file or one of its folders decides."""
    parts = name.split("/")
    paths = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if line and not line.startswith("#"):
            pattern = line.removeprefix("!").rstrip("/")
            if any(fits(path, pattern) for path in paths):
                out = not line.startswith("!")
    return out


def fits(path: str, pattern: str) -> bool:
    """As in Docker, `*` matches within one folder, and a leading `**/` matches any number of folders."""
    if pattern.startswith("**/"):
        return any(fits(path.split("/", count)[-1], pattern[3:]) for count in range(path.count("/") + 1))
    return path.count("/") == pattern.count("/") and fnmatch.fnmatchcase(path, pattern)


def test_jobs_run_as_programs() -> None:
    """`ray job submit jobs/NAME.yaml` executes the file in the image's folder, which must be on Python's path."""
    workdir = instructions("WORKDIR")[-1]
    assert f"PYTHONPATH={workdir}" in " ".join(instructions("ENV"))
    modes = subprocess.run(["git", "ls-files", "-s", "jobs"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    files = [line.split() for line in modes.stdout.splitlines() if line.endswith(".yaml")]
    assert files
    assert {mode for mode, *_ in files} == {"100755"}
