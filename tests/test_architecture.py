"""Who may import whom: the picture in CONTRIBUTING.md as a test. Imports for types and in functions count, too."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.paths import ROOT

GROUND = {"redact", "wording", "names"}
ORCHESTRATOR = {  # wing -> wings that it may import; everything may import the ground
    "job": set(),
    "run": {"job"},
    "engine": {"job"},
    "checkpoint": {"engine", "run", "job"},
    "inference": {"checkpoint", "engine", "run", "job"},
    "cluster": {"engine/cpu", "run", "job"},
    "tracking": {"run", "job"},
    "report": {"checkpoint/manifest", "run"},
    "history": {"tracking", "cluster/board", "engine", "run", "job"},
    "training": {"history", "checkpoint", "cluster", "engine", "run", "job"},
    "kinds": {"training", "history", "checkpoint", "tracking", "report", "cluster", "run", "job"},
    "commands": {
        "kinds",
        "training",
        "inference",
        "history",
        "checkpoint",
        "tracking",
        "report",
        "cluster",
        "engine",
        "run",
        "job",
    },
    "__main__": {"commands", "job"},
    "__init__": {"job"},
}
LINES = {  # from the bottom up: a wing may import wings of lower lines, and none of its own
    "data": [
        {"bounds", "errors", "quantities", "splitmix", "version"},
        {"progress", "parallel", "clusters"},
        {"ray_session"},
        {"storage", "images"},
        {"shards"},
        {"packing", "order"},
        {"sources", "dedup", "loading"},
        {"commands", "__init__"},
        {"__main__"},
    ],
    "model": [
        {"variants", "objectives", "weight_decay"},
        {"layers"},
        {"vit", "bit"},
        {"weights"},
        {"cost", "analysis", "masked_patch", "hybrid"},
        {"commands", "__init__"},
        {"__main__"},
    ],
}
PACKAGES = {  # package -> the only places that import it
    "mlflow": [
        *(f"orchestrator/tracking/{name}" for name in ("database", "mlflow_run", "refusal", "system_metrics")),
        *("infra", "benchmarks"),
    ],
    "deepspeed": [
        "orchestrator/engine/step",
        "orchestrator/engine/bf16_optimizer",
        "orchestrator/engine/memory/needed",
        "orchestrator/checkpoint/fragments",
        "infra",
        "benchmarks",
    ],
    "ray": [
        "orchestrator/cluster",
        "orchestrator/training",
        "orchestrator/history/reporter",
        "data/clusters/head",
        "data/clusters/joining",
        "data/ray_session",
        "infra",
        "benchmarks",
    ],
}
OURS = ("orchestrator", "data", "model", "infra", "benchmarks", "tests")
MOST_LINES, MOST_FILES = 450, 12


def files(*packages: str) -> list[Path]:
    """The Python files of packages, relative to the project's folder."""
    return sorted(path.relative_to(ROOT) for package in packages for path in (ROOT / package).rglob("*.py"))


def imports(path: Path) -> list[str]:
    """What a file imports, in functions too: `package/module`, or `package/module/name` where that may be a module."""
    return imports_of((ROOT / path).read_text())


@cache
def imports_of(text: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [alias.name.replace(".", "/") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            found += [f"{node.module}.{alias.name}".replace(".", "/") for alias in node.names]
    return found


@cache
def module(name: str) -> str | None:
    """The module of ours that an imported name is or is in; None for other packages."""
    parts = name.split("/")
    if parts[0] not in OURS:
        return None
    for end in range(len(parts), 0, -1):
        found = "/".join(parts[:end])
        if (ROOT / f"{found}.py").exists():
            return found
        if (ROOT / found / "__init__.py").exists():
            return f"{found}/__init__"
    return parts[0]


def inner(path: Path) -> dict[str, set[str]]:
    """The modules of ours that a file imports, by package."""
    found: dict[str, set[str]] = {}
    for name in imports(path):
        if (target := module(name)) is not None:
            found.setdefault(target.split("/")[0], set()).add(target)
    return found


def wing(name: str) -> str:
    """`orchestrator/engine/memory/fit` -> `engine`; `model/vit` -> `vit`."""
    return name.split("/")[1]


def faults() -> Iterator[str]:
    """Every import that the picture does not have, a line each."""
    for path in files("orchestrator"):
        source = wing(str(path.with_suffix("")))
        allowed = {*ORCHESTRATOR.get(source, ()), source, *GROUND}
        for target in sorted(inner(path).get("orchestrator", ())):
            if source in GROUND and wing(target) not in GROUND:
                yield f"{path} imports {target}: the ground imports no wing"
            elif source not in GROUND and not any(f"{target}/".startswith(f"orchestrator/{a}/") for a in allowed):
                yield f"{path} imports {target}: {source} may import {', '.join(sorted(allowed))}"
    for package, lines in LINES.items():
        for path in files(package):
            source = wing(str(path.with_suffix("")))
            own = next((n for n, line in enumerate(lines) if source in line), None)
            if own is None:
                yield f"{path}: {source} has no line in the picture"
                continue
            lower = {name for line in lines[:own] for name in line} | {source}
            for target in sorted(inner(path).get(package, ())):
                if wing(target) not in lower:
                    yield f"{path} imports {target}: not on a lower line"
    barred = {"data": set(OURS) - {"data"}, "model": set(OURS) - {"model"}}
    barred |= {
        "orchestrator": {"infra", "benchmarks", "tests"},
        "infra": {"benchmarks", "tests"},
        "benchmarks": {"tests"},
    }
    for package, others in barred.items():
        for path in files(package):
            for other in sorted(others & inner(path).keys()):
                yield f"{path} imports {other}: {package} imports nothing of it"
    for package, places in PACKAGES.items():
        for path in files("orchestrator", "data", "model"):
            if any(name.split("/")[0] == package for name in imports(path)) and not any(
                f"{path.with_suffix('')}/".startswith(f"{place}/") for place in places
            ):
                yield f"{path} imports {package}: only {', '.join(places)} do"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = low[node] = len(number)
        stack.append(node)
        for other in sorted(graph.get(node, ())):
            if other not in number:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], number[other])
        if low[node] == number[node]:
            group = [stack.pop()]
            while group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1 or node in graph.get(node, ()):
                found.append(sorted(group))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


def test_every_import_is_in_the_picture() -> None:
    assert list(faults()) == []


def test_no_circles() -> None:
    graph = {
        str(path.with_suffix("")): set().union(*inner(path).values())
        for path in files("orchestrator", "data", "model", "infra", "benchmarks")
    }
    assert circles(graph) == []


def test_a_circle_is_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("orchestrator/job/values.py", "from orchestrator.run.paths import resolve_url"),
        ("orchestrator/cluster/launch.py", "import orchestrator.training.loop"),
        ("orchestrator/engine/devices.py", "import ray"),
        ("orchestrator/run/folder.py", "import mlflow"),
        ("orchestrator/history/spikes.py", "from deepspeed import comm"),
        ("orchestrator/wording.py", "from orchestrator.job import values"),
        ("data/storage/web.py", "from data.shards.index import Index"),
        ("data/order/mixture.py", "from data.packing.scan import find_shards"),
        ("data/errors.py", "import model"),
        ("model/layers/dense.py", "if True:\n    from model.vit import VisionTransformer"),
        ("benchmarks/kernels.py", "from tests.paths import ROOT"),
    ],
)
def test_a_wrong_import_is_found(path: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text
    added = ROOT / path
    assert added.exists()
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: read(self, *a, **k) + f"\n{line}\n" * (self == added))
    found = [fault for fault in faults() if fault.startswith(f"{path} imports")]
    assert len(found) == 1, found


@pytest.mark.parametrize("package", ["job", "run"])
def test_job_and_run_load_neither_torch_nor_ray(package: str) -> None:
    modules = [str(path.with_suffix("")).replace("/", ".") for path in files(f"orchestrator/{package}")]
    heavy = "{'torch', 'ray', 'deepspeed', 'mlflow'}"
    script = f"import sys, {', '.join(modules)}; print(sorted({heavy} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_rooms_are_small() -> None:
    code = files("orchestrator", "data", "model", "infra", "benchmarks", "tests")
    long = {str(path): n for path in code if (n := len((ROOT / path).read_text().splitlines())) > MOST_LINES}
    assert long == {}
    counts: dict[Path, int] = {}
    for path in files("orchestrator", "data", "model", "infra", "benchmarks"):
        counts[path.parent] = counts.get(path.parent, 0) + (path.name != "__init__.py")
    assert {str(folder): n for folder, n in counts.items() if n > MOST_FILES} == {}
