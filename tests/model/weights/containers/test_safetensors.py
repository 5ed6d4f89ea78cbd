"""Safetensors, against the package of that name."""

import hashlib
import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError

from model.weights.containers.safetensors import read_safetensors, write_safetensors
from model.weights.weights import PLAIN, LazyTensor, LazyTensors, WeightsError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(2.5),
    "transposed": torch.arange(8.0).reshape(2, 4).t(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_package_reads_what_we_write(tmp_path: Path, dtype: torch.dtype) -> None:
    size, sha256 = write_safetensors(TENSORS, str(tmp_path / "w"), PLAIN, dtype=dtype, metadata={"format": "pt"})
    found = safetensors.torch.load_file(tmp_path / "w")
    assert found.keys() == TENSORS.keys()
    assert all(torch.equal(found[name], value.to(dtype)) for name, value in TENSORS.items())
    content = (tmp_path / "w").read_bytes()
    assert (size, sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_we_read_what_the_package_writes(tmp_path: Path) -> None:
    mixed = {name: value.contiguous() for name, value in TENSORS.items()}
    mixed |= {"half": torch.ones(3, dtype=torch.float16), "long": torch.arange(4), "flag": torch.tensor([True])}
    safetensors.torch.save_file(mixed, tmp_path / "w", metadata={"key": "text"})
    found, metadata = read_safetensors(str(tmp_path / "w"), PLAIN)
    assert metadata == {"key": "text"}
    assert found.keys() == mixed.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in mixed.items())


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    """A tensor is read when it is written, and not kept."""
    alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
    most = 0

    def read() -> torch.Tensor:
        nonlocal most
        tensor = torch.ones(1000)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    tensors = LazyTensors({str(i): LazyTensor((1000,), torch.float32, read) for i in range(20)})
    write_safetensors(tensors, str(tmp_path / "w"), PLAIN, dtype=torch.float32, metadata={})
    assert 1 <= most <= 2


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"old")

    def read() -> torch.Tensor:
        raise WeightsError("damaged")

    tensors = LazyTensors({"a": LazyTensor((1,), torch.float32, read)})
    with pytest.raises(WeightsError, match="damaged"):
        write_safetensors(tensors, str(tmp_path / "w"), PLAIN, dtype=torch.float32, metadata={})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def file_of(header: Any, rest: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | changes


LIES = {
    "empty": b"",
    "short": b"\x08\x00",
    "header beyond the file": (1 << 40).to_bytes(8, "little") + b"{}",
    "no JSON": file_of(b"{'a'"),
    "deep": file_of(b'{"a":' * 50_000),
    "a list": file_of([1]),
    "a name twice": file_of(b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2)),
    "no dtype": file_of({"a": {"shape": [4], "data_offsets": [0, 16]}}),
    "unknown dtype": file_of({"a": entry(dtype="F3")}),
    "dtype of another type": file_of({"a": entry(dtype=["F32"])}),
    "huge shape": file_of({"a": entry(shape=[1 << 62, 1 << 62])}),
    "huge shape and place": file_of({"a": entry(shape=[1 << 38], data_offsets=[0, 1 << 40])}),
    "negative": file_of({"a": entry(shape=[-2, -2])}),
    "fraction": file_of({"a": entry(shape=[4.0])}),
    "overlap": file_of({"a": entry(), "b": entry()}),
    "hole": file_of({"a": entry(data_offsets=[4, 20])}, bytes(20)),
    "too short": file_of({"a": entry()}, bytes(15)),
    "too long": file_of({"a": entry()}, bytes(17)),
    "backwards": file_of({"a": entry(shape=[0], data_offsets=[16, 16]), "b": entry(data_offsets=[16, 0])}),
}


@pytest.mark.parametrize("case", LIES)
def test_a_header_that_lies(tmp_path: Path, case: str) -> None:
    """One line, without taking memory for it. The package refuses the same files."""
    path = tmp_path / "w.safetensors"
    path.write_bytes(LIES[case])
    with pytest.raises(WeightsError, match="is no complete safetensors file: ") as error:
        read_safetensors(str(path), PLAIN)
    assert len(str(error.value).splitlines()) == 1
    if case != "a name twice":  # of two, the package takes the last
        with pytest.raises(SafetensorError):
            safetensors.torch.load_file(path)


def test_metadata_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(file_of({"__metadata__": {"a": 1}, "a": entry()}))
    with pytest.raises(WeightsError, match="metadata"):
        read_safetensors(str(tmp_path / "w"), PLAIN)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "w"
    safetensors.torch.save_file({"a": torch.ones(1 << 20)}, path)
    tensors, _ = read_safetensors(str(path), PLAIN)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(WeightsError, match="ends within a"):
        tensors["a"]


def test_changed_bits(tmp_path: Path) -> None:
    """What is accepted is what the package reads."""
    safetensors.torch.save_file({"a": torch.ones(2, 3), "b": torch.ones(4, dtype=torch.float16)}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "changed"
    refused = 0
    for _ in range(300):
        changed = bytearray(content)
        changed[rng.integers(len(content) - 32)] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        ours = tensors_or_none(path)
        if ours is None:
            refused += 1
            continue
        theirs = safetensors.torch.load_file(path)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert refused > 100


def tensors_or_none(path: Path) -> dict[str, torch.Tensor] | None:
    try:
        return dict(read_safetensors(str(path), PLAIN)[0])
    except WeightsError:
        return None
