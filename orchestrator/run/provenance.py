"""What produced a run: the code, the packages and the machine, as tags and as a `requirements.txt`."""

import hashlib
import importlib.util
import platform
import subprocess
import sysconfig
import tomllib
from importlib import metadata
from pathlib import Path

from orchestrator.run.paths import PROJECT

CODE = ("orchestrator", "model", "data")

KEY_PACKAGES = (
    "torch", "deepspeed", "ray", "webdataset", "fsspec", "gcsfs", "mlflow", "numpy", "opencv-python-headless",
    "pydantic",
)  # fmt: skip
"""Packages whose version becomes a tag; `requirements_text` lists them all."""


def provenance(root: Path = PROJECT) -> dict[str, str]:
    """Tags that say what ran.

    `code.digest` (of the sources) always; `code.version` where pyproject.toml is; `code.commit` and `code.dirty`
    ("true" when tracked files differ from the commit) in a git checkout. Then `python`, `platform`, and
    `package.NAME` for each of `KEY_PACKAGES` that is installed.
    """
    tags = {"code.digest": code_digest(root), "python": platform.python_version(), "platform": platform.platform()}
    project = root / "pyproject.toml"
    if project.exists():  # Ray may have sent only the packages to a worker
        tags["code.version"] = str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    tags |= _git_tags(root)
    for package in KEY_PACKAGES:
        try:
            tags[f"package.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue  # an optional package that this worker lacks
    return tags


def code_digest(root: Path = PROJECT) -> str:
    """SHA-256 over the names and contents of the project's Python files.

    Two runs with the same digest ran the same code, even if it was never committed or came without its git history.
    """
    digest = hashlib.sha256()
    for file in sorted(path for package in CODE for path in (root / package).rglob("*.py")):
        content = file.read_bytes()
        digest.update(f"{file.relative_to(root).as_posix()} {len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def imported_code_digest() -> str | None:
    """The digest of the code that this process imports, or would import; None if it finds none.

    It uses only `code_digest` and `CODE` of this project, because it is also sent to processes with other code
    (`cluster/code_check.py`).
    """
    spec = importlib.util.find_spec("orchestrator")
    if spec is None or spec.origin is None:
        return None
    return code_digest(Path(spec.origin).parents[1])


def requirements_text() -> str:
    """Every installed distribution as `name==version`, by name: what `pip install -r` needs to install the same."""
    # Not sys.path: setuptools puts private copies of packages there once it is imported.
    folders = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    installed = metadata.distributions(path=folders)
    found = {dist.metadata["Name"]: dist.version for dist in installed if dist.metadata["Name"]}
    return "".join(f"{name}=={version}\n" for name, version in sorted(found.items(), key=lambda item: item[0].lower()))


def _git_tags(root: Path) -> dict[str, str]:
    """`code.commit` and `code.dirty` if `root` itself is a checkout, and not a folder inside another one."""
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    if top is None or commit is None or Path(top).resolve() != root.resolve():
        return {}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"code.commit": commit, "code.dirty": str(changed != "").lower()}


def _git(root: Path, *words: str) -> str | None:
    """What `git WORDS` prints in `root`; None if there is no git, no checkout or no commit."""
    try:
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
