"""Which held-out sets a run still owes."""

from pathlib import Path

import pytest

from orchestrator.run.measured import owed, read_measured, write_measured


def test_a_set_is_known_by_name_and_digest(tmp_path: Path) -> None:
    write_measured(str(tmp_path), {"test": "a", "other": "b"})
    measured = read_measured(str(tmp_path))
    assert owed({"test": "a"}, measured, []) == []
    assert owed({"test": "a", "new": "c"}, measured, ["eval/new/top1"]) == ["new"]
    assert owed({"test": "packed anew"}, measured, ["eval/test/top1"]) == ["test"]
    assert owed({}, measured, []) == []


def test_a_run_of_an_earlier_version_has_measured_what_it_has_metrics_of(tmp_path: Path) -> None:
    measured = read_measured(str(tmp_path))
    assert measured is None
    assert owed({"test": "a", "new": "b"}, measured, ["train/loss", "eval/test/top1", "eval/test/loss"]) == ["new"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"test": 3}', "[" * 100_000])
def test_a_torn_file_is_named_and_counts_as_none(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "measured.json").write_text(content)
    assert read_measured(str(tmp_path)) is None
    assert f"{tmp_path}/measured.json is damaged" in capsys.readouterr().err
