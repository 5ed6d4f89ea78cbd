"""Every format into every other one and back, what is refused, and that a failure leaves nothing."""

import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from model.vit import create_model
from model.weights import convert as module
from model.weights import export, huggingface, npz
from model.weights.convert import convert, outputs
from model.weights.formats import FORMATS
from model.weights.load import load, read
from model.weights.weights import PLAIN, Preprocessing, Weights, WeightsError
from tests.model.weights import foreign

IMAGENET = Preprocessing(12, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bicubic", resize=14)
NAMES = {"export": "m", "npz": "m.npz", "timm": "m", "huggingface": "m", "onnx": "m.onnx"}


def weights(preprocessing: Preprocessing | None = None, **settings: object) -> Weights:
    """A small model with random numbers everywhere."""
    sizes = {"patch_size": 4, "width": 24, "depth": 2, "mlp_dim": 40, "heads": 4}
    torch.manual_seed(0)
    model = create_model("ViT-Ti/4", 5, 12, **(sizes | settings))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    kept = {"name": "ViT-Ti/4", "num_classes": 5, "image_size": 12, "pool": "token", "gelu": "tanh", "norm_eps": 1e-6}
    return Weights(kept | sizes | settings, model.state_dict(), preprocessing or Preprocessing(12))


def source(folder: Path, preprocessing: Preprocessing | None = None, **settings: object) -> str:
    url = str(folder / "source")
    export.write(weights(preprocessing, **settings), url, PLAIN, dtype=torch.float32)
    return url


@pytest.mark.parametrize("first", [name for name in NAMES if name != "onnx"])
def test_from_every_format_to_every_other_and_back(first: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="requirements-onnx.txt is not installed")
    begin, meant = source(tmp_path), weights()
    original = read(begin)
    (tmp_path / "first").mkdir()
    middle = str(tmp_path / "first" / NAMES[first])
    convert(begin, middle, format=first)
    for second, name in NAMES.items():
        (tmp_path / second).mkdir()
        last = str(tmp_path / second / name)
        lines = convert(middle, last, format=second)
        assert lines[-2].startswith("checked  32 tensors are equal to the bit"), lines
        found = FORMATS[second].load().read(last, PLAIN)
        assert all(torch.equal(found.tensors[tensor], original.tensors[tensor]) for tensor in original.tensors)
        assert {key: found.settings[key] for key in meant.settings} == meant.settings
        assert found.preprocessing == original.preprocessing


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
def test_the_model_that_comes_out_gives_the_logits_of_the_definition(gelu: str, tmp_path: Path) -> None:
    """timm's file into Hugging Face's, loaded as a user does."""
    state = foreign.timm_state()
    act = {"tanh": "gelu_tanh", "erf": "gelu"}[gelu]
    url = foreign.folder(tmp_path / "timm", foreign.timm_config(act_layer=act), state)
    convert(url, str(tmp_path / "hf"), format="huggingface")
    images = foreign.pixels()
    with torch.no_grad():
        found = load(str(tmp_path / "hf"))(torch.from_numpy(images)).numpy()
    assert foreign.close(found, foreign.logits(state, images, kind=gelu))
    assert read(str(tmp_path / "hf")).preprocessing.mean == (0.485, 0.456, 0.406)


def test_mean_and_std_are_folded_where_a_format_does_not_say_them(tmp_path: Path) -> None:
    """Logits of the same pixels are equal: normalised by the model's numbers, and scaled to [-1, 1] for the npz."""
    begin = source(tmp_path, IMAGENET)
    lines = convert(begin, str(tmp_path / "m.npz"))
    assert any("folded into the patch projection" in line for line in lines)
    assert any("interpolation = bicubic, resize = 14" in line for line in lines)
    pixels = torch.from_numpy(foreign.pixels() / 2 + 0.5)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET.mean, IMAGENET.std))
    with torch.no_grad():
        wanted = load(begin)((pixels - mean) / std)
        found = load(str(tmp_path / "m.npz"))(2 * pixels - 1)
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())
    assert not torch.allclose(load(begin)(2 * pixels - 1), wanted, rtol=1e-2)


def test_half_the_size(tmp_path: Path) -> None:
    begin = source(tmp_path)
    convert(begin, str(tmp_path / "b"), dtype="bf16", format="timm")
    found = load_file(tmp_path / "b" / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert torch.equal(found["norm.weight"], read(begin).tensors["norm.weight"].bfloat16())


@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_pre_logits_are_dropped_only_on_request(format: str, tmp_path: Path) -> None:
    begin, target = source(tmp_path, representation_size=30), tmp_path / "t"
    with pytest.raises(WeightsError, match="pre_logits and the head that reads it would be lost"):
        convert(begin, str(target), format=format)
    assert sorted(os.listdir(tmp_path)) == ["source"]
    lines = convert(begin, str(target), format=format, drop=["pre_logits"])
    assert any(line.startswith("dropped  pre_logits; the head") for line in lines)
    found, original = read(str(target)), read(begin)
    assert found.settings["num_classes"] == 5
    assert not found.tensors["head.weight"].any()
    assert found.tensors["head.weight"].shape == (5, 24)
    pixels = torch.rand(2, 3, 12, 12)
    with torch.no_grad():
        before = load(begin)
        before.pre_logits = None
        assert torch.allclose(load(str(target)).features(pixels), before.features(pixels), atol=1e-6)
    assert "pre_logits.weight" in original.tensors


def test_without_the_head_an_encoder_holds_pre_logits(tmp_path: Path) -> None:
    begin = source(tmp_path, representation_size=30)
    convert(begin, str(tmp_path / "t"), format="huggingface", drop=["head"])
    found = read(str(tmp_path / "t"))
    pixels = torch.rand(2, 3, 12, 12)
    wanted = outputs(read(begin), pixels, torch.float32)[0]
    assert torch.allclose(outputs(found, pixels, torch.float32)[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "target", "format", "said"),
    [
        ({"norm_eps": 1e-12}, "t", "timm", "epsilon"),
        ({"gelu": "erf"}, "t.npz", None, "gelu"),
        ({"norm_eps": 1e-12}, "t.npz", None, "norm_eps"),
        ({"pool": "gap"}, "t", "huggingface", "average pooling"),
        ({}, "t.pth", None, "gelu = 'tanh', heads = 4"),
        ({}, "t", "npz", "must end with .npz"),
        ({}, "t.npz", "timm", "must be a folder's name"),
        ({}, "source", "timm", "same"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(
    settings: dict[str, object], target: str, format: str | None, said: str, tmp_path: Path
) -> None:
    begin = source(tmp_path, **settings)
    with pytest.raises(WeightsError, match=said) as error:
        convert(begin, str(tmp_path / target), format=format)
    assert "\n" not in str(error.value)
    assert "partial" not in str(error.value)
    assert os.listdir(tmp_path) == ["source"]


def test_what_is_there_is_replaced_only_by_force(tmp_path: Path) -> None:
    begin, target = source(tmp_path), tmp_path / "t"
    convert(begin, str(target), format="timm")
    with pytest.raises(WeightsError, match="exists"):
        convert(begin, str(target), format="huggingface")
    assert not (target / "preprocessor_config.json").exists()
    convert(begin, str(target), format="huggingface", force=True)
    assert huggingface.recognise(str(target), PLAIN)
    (target / "thesis.tex").write_text("years of work")
    with pytest.raises(WeightsError, match=r"thesis\.tex"):
        convert(begin, str(target), format="timm", force=True)
    assert (target / "thesis.tex").exists()
    assert sorted(os.listdir(tmp_path)) == ["source", "t"]


def test_a_target_that_reads_back_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer with a fault: one number of one tensor, then a setting. What was there stays."""
    begin, target = source(tmp_path), tmp_path / "t"
    convert(begin, str(target), format="timm")
    before = (target / "model.safetensors").read_bytes()
    true_read = huggingface.read

    def wrong_number(url: str, files: object) -> Weights:
        found = true_read(url, PLAIN)
        tensors = {name: found.tensors[name] for name in found.tensors}
        tensors["norm.bias"] = tensors["norm.bias"].clone()
        tensors["norm.bias"][3] = torch.nextafter(tensors["norm.bias"][3], torch.tensor(9.0))
        return Weights(found.settings, tensors, found.preprocessing)

    def wrong_setting(url: str, files: object) -> Weights:
        found = true_read(url, PLAIN)
        return Weights(found.settings | {"heads": 2}, found.tensors, found.preprocessing)

    for fault, said in ((wrong_number, "norm.bias"), (wrong_setting, "heads = 2")):
        monkeypatch.setattr(huggingface, "read", fault)
        for force in (False, True):
            with pytest.raises(WeightsError, match=said):
                convert(begin, str(target if force else tmp_path / "new"), format="huggingface", force=force)
    assert (target / "model.safetensors").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["source", "t"]


def test_outputs_beyond_the_bound_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin = source(tmp_path)
    true = module.outputs
    monkeypatch.setattr(module, "outputs", lambda w, p, d: [x * (1 + 2e-5 * (w is not seen[0])) for x in true(w, p, d)])
    seen: list[Weights] = []
    monkeypatch.setattr(module, "read", lambda url: seen.append(read(url)) or seen[0])
    with pytest.raises(WeightsError, match="outputs differ by 2e-05"):
        convert(begin, str(tmp_path / "t"), format="timm")
    assert os.listdir(tmp_path) == ["source"]


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = weights()
    broken.tensors["norm.bias"][0] = float("nan")
    export.write(broken, str(tmp_path / "source"), PLAIN, dtype=torch.float32)
    with pytest.raises(WeightsError, match="not finite"):
        convert(str(tmp_path / "source"), str(tmp_path / "t"), format="timm")
    assert os.listdir(tmp_path) == ["source"]


def test_any_url(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    begin = source(tmp_path)
    convert(begin, "memory://bucket/timm", format="timm")
    convert("memory://bucket/timm", "memory://bucket/m.npz")
    assert npz.recognise("memory://bucket/m.npz", PLAIN)
    convert("memory://bucket/m.npz", str(tmp_path / "back"))
    assert torch.equal(read(str(tmp_path / "back")).tensors["head.weight"], read(begin).tensors["head.weight"])
    assert sorted(path.removeprefix("/bucket/") for path in memory.find("/bucket")) == [
        "m.npz",
        "timm/config.json",
        "timm/model.safetensors",
    ]


def test_a_state_dictionary_in_a_pytorch_file(tmp_path: Path) -> None:
    """A known variant's sizes determine the heads. torch reads the file, and it holds timm's names alone."""
    tiny = weights(width=192, depth=12, mlp_dim=768, heads=3, gelu="erf")
    export.write(tiny, str(tmp_path / "source"), PLAIN, dtype=torch.float32)
    convert(str(tmp_path / "source"), str(tmp_path / "m.pth"))
    state = torch.load(tmp_path / "m.pth", weights_only=True)
    assert np.array_equal(state["blocks.11.attn.qkv.weight"], tiny.tensors["blocks.11.attention.qkv.weight"])
    assert len(state) == len(tiny.tensors)
    assert read(str(tmp_path / "m.pth")).settings["heads"] == 3
