"""Shared by the orchestrator's tests: the digits as shards."""

from pathlib import Path

import pytest

from data.sources.digits import pack_digits


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packed digits: folders train/ and test/."""
    folder = tmp_path_factory.mktemp("digits")
    pack_digits(str(folder))
    return folder
