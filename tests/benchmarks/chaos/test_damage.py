"""The damage that the chaos benchmark does between two starts."""

import json
from pathlib import Path

import pytest

from benchmarks.chaos.damage import HALF_A_LINE, damage_checkpoint, tear_file


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_file_that_is_read_back_can_end_in_half_a_line(tmp_path: Path) -> None:
    run, spools = tmp_path / "run", tmp_path / "spools"
    (run / "samples").mkdir(parents=True)
    ledger = run / "samples" / "000000000-000000005-rank-00000-2.json"
    ledger.write_text(json.dumps({"attempt": 2, "steps": {"0": [1, 2, 3]}}))
    (run / "quarantine.jsonl").write_bytes(b'{"id": 1}\n')
    (run / "tracking-ab.000001-cd.jsonl").write_bytes(b"{}\n")
    (spools / "vit-tracking-0").mkdir(parents=True)
    (spools / "vit-tracking-0" / "tracking-ab.jsonl").write_bytes(b"{}\n")
    torn = set()
    for number in range(12):
        before = contents(tmp_path)
        torn.add(tear_file(str(run), spools, number / 12))
        (changed,) = [name for name, content in contents(tmp_path).items() if before.get(name) != content]
        if "samples" in changed:
            assert changed not in before, "what the ledger says is not lost"
            with pytest.raises(json.JSONDecodeError):
                json.loads((tmp_path / changed).read_bytes())
            (tmp_path / changed).unlink()
        else:
            assert contents(tmp_path)[changed] == before.get(changed, b"") + HALF_A_LINE
    copy = "000000000-000000005-rank-00000-999999.json"
    spool = {"tracking-ab.jsonl", "tracking-ab.000001-cd.jsonl"}
    assert torn == {"quarantine.jsonl", "summary.json", "lock", copy} | spool


def test_one_file_of_a_checkpoint_is_damaged(tmp_path: Path) -> None:
    results = set()
    for number in range(5):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "rank-00000.safetensors").write_bytes(bytes(range(100)))
        (folder / "manifest.json").write_text(json.dumps({"step": 10, "files": {}}))
        before = contents(folder)
        name = damage_checkpoint(str(folder), number / 5)
        after = contents(folder)
        assert {each for each in before if after.get(each) != before[each]} == {name}
        results.add(after.get(name))
    assert len(results) == 5
