"""PyTorch files: what is read, and that no code of a file runs."""

import argparse
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.weights.containers.pytorch import read_pytorch, write_pytorch
from model.weights.load import read
from model.weights.weights import WeightsError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.bfloat16)}


def saved(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        STATE,
        {"state_dict": STATE, "epoch": 3},
        {"model": STATE, "lr": torch.tensor(0.1)},
        {"model": {"state_dict": STATE}},
        {f"module.{name}": tensor for name, tensor in STATE.items()},
        {"state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in STATE.items()}},
        STATE | {"step": 7, "name": "x"},
    ],
)
@pytest.mark.parametrize("old", [False, True])
def test_wrappers_and_prefixes_are_removed(content: dict[str, Any], old: bool) -> None:
    """Both of torch's layouts: a zip file, and before version 1.6 pickles one after another."""
    data = saved(content, _use_new_zipfile_serialization=not old)
    found = read_pytorch(io.BytesIO(data), "u")
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], STATE[name]) for name in STATE)


def test_written_and_read_by_torch(tmp_path: Path) -> None:
    with open(tmp_path / "m.pth", "wb") as file:
        write_pytorch({"a": STATE["a.weight"].T}, file)
    assert torch.equal(torch.load(tmp_path / "m.pth", weights_only=True)["a"], STATE["a.weight"].T)


class Command:
    """A pickle of this object runs a shell command when a plain unpickler reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("form", ["zip", "old", "pickle"])
def test_no_code_of_a_file_runs(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # not even if the environment asks for it
    ran = tmp_path / "ran"
    content = STATE | {"c": Command(ran)}
    data = pickle.dumps(content, protocol=2)
    if form != "pickle":
        data = saved(content, _use_new_zipfile_serialization=form == "zip")
    path = tmp_path / "m.pth"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="no code of the file was run") as error:
        read(str(path))
    assert "\n" not in str(error.value)
    assert not ran.exists()
    pickle.loads(pickle.dumps(Command(ran)))  # the command does work
    assert ran.exists()


@pytest.mark.parametrize("name", ["argparse.Namespace", "numpy"])
def test_what_is_no_tensor_is_named(name: str) -> None:
    content = {"args": argparse.Namespace(lr=1)} if name != "numpy" else {"a": np.ones(3)}
    with pytest.raises(WeightsError, match=f"the pickle names {name}"):
        read_pytorch(io.BytesIO(saved(content)), "u")


def test_files_that_hold_no_state_dictionary() -> None:
    for content in ([torch.ones(2)], torch.ones(2), {}, {"state_dict": {}}, {3: torch.ones(2)}):
        with pytest.raises(WeightsError, match="no state dictionary"):
            read_pytorch(io.BytesIO(saved(content)), "u")


def test_torchscript_and_the_oldest_layout_are_refused() -> None:
    script = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), script)
    with pytest.raises(WeightsError, match="TorchScript"):
        read_pytorch(io.BytesIO(script.getvalue()), "u")
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:  # torch before 0.1.10
        for name in ("sys_info", "pickle", "storages", "tensors"):
            file.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(WeightsError, match="tar"):
        read_pytorch(io.BytesIO(tar.getvalue()), "u")


@pytest.mark.parametrize("old", [False, True])
def test_damaged_files_give_one_line(old: bool) -> None:
    whole = saved(STATE, _use_new_zipfile_serialization=not old)
    rng = np.random.default_rng(0)
    cases = [whole[:size] for size in np.linspace(0, len(whole) - 1, 60).astype(int)]
    for _ in range(120):
        damaged = bytearray(whole)
        for place in rng.integers(len(whole), size=rng.integers(1, 12)):
            damaged[place] = rng.integers(256)
        cases.append(bytes(damaged))
    cases += [b"hello", b"PK\x03\x04", rng.bytes(1000)]
    messages = []
    for data in cases:
        try:
            read_pytorch(io.BytesIO(data), "u")
        except WeightsError as error:
            messages.append(str(error))
    assert len(messages) > 80  # a changed byte of a number, or of padding, is not seen
    assert all(message.startswith("u: ") and "\n" not in message for message in messages)
