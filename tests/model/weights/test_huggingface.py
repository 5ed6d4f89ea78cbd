"""Hugging Face's files against the network's definition, and what has no place in ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from model.weights import huggingface
from model.weights.weights import PLAIN, LazyTensors, Preprocessing, Weights, WeightsError
from tests.model.weights import foreign
from tests.model.weights.foreign import close, ours

GELUS = {"gelu": "erf", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}


@pytest.mark.parametrize("new", [False, True])
@pytest.mark.parametrize("act", GELUS)
def test_a_classifier_gives_the_logits_of_the_definition(act: str, new: bool, tmp_path: Path) -> None:
    config = foreign.huggingface_config(hidden_act=act, layer_norm_eps=1e-3)  # an epsilon that is seen
    url = foreign.folder(tmp_path / "m", config, foreign.huggingface_state(new=new))
    assert huggingface.recognise(url, PLAIN)
    images, state = foreign.pixels(), foreign.timm_state()
    found = ours(huggingface.read(url, PLAIN), images)
    assert close(found, foreign.logits(state, images, kind=GELUS[act], eps=1e-3))
    assert not close(found, foreign.logits(state, images, kind=GELUS[act], eps=1e-6))


def test_defaults_are_those_of_the_library(tmp_path: Path) -> None:
    """config.json leaves out what has the default: GELU by the error function, epsilon 1e-12, 12 heads."""
    config = foreign.huggingface_config()
    del config["num_attention_heads"]
    weights = huggingface.read(foreign.folder(tmp_path / "m", config, foreign.huggingface_state()), PLAIN)
    assert {key: weights.settings[key] for key in ("gelu", "norm_eps", "heads")} == {
        "gelu": "erf",
        "norm_eps": 1e-12,
        "heads": 12,
    }
    images = foreign.pixels()
    assert close(ours(weights, images), foreign.logits(foreign.timm_state(), images, kind="erf", eps=1e-12, heads=12))
    assert weights.preprocessing == Preprocessing(12)
    assert weights.class_names == tuple(f"class {n}" for n in range(5))


@pytest.mark.parametrize("new", [False, True])
def test_the_pooler_of_an_encoder_is_pre_logits(new: bool, tmp_path: Path) -> None:
    theirs = foreign.huggingface_state(new=new, pooler=7)
    config = foreign.huggingface_config("ViTModel", pooler_output_size=7)
    weights = huggingface.read(foreign.folder(tmp_path / "m", config, theirs), PLAIN)
    assert weights.settings["representation_size"] == 7
    assert "num_classes" not in weights.settings
    images = foreign.pixels()
    first = foreign.features(foreign.timm_state(), images, kind="erf", eps=1e-12)
    pooled = np.tanh(first @ theirs["pooler.dense.weight"].T + theirs["pooler.dense.bias"])
    assert close(ours(weights, images), pooled)

    written = str(tmp_path / "w")
    huggingface.write(weights, written, PLAIN, dtype=torch.float32)
    old = foreign.huggingface_state(pooler=7)
    found = load_file(tmp_path / "w" / "model.safetensors")
    assert found.keys() == old.keys()
    assert all(np.array_equal(found[name], old[name]) for name in old)
    assert json.loads((tmp_path / "w" / "config.json").read_text())["architectures"] == ["ViTModel"]


def test_a_missing_qkv_bias_is_zeros(tmp_path: Path) -> None:
    url = foreign.folder(
        tmp_path / "m", foreign.huggingface_config(qkv_bias=False), foreign.huggingface_state(qkv_bias=False)
    )
    images = foreign.pixels()
    wanted = foreign.logits(foreign.timm_state(qkv_bias=False), images, kind="erf", eps=1e-12)
    assert close(ours(huggingface.read(url, PLAIN), images), wanted)


@pytest.mark.parametrize("act", ["gelu", "gelu_pytorch_tanh"])
def test_a_classifier_is_written_in_the_spelling_that_all_versions_read(act: str, tmp_path: Path) -> None:
    config = foreign.huggingface_config(hidden_act=act, layer_norm_eps=1e-12)
    state = foreign.huggingface_state()
    weights = huggingface.read(foreign.folder(tmp_path / "m", config, state), PLAIN)
    huggingface.write(weights, str(tmp_path / "w"), PLAIN, dtype=torch.float32)
    found = load_file(tmp_path / "w" / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(np.array_equal(found[name], state[name]) for name in state)
    written = json.loads((tmp_path / "w" / "config.json").read_text())
    assert written | config == written  # says all that the first file said
    back = huggingface.read(str(tmp_path / "w"), PLAIN)
    assert (back.settings, back.preprocessing, back.class_names) == (
        weights.settings,
        weights.preprocessing,
        weights.class_names,
    )


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ({"size": 12, "resample": 3}, Preprocessing(12, interpolation="bicubic")),
        ({"size": {"height": 12, "width": 12}, "resample": 1}, Preprocessing(12, interpolation="lanczos")),
        (
            {"size": {"shortest_edge": 16}, "do_center_crop": True, "crop_size": {"height": 12, "width": 12}},
            Preprocessing(12, resize=16),
        ),
        ({"do_normalize": False}, Preprocessing(12, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))),
        (
            {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
            Preprocessing(12, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)),
        ),
        (
            {"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [127.5] * 3},
            Preprocessing(12, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ),
    ],
)
def test_preprocessing_belongs_to_the_model(said: dict[str, Any], meant: Preprocessing, tmp_path: Path) -> None:
    config, state = foreign.huggingface_config(), foreign.huggingface_state()
    url = foreign.folder(tmp_path / "m", config, state, preprocessor_config=said)
    weights = huggingface.read(url, PLAIN)
    assert weights.preprocessing == meant
    huggingface.write(weights, str(tmp_path / "w"), PLAIN, dtype=torch.float32)
    assert huggingface.read(str(tmp_path / "w"), PLAIN).preprocessing == meant


def test_the_unused_pooler_of_an_old_classifier_is_left_out(tmp_path: Path) -> None:
    state = foreign.huggingface_state()
    both = state | {
        "vit.pooler.dense.weight": np.ones((24, 24), np.float32),
        "vit.pooler.dense.bias": np.ones(24, np.float32),
    }
    weights = huggingface.read(foreign.folder(tmp_path / "m", foreign.huggingface_config(), both), PLAIN)
    assert "pre_logits.weight" not in weights.tensors


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model_type": "deit", "architectures": ["DeiTForImageClassificationWithTeacher"]}, "distillation token"),
        ({"model_type": "swin", "architectures": ["SwinForImageClassification"]}, "stages of falling resolution"),
        ({"model_type": "clip", "architectures": ["CLIPModel"]}, "text model"),
        ({"model_type": "beit", "architectures": ["BeitForImageClassification"]}, "relative positions"),
        ({"model_type": "dinov2", "architectures": ["Dinov2Model"]}, "layer scale"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "'bert'"),
        ({"architectures": ["ViTForMaskedImageModeling"]}, "ViTForMaskedImageModeling"),
        ({"architectures": "ViTModel"}, "architectures"),
        ({"hidden_act": "relu"}, "relu"),
        ({"hidden_act": ["gelu"]}, "hidden_act"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"layer_norm_eps": "1e-12"}, "layer_norm_eps"),
        ({"num_channels": 1}, "num_channels"),
        ({"pooler_act": "gelu"}, "pooler_act"),
        ({"num_attention_heads": "4"}, "num_attention_heads"),
        ({"num_hidden_layers": 2}, "num_hidden_layers"),
        ({"image_size": 16}, "image_size"),
        ({"image_size": [12, 16]}, "image_size"),
        ({"patch_size": 2}, "patch_size"),
    ],
)
def test_a_configuration_that_cannot_be_held_is_refused(keys: dict[str, Any], said: str, tmp_path: Path) -> None:
    url = foreign.folder(tmp_path / "m", foreign.huggingface_config() | keys, foreign.huggingface_state())
    assert huggingface.recognise(url, PLAIN)
    with pytest.raises(WeightsError) as error:
        huggingface.read(url, PLAIN)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "meaning"),
    [
        ("vit.embeddings.distillation_token", "a distillation token"),
        ("vit.embeddings.register_tokens", "register tokens"),
        ("vit.embeddings.mask_token", "a mask token"),
        ("vit.encoder.layer.0.layer_scale1.lambda1", "layer scale"),
        ("vit.encoder.layer.0.attention.attention.relative_position_bias.table", "relative position embeddings"),
        ("vit.encoder.layer.0.surprise.weight", "surprise"),
    ],
)
def test_a_layer_without_a_place_is_refused_by_its_name(name: str, meaning: str, tmp_path: Path) -> None:
    state = foreign.huggingface_state() | {name: np.ones((1, 1, 24), np.float32)}
    with pytest.raises(WeightsError, match=meaning):
        huggingface.read(foreign.folder(tmp_path / "m", foreign.huggingface_config(), state), PLAIN)


def test_a_missing_query_is_named(tmp_path: Path) -> None:
    state = foreign.huggingface_state()
    del state["vit.encoder.layer.1.attention.attention.query.weight"]
    with pytest.raises(WeightsError, match=r"blocks.1.attention: 2 of the three weights"):
        huggingface.read(foreign.folder(tmp_path / "m", foreign.huggingface_config(), state), PLAIN)


def test_pre_logits_with_a_head_have_no_class(tmp_path: Path) -> None:
    config, state = foreign.huggingface_config(), foreign.huggingface_state()
    weights = huggingface.read(foreign.folder(tmp_path / "m", config, state), PLAIN)
    for key, value, said in (("representation_size", 7, "no class with both"), ("pool", "gap", "average pooling")):
        other = Weights(weights.settings | {key: value}, LazyTensors({}), weights.preprocessing)
        with pytest.raises(WeightsError, match=said):
            huggingface.write(other, str(tmp_path / "w"), PLAIN, dtype=torch.float32)
    assert not (tmp_path / "w").exists()


def test_a_model_in_parts(tmp_path: Path) -> None:
    """Large models are in several files with an index; an index that points out of the folder is refused."""
    state, folder = foreign.huggingface_state(), tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(foreign.huggingface_config()))
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for part, own in parts.items():
        save_file({name: state[name] for name in own}, folder / part)
    index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    images = foreign.pixels()
    wanted = foreign.logits(foreign.timm_state(), images, kind="erf", eps=1e-12)
    assert close(ours(huggingface.read(str(folder), PLAIN), images), wanted)
    for wrong in ({"weight_map": {"a": "../../secret.safetensors"}}, {"weight_map": 3}, {}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(wrong))
        with pytest.raises(WeightsError, match="weight_map"):
            huggingface.read(str(folder), PLAIN)


def test_transformers_itself_agrees(tmp_path: Path) -> None:
    library = pytest.importorskip("transformers")
    images = foreign.pixels()
    for new in (False, True):
        config = foreign.huggingface_config(hidden_act="gelu_new")
        url = foreign.folder(tmp_path / f"m{new}", config, foreign.huggingface_state(new=new))
        network = library.ViTForImageClassification.from_pretrained(url).eval()
        with torch.no_grad():
            assert close(ours(huggingface.read(url, PLAIN), images), network(torch.from_numpy(images)).logits.numpy())
