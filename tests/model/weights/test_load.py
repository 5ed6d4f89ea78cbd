"""Weights into models: all or nothing, with what is missing and left over on both sides."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage

import model
from data import storage
from model import VisionTransformer
from model.weights import export
from model.weights.load import load, load_weights, place, read
from model.weights.weights import PLAIN, LazyTensor, LazyTensors, Preprocessing, Weights, WeightsError
from tests.model.weights import authors

SIZES: dict[str, Any] = {"depth": 2, "width": 12, "mlp_dim": 20, "heads": 3, "patch_size": 4}


def create(**overrides: Any) -> VisionTransformer:
    """The network of `authors.network()`, with every parameter random."""
    network = model.create_model("Ti/4", **{"num_classes": 5, "image_size": 12, **SIZES, **overrides})
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_()
    return network.eval()


def file_of(path: Path, **options: Any) -> str:
    np.savez(path, **authors.network(**options))
    return str(path)


def state(network: VisionTransformer) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def assert_unchanged(network: VisionTransformer, before: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_load_weights_equals_load(tmp_path: Path) -> None:
    url = file_of(tmp_path / "w.npz", representation=7)
    network = create(representation_size=7)
    report = load_weights(network, url)
    assert str(report) == "loaded 34 tensors\nnot loaded: nothing"
    loaded = load(url)
    assert not loaded.training
    assert_unchanged(network, state(loaded))
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert all(p.requires_grad for p in loaded.parameters())


def test_load_draws_no_random_numbers(tmp_path: Path) -> None:
    url = file_of(tmp_path / "w.npz")
    before = torch.get_rng_state()
    load(url)
    assert torch.equal(torch.get_rng_state(), before)


def test_through_the_storage_of_the_data_plane(tmp_path: Path) -> None:
    """`data.storage` is handed in as it is, as a module."""
    url = file_of(tmp_path / "w.npz")
    network = load(url, storage)
    export.write(read(url, storage), "memory://weights/folder", storage)
    assert_unchanged(load("memory://weights/folder", storage), state(network))
    assert_unchanged(load("memory://weights/folder"), state(network))


MISFITS: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    ({"classes": 6}, {}, ["of another shape: head.weight (6 x 12), head.bias (6) in the file", 'head="new"']),
    ({"classes": None}, {}, ["missing in the file: head.weight (5 x 12), head.bias (5)", 'head="new"']),
    ({"representation": 12}, {}, ["left over in the file: pre_logits.weight (12 x 12), pre_logits.bias (12)", "head="]),
    ({}, {"representation_size": 12}, ["missing in the file: pre_logits.weight (12 x 12), pre_logits.bias (12)"]),
    ({"depth": 4}, {}, ["left over in the file: blocks.2-3.norm1.weight (12)", "blocks.2-3.mlp.fc1.weight (20 x 12)"]),
    ({}, {"depth": 4}, ["missing in the file: blocks.2-3.norm1.weight (12)", "blocks.2-3.mlp.fc1.weight (20 x 12)"]),
    ({"mlp": 24}, {}, ["blocks.0-1.mlp.fc1.weight (24 x 12)", "blocks.0-1.mlp.fc1.weight (20 x 12)"]),
    ({"heads": 4}, {}, ["heads is 4, and 3 in the model"]),
    ({"patch": 6, "grid": 2}, {}, ["embedding.projection.weight (12 x 3 x 6 x 6) in the file"]),
    ({"pooled": True}, {}, ["missing in the file: embedding.class_token (1 x 1 x 12)", 'head="new"']),
    ({}, {"pool": "gap"}, ["left over in the file: embedding.class_token (1 x 1 x 12)", "(1 x 10 x 12)"]),
    ({}, {"gelu": "erf"}, ["gelu is tanh, and erf in the model"]),
    ({}, {"norm_eps": 1e-12}, ["norm_eps is 1e-06, and 1e-12 in the model"]),
    ({"width": 24, "depth": 3}, {"representation_size": 4}, ["missing", "left over", "of another shape"]),
]  # fmt: skip


@pytest.mark.parametrize("case", range(len(MISFITS)))
def test_what_does_not_fit_is_listed_and_nothing_is_loaded(tmp_path: Path, case: int) -> None:
    theirs, ours, says = MISFITS[case]
    url = file_of(tmp_path / "w.npz", **theirs)
    network = create(**ours)
    before = state(network)
    with pytest.raises(WeightsError) as error:
        load_weights(network, url)
    message = str(error.value)
    assert message.startswith(f"{url}: does not fit the model: ")
    assert len(message.splitlines()) == 1
    for text in says:
        assert text in message
    assert_unchanged(network, before)


@pytest.mark.parametrize("key", ["depth", "mlp", "heads"])
def test_a_new_head_excuses_nothing_else(tmp_path: Path, key: str) -> None:
    url = file_of(tmp_path / "w.npz", **{key: 4})
    with pytest.raises(WeightsError, match="does not fit"):
        load_weights(create(), url, head="new")


def test_an_unknown_head(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="head must be keep or new"):
        load_weights(create(), file_of(tmp_path / "w.npz"), head="other")  # type: ignore[arg-type]


def test_a_new_head(tmp_path: Path) -> None:
    """Of zeros and its initial bias. Pre-logits that only the file has are left out, and named."""
    url = file_of(tmp_path / "w.npz", classes=9, representation=7)
    network = create(head_bias=-10.0)
    report = load_weights(network, url, head="new")
    assert report.lines() == (
        "loaded 30 tensors",
        "not loaded: new: head.weight, head.bias; left out: pre_logits.weight, pre_logits.bias, head.weight, head.bias",
    )
    assert not network.head.weight.any()
    assert set(network.head.bias.tolist()) == {-10.0}
    reference = load(url)
    images = torch.rand(2, 3, 12, 12) * 2 - 1
    reference.pre_logits = None
    with torch.no_grad():
        assert torch.equal(network.features(images), reference.features(images))


def test_a_new_head_keeps_pre_logits_of_the_same_shape(tmp_path: Path) -> None:
    url = file_of(tmp_path / "w.npz", classes=9, representation=7)
    network = create(representation_size=7)
    assert "pre_logits.weight" in load_weights(network, url, head="new").loaded
    assert network.pre_logits is not None
    assert torch.equal(network.pre_logits.weight, read(url).tensors["pre_logits.weight"])


@pytest.mark.parametrize("representation", [None, 7])
def test_a_new_head_with_new_pre_logits(tmp_path: Path, representation: int | None) -> None:
    url = file_of(tmp_path / "w.npz", representation=representation)
    network = create(representation_size=8)
    before = state(network)
    report = load_weights(network, url, head="new")
    assert report.new == ["pre_logits.weight", "pre_logits.bias", "head.weight", "head.bias"]
    assert network.pre_logits is not None
    assert torch.equal(network.pre_logits.weight, before["pre_logits.weight"])


def zoomed(position: np.ndarray, side: int) -> np.ndarray:
    """The authors' resizing of the grid part: scipy's zoom of order 1."""
    old = int(position.shape[1] ** 0.5)
    grid = position.reshape(old, old, -1)
    return ndimage.zoom(grid, (side / old, side / old, 1), order=1).reshape(1, side * side, -1)


@pytest.mark.parametrize("side", [2, 5])
@pytest.mark.parametrize(("theirs", "ours"), [(False, False), (True, True), (False, True), (True, False)])
def test_position_embeddings_of_another_grid(tmp_path: Path, side: int, theirs: bool, ours: bool) -> None:
    """From and to class token and pooling: the class slot is never taken for a patch, nor a patch for it."""
    arrays = authors.network(pooled=theirs)
    np.savez(tmp_path / "w.npz", **arrays)
    network = create(image_size=4 * side, pool="gap" if ours else "token")
    before = state(network)
    report = load_weights(network, str(tmp_path / "w.npz"), head="keep" if theirs == ours else "new")
    assert f"position embeddings resized from 3 x 3 to {side} x {side} patches" in report.lines()[0]

    position = arrays["Transformer/posembed_input/pos_embedding"]
    slot, patches = (position[:, :0], position) if theirs else (position[:, :1], position[:, 1:])
    if theirs != ours:
        slot = position[:, :0] if ours else before["embedding.position"][:, :1].numpy()
    expected = np.concatenate([slot, zoomed(patches, side)], axis=1)
    np.testing.assert_allclose(network.embedding.position.detach().numpy(), expected, rtol=0, atol=1e-6)
    if theirs and not ours:
        assert report.new[-1] == "embedding.position of the class token"
        assert network.embedding.class_token is not None
        assert torch.equal(network.embedding.class_token, before["embedding.class_token"])
    if ours and not theirs:
        assert report.left_out[-1] == "embedding.position of the class token"


def test_pooling_changes_without_a_new_grid(tmp_path: Path) -> None:
    network = create(pool="gap")
    arrays = authors.network()
    np.savez(tmp_path / "w.npz", **arrays)
    report = load_weights(network, str(tmp_path / "w.npz"), head="new")
    assert report.grids is None
    np.testing.assert_array_equal(
        network.embedding.position.detach().numpy(), arrays["Transformer/posembed_input/pos_embedding"][:, 1:]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite(tmp_path: Path, value: float) -> None:
    arrays = authors.network()
    arrays["head/bias"][2] = value
    np.savez(tmp_path / "w.npz", **arrays)
    network = create()
    before = state(network)
    for attempt in (lambda: load(str(tmp_path / "w.npz")), lambda: load_weights(network, str(tmp_path / "w.npz"))):
        with pytest.raises(WeightsError, match="holds values that are not finite"):
            attempt()
    assert_unchanged(network, before)


def test_damage_in_the_last_tensor_changes_nothing(tmp_path: Path) -> None:
    network = create()
    before = state(network)
    entries = {n: LazyTensor(tuple(v.shape), v.dtype, lambda v=v: v + 1) for n, v in before.items()}  # type: ignore[misc]

    def damaged() -> torch.Tensor:
        raise WeightsError("ends within head.bias")

    entries["head.bias"] = entries["head.bias"]._replace(read=damaged)
    with pytest.raises(WeightsError, match="ends within"):
        place(network, Weights({"heads": 3}, LazyTensors(entries), Preprocessing(12)))
    assert_unchanged(network, before)


def test_integers_are_refused() -> None:
    network = create()
    tensors = state(network) | {"norm.bias": torch.zeros(12, dtype=torch.int64)}
    with pytest.raises(WeightsError, match=r"norm\.bias is int64"):
        place(network, Weights({}, tensors, Preprocessing(12)))


def test_a_model_of_16_bits_keeps_its_type(tmp_path: Path) -> None:
    url = file_of(tmp_path / "w.npz")
    network = create().to(torch.bfloat16)
    load_weights(network, url)
    assert {p.dtype for p in network.parameters()} == {torch.bfloat16}
    assert torch.equal(network.norm.weight, read(url).tensors["norm.weight"].to(torch.bfloat16))


def test_on_the_meta_device_only_shapes_are_compared(tmp_path: Path) -> None:
    weights = read(file_of(tmp_path / "w.npz"))

    def unread() -> torch.Tensor:
        raise AssertionError("read")

    assert isinstance(weights.tensors, LazyTensors)
    weights.tensors.entries = {n: e._replace(read=unread) for n, e in weights.tensors.entries.items()}
    with torch.device("meta"):
        assert len(place(create(), weights).loaded) == 32
        with pytest.raises(WeightsError, match="does not fit"):
            place(create(depth=3), weights)


def nothing(path: Path) -> str:
    return str(path / "nothing")


def empty_folder(path: Path) -> str:
    (path / "folder").mkdir()
    return str(path / "folder")


def pipe(path: Path) -> str:
    os.mkfifo(path / "w.npz")
    return str(path / "w.npz")


def text(path: Path) -> str:
    (path / "w.npz").write_text("no zip")
    return str(path / "w.npz")


def picture(path: Path) -> str:
    (path / "w.jpg").write_bytes(b"\xff\xd8" + bytes(100))
    return str(path / "w.jpg")


def unreadable_protocol(path: Path) -> str:
    return "nosuchprotocol://bucket/w.npz"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (nothing, "there is no such file or folder"),
        (empty_folder, "is of none of the formats that can be read (export, npz"),
        (pipe, "is a pipe or a device"),
        (text, "is no npz file"),
        (picture, "is of none of the formats"),
        (unreadable_protocol, "nosuchprotocol"),
    ],
)
def test_what_is_no_model(tmp_path: Path, make: Callable[[Path], str], says: str) -> None:
    url = make(tmp_path)
    with pytest.raises(WeightsError) as error:
        load(url, PLAIN)
    assert str(error.value).startswith(f"{url}: ")
    assert says in str(error.value)
    assert len(str(error.value).splitlines()) == 1
