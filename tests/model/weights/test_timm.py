"""timm's files against the network's definition, and what has no place in ours."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from model.weights import timm
from model.weights.weights import PLAIN, Preprocessing, Weights, WeightsError
from tests.model.weights import foreign
from tests.model.weights.foreign import Array, close, ours

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {  # state, model_args, GELU
    "token": ({}, {}, "erf"),
    "tanh": ({}, {"act_layer": "gelu_tanh"}, "tanh"),
    "average": ({"token": False}, {"class_token": False, "global_pool": "avg", "fc_norm": False}, "erf"),
    "no class position": ({"positions": foreign.GRID}, {"no_embed_class": True}, "erf"),
    "no qkv bias": ({"qkv_bias": False}, {"qkv_bias": False}, "erf"),
    "inert arguments": ({}, {"drop_rate": 0.1, "drop_path_rate": 0.2, "init_values": None}, "erf"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_logits_of_the_definition(kind: str, tmp_path: Path) -> None:
    state_args, model_args, gelu = KINDS[kind]
    state = foreign.timm_state(**state_args)
    url = foreign.folder(tmp_path / "m", foreign.timm_config(**model_args), state)
    assert timm.recognise(url, PLAIN)
    weights = timm.read(url, PLAIN)
    images = foreign.pixels()
    assert close(ours(weights, images), foreign.logits(state, images, kind=gelu))
    other = {"erf": "tanh", "tanh": "erf"}[gelu]
    assert not close(ours(weights, images), foreign.logits(state, images, kind=other))


def test_heads_are_those_of_the_architecture() -> None:
    """One base model of timm has 16 heads, the others 12."""
    for name, heads in {
        "vit_tiny_patch16_224": 3,
        "vit_small_patch32_384": 6,
        "vit_base_patch16_224": 12,
        "deit_base_patch16_384": 12,
        "vit_base_patch16_gap_224": 16,
        "vit_base_patch16_siglip_gap_224": 12,
        "vit_huge_patch14_224": 16,
        "vit_giant_patch14_224": 16,
    }.items():
        assert timm.architecture_settings({"architecture": name}, "u")["heads"] == heads


def test_gelu_is_that_of_the_architecture() -> None:
    tanh = ("vit_base_patch32_siglip_gap_256", "vit_large_patch16_siglip_gap_512", "vit_so400m_patch16_siglip_gap_256")
    erf = ("vit_base_patch16_siglip_gap_256", "vit_large_patch16_siglip_gap_256", "vit_so400m_patch14_siglip_gap_224")
    found = {name: timm.architecture_settings({"architecture": name}, "u")["gelu"] for name in tanh + erf}
    assert found == dict.fromkeys(tanh, "tanh") | dict.fromkeys(erf, "erf")


def test_preprocessing_and_class_names_belong_to_the_model(tmp_path: Path) -> None:
    config = foreign.timm_config() | {"label_names": list("abcde")}
    weights = timm.read(foreign.folder(tmp_path / "m", config, foreign.timm_state()), PLAIN)
    assert weights.class_names == tuple("abcde")
    assert weights.preprocessing == Preprocessing(
        12, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation="bicubic", resize=13
    )


def test_old_files_with_pre_logits_are_read(tmp_path: Path) -> None:
    """Until 2022 timm had pre-logits: a dense layer `pre_logits.fc` and tanh."""
    state, rng = foreign.timm_state(), np.random.default_rng(3)
    state["pre_logits.fc.weight"] = rng.standard_normal((6, foreign.WIDTH)).astype(np.float32)
    state["pre_logits.fc.bias"] = rng.standard_normal(6).astype(np.float32)
    state["head.weight"] = rng.standard_normal((foreign.CLASSES, 6)).astype(np.float32)
    weights = timm.read(foreign.folder(tmp_path / "m", foreign.timm_config(), state), PLAIN)
    images = foreign.pixels()
    hidden = foreign.features(state, images, kind="erf") @ state["pre_logits.fc.weight"].T + state["pre_logits.fc.bias"]
    assert close(ours(weights, images), np.tanh(hidden) @ state["head.weight"].T + state["head.bias"])


def vector(width: int = foreign.WIDTH) -> Array:
    return np.ones(width, np.float32)


@pytest.mark.parametrize(
    ("name", "array", "meaning"),
    [
        ("dist_token", np.ones((1, 1, 24), np.float32), "a distillation token"),
        ("head_dist.weight", np.ones((5, 24), np.float32), "a distillation token"),
        ("reg_token", np.ones((1, 4, 24), np.float32), "register tokens"),
        ("blocks.0.ls1.gamma", vector(), "layer scale"),
        ("blocks.1.gamma_1", vector(), "layer scale"),
        ("blocks.0.attn.q_norm.weight", vector(6), "norms of queries and keys"),
        ("blocks.0.attn.relative_position_bias_table", np.ones((9, 4), np.float32), "relative position embeddings"),
        ("norm_pre.weight", vector(), "a norm before the encoder"),
        ("fc_norm.weight", vector(), "a norm after average pooling"),
        ("attn_pool.latent", vector(), "attention pooling"),
        ("patch_embed.backbone.stem.conv.weight", vector(), "a ResNet before the encoder"),
        ("blocks.0.mlp.w12.weight", vector(), "a gated MLP"),
        ("layers.0.blocks.0.norm1.weight", vector(), "Swin"),
        ("blocks.0.surprise.weight", vector(), "blocks.0.surprise.weight"),
    ],
)
def test_a_layer_without_a_place_is_refused_by_its_name(name: str, array: Array, meaning: str, tmp_path: Path) -> None:
    url = foreign.folder(tmp_path / "m", foreign.timm_config(), foreign.timm_state() | {name: array})
    with pytest.raises(WeightsError, match=meaning) as error:
        timm.read(url, PLAIN)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": "swin_base_patch4_window7_224"}, "swin_base_patch4_window7_224"),
        ({"architecture": "vit_base_patch16_clip_224"}, "vit_base_patch16_clip_224"),
        ({"architecture": "vit_base_patch16_reg4_gap_256"}, "vit_base_patch16_reg4_gap_256"),
        ({"architecture": None}, "None"),
        ({"global_pool": "avg"}, "global_pool"),
        ({"model_args": {"global_pool": "avg", "num_heads": 4}}, "class_token = True and fc_norm = True"),
        ({"model_args": {"global_pool": "avg", "fc_norm": False, "num_heads": 4}}, "class_token = True"),
        ({"model_args": {"global_pool": "map", "class_token": False, "num_heads": 4}}, "'map'"),
        ({"model_args": {"act_layer": "quick_gelu", "num_heads": 4}}, "quick_gelu"),
        ({"model_args": {"init_values": 1e-6, "num_heads": 4}}, "init_values = 1e-06"),
        ({"model_args": {"reg_tokens": 4, "num_heads": 4}}, "reg_tokens = 4"),
        ({"model_args": {"norm_layer": "rmsnorm", "num_heads": 4}}, "norm_layer = 'rmsnorm'"),
        ({"model_args": {"block_fn": "parallel", "num_heads": 4}}, "block_fn"),
        ({"pretrained_cfg": {"input_size": [3, 224, 224]}}, "input_size"),
        ({"pretrained_cfg": {"interpolation": "cubic"}}, "interpolation = 'cubic'"),
        ({"pretrained_cfg": {"mean": [0.5, 0.5]}}, "mean"),
        ({"pretrained_cfg": {"std": [0.5, 0.5, 0.0]}}, "std"),
        ({"pretrained_cfg": {"crop_pct": 0.9, "crop_mode": "border"}}, "border"),
    ],
)
def test_a_configuration_that_cannot_be_held_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    url = foreign.folder(tmp_path / "m", foreign.timm_config() | change, foreign.timm_state())
    with pytest.raises(WeightsError) as error:
        timm.read(url, PLAIN)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_sizes_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    state = foreign.timm_state()
    for number, (name, shape) in enumerate(
        {"pos_embed": (1, 8, 24), "patch_embed.proj.weight": (24, 1, 4, 4), "head.weight": (5, 23)}.items()
    ):
        wrong = state | {name: np.ones(shape, np.float32)}
        with pytest.raises(WeightsError):
            timm.read(foreign.folder(tmp_path / f"m{number}", foreign.timm_config(), wrong), PLAIN)
    del state["patch_embed.proj.weight"]
    with pytest.raises(WeightsError, match=r"embedding.projection.weight is missing"):
        timm.read(foreign.folder(tmp_path / "none", foreign.timm_config(), state), PLAIN)


@pytest.mark.parametrize("kind", ["token", "tanh", "average"])
def test_what_is_written_is_what_timm_defines(kind: str, tmp_path: Path) -> None:
    """The written arrays, read by the safetensors library, give the logits by the definition."""
    from safetensors.numpy import load_file

    state_args, model_args, gelu = KINDS[kind]
    state = foreign.timm_state(**state_args)
    weights = timm.read(foreign.folder(tmp_path / "m", foreign.timm_config(**model_args), state), PLAIN)
    written = str(tmp_path / "w")
    timm.write(weights, written, PLAIN, dtype=torch.float32)
    found = load_file(tmp_path / "w" / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(np.array_equal(found[name], state[name]) for name in state)
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    args = config["model_args"]
    assert args["act_layer"] == {"erf": "gelu", "tanh": "gelu_tanh"}[gelu]
    assert int(args["embed_dim"] * args["mlp_ratio"]) == foreign.MLP  # timm computes it so
    assert args["fc_norm"] is False
    assert args["class_token"] == (kind != "average")
    assert config["pretrained_cfg"]["mean"] == [0.485, 0.456, 0.406]
    back = timm.read(written, PLAIN)
    assert back.preprocessing == weights.preprocessing
    assert back.settings == weights.settings


def test_a_state_dictionary_alone(tmp_path: Path) -> None:
    """Other programs' files have no settings: the GELU is timm's default, and sizes of no variant leave heads open."""
    path = tmp_path / "m.safetensors"
    save_file(foreign.timm_state(), path)
    assert timm.recognise(str(path), PLAIN)
    weights = timm.read(str(path), PLAIN)
    assert weights.settings["gelu"] == "erf"
    assert "heads" not in weights.settings
    with pytest.raises(WeightsError, match="number of heads"):
        ours(weights, foreign.pixels())


def test_a_safetensors_file_of_ours_keeps_the_settings(tmp_path: Path) -> None:
    config = foreign.timm_config(act_layer="gelu_tanh")
    weights = timm.read(foreign.folder(tmp_path / "m", config, foreign.timm_state()), PLAIN)
    timm.write(weights, str(tmp_path / "m.safetensors"), PLAIN, dtype=torch.float32)
    back = timm.read(str(tmp_path / "m.safetensors"), PLAIN)
    assert back.settings == weights.settings
    assert back.preprocessing == weights.preprocessing


def test_what_timm_cannot_hold_is_not_written(tmp_path: Path) -> None:
    weights = timm.read(foreign.folder(tmp_path / "m", foreign.timm_config(), foreign.timm_state()), PLAIN)
    for key, value, said in (("representation_size", 7, "pre_logits"), ("norm_eps", 1e-12, "epsilon")):
        other = Weights(weights.settings | {key: value}, weights.tensors, weights.preprocessing)
        with pytest.raises(WeightsError, match=said):
            timm.write(other, str(tmp_path / "w"), PLAIN, dtype=torch.float32)
    with pytest.raises(WeightsError, match=r"heads = 4, mean and std would be lost"):
        timm.write(weights, str(tmp_path / "w.pth"), PLAIN, dtype=torch.float32)
    assert not (tmp_path / "w").exists()
    assert not (tmp_path / "w.pth").exists()


def test_timm_itself_agrees(tmp_path: Path) -> None:
    library = pytest.importorskip("timm")
    for number, (state_args, model_args, _) in enumerate(KINDS.values()):
        url = foreign.folder(
            tmp_path / f"m{number}", foreign.timm_config(**model_args), foreign.timm_state(**state_args)
        )
        images = foreign.pixels()
        network = library.create_model(f"local-dir:{url}", pretrained=True).eval()
        with torch.no_grad():
            assert close(ours(timm.read(url, PLAIN), images), network(torch.from_numpy(images)).numpy())
