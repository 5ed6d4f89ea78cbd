import tomllib

from data.version import VERSION
from tests.paths import ROOT


def test_it_is_the_projects_version():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == VERSION
