"""The ONNX graph in onnxruntime against the network's definition. Skipped without requirements-onnx.txt."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from model.weights import timm
from model.weights.weights import PLAIN, WeightsError
from tests.model.weights import foreign

onnx = pytest.importorskip("onnx", reason="requirements-onnx.txt is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="requirements-onnx.txt is not installed")


def logits(path: Path, images: foreign.Array) -> foreign.Array:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found: foreign.Array = session.run(["logits"], {"images": images})[0]
    return found


@pytest.mark.parametrize("inline", [1 << 30, 0])
@pytest.mark.parametrize("kind", ["erf", "tanh", "average"])
def test_a_graph_gives_the_logits_of_the_definition(
    kind: str, inline: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For every batch; with the weights in the graph, and in a second file as models of more than 2 GiB have them."""
    from model.weights import onnx as ours

    monkeypatch.setattr(ours, "INLINE", inline)
    args = {
        "average": {"class_token": False, "global_pool": "avg", "fc_norm": False},
        "tanh": {"act_layer": "gelu_tanh"},
    }
    state = foreign.timm_state(token=kind != "average")
    url = foreign.folder(tmp_path / "m", foreign.timm_config(**args.get(kind, {})), state)
    path = tmp_path / "m.onnx"
    ours.write(timm.read(url, PLAIN), str(path), PLAIN, dtype=torch.float32)
    onnx.checker.check_model(str(path), full_check=True)
    assert (tmp_path / "m.onnx.data").exists() == (inline == 0)
    for batch in (1, 5):
        images = foreign.pixels(batch)
        wanted = foreign.logits(state, images, kind="tanh" if kind == "tanh" else "erf")
        assert foreign.close(logits(path, images), wanted)
    back = ours.read(str(path), PLAIN)
    assert foreign.close(foreign.ours(back, images), wanted)
    meta = {entry.key: json.loads(entry.value) for entry in onnx.load(str(path)).metadata_props}
    assert meta["preprocessing"]["mean"] == [0.485, 0.456, 0.406]


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    from model.weights import onnx as ours

    url = foreign.folder(tmp_path / "m", foreign.timm_config(), foreign.timm_state())
    with pytest.raises(WeightsError, match="float32"):
        ours.write(timm.read(url, PLAIN), str(tmp_path / "m.onnx"), PLAIN, dtype=torch.bfloat16)
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    values = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy"]
    other = onnx.helper.make_model(onnx.helper.make_graph([node], "g", values[:1], values[1:]))
    onnx.save(other, str(tmp_path / "other.onnx"))
    with pytest.raises(WeightsError, match="was not written by"):
        ours.read(str(tmp_path / "other.onnx"), PLAIN)
    ours.write(timm.read(url, PLAIN), str(tmp_path / "m.onnx"), PLAIN, dtype=torch.float32)
    whole = (tmp_path / "m.onnx").read_bytes()
    for size in np.linspace(1, len(whole) - 1, 40).astype(int):
        (tmp_path / "cut.onnx").write_bytes(whole[:size])
        with pytest.raises(WeightsError):
            foreign.ours(ours.read(str(tmp_path / "cut.onnx"), PLAIN), foreign.pixels())
