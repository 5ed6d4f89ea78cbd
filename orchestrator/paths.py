"""Where the paths of a job file are.

`~` and `$NAME` are expanded everywhere. A relative local path (and that of `sqlite:///runs/mlflow.db`) begins

1. at $VIT_HOME, where that is set;
2. else at the current directory;
3. but at ~/vit where the current directory is one that Ray unpacked for a submitted job
   (`ray job submit --working-dir .`): Ray deletes it after the job, and the run with it.
"""

import os
import re
from pathlib import Path

RAY_WORKING_DIRECTORY = "/runtime_resources/working_dir_files/"
SQLITE = "sqlite:///"


class PathError(ValueError):
    """A path that cannot be resolved. The message is one line."""


def resolve_url(url: str) -> str:
    """The URL or local path of a job file, made independent of the current directory.

    Raises:
        PathError: it names an environment variable that is not set.
    """
    expanded = os.path.expandvars(url)
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise PathError(f"{url}: the environment variable {unset[1]} is not set")
    if expanded.startswith(SQLITE):
        return SQLITE + _absolute(expanded.removeprefix(SQLITE))
    return expanded if "://" in expanded else _absolute(expanded)


def relative_paths_begin_at() -> Path:
    """The folder that relative local paths of job files are taken from."""
    home = os.environ.get("VIT_HOME")
    if home:
        return Path(home).expanduser().absolute()
    here = Path.cwd()
    return Path.home() / "vit" if RAY_WORKING_DIRECTORY in f"{here}/" else here


def _absolute(path: str) -> str:
    try:
        return os.path.normpath(relative_paths_begin_at() / Path(path).expanduser())
    except RuntimeError as error:  # ~name of nobody
        raise PathError(f"{path}: no such home folder") from error
