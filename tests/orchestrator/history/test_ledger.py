"""A ledger with torn files: the rest is read, and each torn file is named."""

from pathlib import Path

import pytest
import torch

from orchestrator.history.ledger import Ledger, trained_samples

TORN = [
    b"",
    b'{"attempt": 1, "steps": {"1": [1, 2',
    b"\x00\xff",
    b"[1]",
    b'{"attempt": 1}',
    b'{"attempt": "1", "steps": {"1": [1]}}',
    b'{"attempt": 1, "steps": {"one": [1]}}',
    b'{"attempt": 1, "steps": {"1": 7}}',
    b'{"attempt": 1, "steps": {"1": ["a"]}}',
    b'{"attempt": 1, "steps": {"1": [[1]]}}',
    b'{"attempt": 1e999, "steps": {"1": [1]}}',
    b'{"attempt": 1, "steps": {"%s": [1]}}' % (b"9" * 5000),
    b"[" * 100_000,
]


@pytest.mark.parametrize("content", [*TORN, None], ids=[*map(str, range(len(TORN))), "a folder"])
def test_a_torn_file_is_left_out_and_named(content: bytes | None, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path), rank=0, attempt=5)
    ledger.record(0, torch.tensor([3, 1]), torch.ones(2, dtype=torch.bool))
    ledger.write()
    torn = tmp_path / "samples" / "000000001-000000002-rank-00001-7.json"
    if content is None:
        torn.mkdir()
    else:
        torn.write_bytes(content)
    said: list[str] = []
    assert trained_samples(str(tmp_path), said.append) == {0: [1, 3]}
    (line,) = said
    assert line.startswith(f"{torn}: damaged and left out (")
