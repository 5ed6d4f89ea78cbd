"""The authors' files in every spelling, against a forward pass over their arrays by numpy."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import model
from model.weights.load import read
from model.weights.npz import write
from model.weights.weights import PLAIN, LazyTensors, Preprocessing, WeightsError
from tests.model.weights import authors
from tests.model.weights.authors import Arrays

IMAGES = np.random.default_rng(7).uniform(-1, 1, (2, 3, 12, 12)).astype(np.float32)


def saved(path: Path, arrays: Arrays) -> str:
    np.savez(path, **arrays)
    return str(path)


def assert_equal_logits(url: str, reference: np.ndarray) -> None:
    with torch.no_grad():
        logits = model.load(url)(torch.from_numpy(IMAGES)).numpy()
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * np.abs(reference).max())


SPELLINGS: dict[str, Callable[[Arrays], Arrays]] = {
    "older": lambda a: a,
    "newer": authors.newer,
    "opt/target/": lambda a: authors.prefixed(a, "opt/target/") | {"opt/state/step": np.int32(7)},
    "params/": lambda a: authors.prefixed(authors.newer(a), "params/"),
    "params/img/": lambda a: authors.prefixed(a, "params/img/") | {"params/t": np.ones(1, np.float32)},
    "folded": authors.folded,
    "stacked": authors.stacked,
    "newest": lambda a: authors.prefixed(authors.stacked(authors.newer(authors.folded(a))), "params/"),
    "float64": lambda a: {name: value.astype(np.float64) for name, value in a.items()},
    "big-endian, by columns": lambda a: {n: np.asfortranarray(value.astype(">f4")) for n, value in a.items()},
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("representation", [None, 7])
def test_logits(tmp_path: Path, spelling: str, representation: int | None) -> None:
    arrays = authors.network(representation=representation)
    url = saved(tmp_path / "w.npz", SPELLINGS[spelling](arrays))
    assert_equal_logits(url, authors.logits(arrays, IMAGES))


@pytest.mark.parametrize("kind", ["V2", "u2"])
@pytest.mark.parametrize("respelled", [lambda a: a, authors.stacked])
def test_bfloat16_as_two_bytes(tmp_path: Path, kind: str, respelled: Callable[[Arrays], Arrays]) -> None:
    bits = authors.bfloat16_bits(authors.network())
    url = saved(tmp_path / "w.npz", {name: value.view(kind) for name, value in respelled(bits).items()})
    assert {entry.dtype for entry in lazy(url).entries.values()} == {torch.bfloat16}
    assert_equal_logits(url, authors.logits(authors.from_bfloat16_bits(bits), IMAGES))


@pytest.mark.parametrize("compressed", [False, True])
def test_pooled(tmp_path: Path, compressed: bool) -> None:
    arrays = authors.network(pooled=True)
    (np.savez_compressed if compressed else np.savez)(tmp_path / "w.npz", **arrays)
    assert_equal_logits(str(tmp_path / "w.npz"), authors.logits(arrays, IMAGES))
    assert read(str(tmp_path / "w.npz")).settings["pool"] == "gap"


def test_folded_and_pooled_are_not_the_same(tmp_path: Path) -> None:
    """Both have one entry a patch."""
    arrays = authors.network()
    settings = read(saved(tmp_path / "folded.npz", authors.folded(arrays))).settings
    assert settings["pool"] == "token"
    without_class = {name: value for name, value in authors.folded(arrays).items() if name != "cls"}
    assert read(saved(tmp_path / "pooled.npz", without_class)).settings["pool"] == "gap"


@pytest.mark.parametrize(("gelu", "eps"), [("tanh", 1e-12), ("erf", 1e-6), ("erf", 1e-12)])
def test_gelu_and_epsilon(tmp_path: Path, gelu: str, eps: float) -> None:
    """The same arrays in a network of another configuration. Small tokens make the epsilon matter."""
    small = ("embedding/kernel", "embedding/bias", "cls", "Transformer/posembed_input/pos_embedding")
    arrays = {name: value * np.float32(1e-3 if name in small else 1) for name, value in authors.network().items()}
    weights = read(saved(tmp_path / "w.npz", arrays))
    network = model.create_model(**weights.settings | {"gelu": gelu, "norm_eps": eps}).eval()
    network.load_state_dict(dict(weights.tensors))
    with torch.no_grad():
        logits = network(torch.from_numpy(IMAGES)).numpy()
    reference = authors.logits(arrays, IMAGES, gelu=gelu, eps=eps)
    np.testing.assert_allclose(logits, reference, rtol=0, atol=1e-5 * np.abs(reference).max())
    other = authors.logits(arrays, IMAGES)
    assert np.abs(other - reference).max() > 1e-5 * np.abs(reference).max()  # so the settings are seen


def test_settings(tmp_path: Path) -> None:
    big = authors.network(patch=16, width=192, heads=3, mlp=768, depth=12, grid=2, classes=3, representation=192)
    assert read(saved(tmp_path / "w.npz", big)).settings == {
        "name": "ViT-Ti/16", "depth": 12, "width": 192, "mlp_dim": 768, "heads": 3, "patch_size": 16, "image_size": 32,
        "num_classes": 3, "representation_size": 192, "pool": "token", "gelu": "tanh", "norm_eps": 1e-6,
    }  # fmt: skip


def test_a_file_without_head(tmp_path: Path) -> None:
    arrays = authors.network(classes=None, representation=7)
    weights = read(saved(tmp_path / "w.npz", arrays))
    assert "num_classes" not in weights.settings
    network = model.load(str(tmp_path / "w.npz"))
    with torch.no_grad():
        features = network.features(torch.from_numpy(IMAGES)).numpy()
        assert not network(torch.from_numpy(IMAGES)).any()
    np.testing.assert_allclose(features, authors.features(arrays, IMAGES), rtol=0, atol=1e-5)


def lazy(url: str) -> LazyTensors:
    tensors = read(url).tensors
    assert isinstance(tensors, LazyTensors)
    return tensors


@pytest.mark.parametrize("options", [{}, {"representation": 7}, {"pooled": True}, {"classes": None}, {"grid": 1}])
def test_written_it_is_the_same_file_again(tmp_path: Path, options: dict[str, int]) -> None:
    arrays = authors.network(**options)  # type: ignore[arg-type]
    weights = read(saved(tmp_path / "a.npz", arrays))
    write(weights, str(tmp_path / "b.npz"), PLAIN)
    with np.load(tmp_path / "b.npz", allow_pickle=False) as file:
        assert set(file) == set(arrays)
        for name, value in arrays.items():
            assert file[name].dtype == np.float32
            assert file[name].tobytes() == value.tobytes(), name
    again = read(str(tmp_path / "b.npz"))
    assert again.settings == weights.settings
    assert all(torch.equal(again.tensors[name], weights.tensors[name]) for name in weights.tensors)
    write(again, str(tmp_path / "c.npz"), PLAIN)
    assert (tmp_path / "c.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_written_in_16_bits(tmp_path: Path, dtype: torch.dtype) -> None:
    weights = read(saved(tmp_path / "a.npz", authors.network()))
    write(weights, str(tmp_path / "b.npz"), PLAIN, dtype=dtype)
    again = read(str(tmp_path / "b.npz"))
    for name, value in weights.tensors.items():
        assert torch.equal(again.tensors[name], value.to(dtype))


@pytest.mark.parametrize(
    ("settings", "says"),
    [({"gelu": "erf"}, "gelu = erf"), ({"norm_eps": 1e-12}, "norm_eps = 1e-12")],
)
def test_what_the_file_cannot_hold_is_refused(tmp_path: Path, settings: dict[str, object], says: str) -> None:
    weights = read(saved(tmp_path / "a.npz", authors.network()))
    weights.settings |= settings
    with pytest.raises(WeightsError, match=says):
        write(weights, str(tmp_path / "b.npz"), PLAIN)
    assert not (tmp_path / "b.npz").exists()


def test_other_pixels_are_refused(tmp_path: Path) -> None:
    weights = read(saved(tmp_path / "a.npz", authors.network()))
    weights.preprocessing = Preprocessing(12, mean=(0.485, 0.456, 0.406))
    with pytest.raises(WeightsError, match="cannot hold mean"):
        write(weights, str(tmp_path / "b.npz"), PLAIN)


def changed(**changes: object) -> Arrays:
    arrays: dict[str, object] = dict(authors.network())
    for name, value in changes.items():
        name = {
            "position": "Transformer/posembed_input/pos_embedding",
            "scale": "Transformer/encoder_norm/scale",
            "q": "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel",
        }.get(name, name)
        if value is None:
            del arrays[name]
        else:
            arrays[name] = value
    return arrays  # type: ignore[return-value]


BAD = {
    "grid not square": (changed(position=np.zeros((1, 8, 12), np.float32)), "8 entries are neither a square grid"),
    "no position": (changed(position=None), "position embeddings: is missing"),
    "two positions": (changed(pos_embedding=np.zeros((1, 9, 12), np.float32)), "has both"),
    "missing": (changed(scale=None), r"missing: Transformer/encoder_norm/scale \(12\)$"),
    "left over": (changed(extra=np.zeros((2, 3), np.float32)), r"left over: extra \(2 x 3\)$"),
    "shape": (changed(q=np.zeros((12, 4, 3), np.float32)), r"query/kernel has the shape \(12, 4, 3\) instead of"),
    "integers": (changed(scale=np.zeros(12, np.int64)), "'<i8', which holds no weights"),
    "complex": (changed(scale=np.zeros(12, np.complex64)), "'<c8', which holds no weights"),
    "objects": (changed(scale=np.array([{}] * 12)), "Python objects"),
    "records": (changed(scale=np.zeros(12, [("a", "f4")])), "a type that is no number"),
    "other channels": (changed(**{"embedding/kernel": np.zeros((4, 4, 1, 12), np.float32)}), "no projection of square"),
    "two networks": (authors.prefixed(changed(), "a/") | authors.prefixed(changed(), "b/"), "several networks"),
    "both spellings": (authors.newer(changed()) | changed(), "has both"),
    "stacked and not": (authors.stacked(changed()) | changed(), "has both"),
    "a block is missing": ({n: v for n, v in changed().items() if "block_0" not in n}, "lacks Transformer/"),
    "no network": ({"x": np.zeros(3)}, "has no array embedding/kernel"),
    "empty": ({}, "has no array"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_other_arrays_are_refused_on_one_line(tmp_path: Path, case: str) -> None:
    arrays, says = BAD[case]
    np.savez(tmp_path / "w.npz", allow_pickle=True, **arrays)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match=says) as error:
        model.load(str(tmp_path / "w.npz"))
    assert str(error.value).startswith(str(tmp_path / "w.npz"))
    assert "\n" not in str(error.value)


def test_missing_blocks_are_listed_once(tmp_path: Path) -> None:
    arrays = {n: v for n, v in authors.network(depth=5).items() if not ("block_2" in n and "out/bias" in n)}
    del arrays["Transformer/encoderblock_3/MultiHeadDotProductAttention_1/out/bias"]
    with pytest.raises(WeightsError, match=r"missing: Transformer/encoderblock_2-3/MultiHead\w+/out/bias \(12\)$"):
        read(saved(tmp_path / "w.npz", arrays))


def test_a_name_with_a_line_break_is_shown_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"left over: a\?b \(1\)$"):
        read(saved(tmp_path / "w.npz", authors.network() | {"a\nb": np.zeros(1, np.float32)}))


def test_a_header_that_claims_more_than_the_file_has(tmp_path: Path) -> None:
    """No memory is taken for it."""
    header = io.BytesIO()
    fields = {"descr": "<f4", "fortran_order": False, "shape": (1 << 20, 1 << 20)}
    np.lib.format.write_array_header_1_0(header, fields)
    with zipfile.ZipFile(tmp_path / "w.npz", "w") as file:
        file.writestr("embedding/kernel.npy", header.getvalue() + bytes(64))
    with pytest.raises(WeightsError, match="does not agree with its 64 bytes"):
        read(str(tmp_path / "w.npz"))


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_give_one_line(tmp_path: Path, compressed: bool) -> None:
    """Cut anywhere, or with any byte changed: an error of one line, or a network that loads."""
    (np.savez_compressed if compressed else np.savez)(tmp_path / "w.npz", **authors.network(depth=1))
    content = (tmp_path / "w.npz").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = {"error": 0, "loaded": 0}
    path = tmp_path / "damaged.npz"
    for trial in range(150):
        damaged = bytearray(content)
        if trial % 3 == 0:
            damaged = damaged[: rng.integers(len(damaged))]
        else:  # every second time in the directory at the end
            low = 0 if trial % 3 == 1 else len(damaged) - 3000
            for place in rng.integers(low, len(damaged), size=rng.integers(1, 4)):
                damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        outcomes[outcome(path)] += 1
    assert outcomes["error"] > 100
    assert outcomes["loaded"] < 50  # the date of a member, for example


def outcome(path: Path) -> str:
    try:
        model.load(str(path))
    except WeightsError as error:
        return "error" if len(str(error).splitlines()) == 1 else "several lines"
    return "loaded"
