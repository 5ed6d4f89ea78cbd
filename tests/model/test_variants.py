import dataclasses

import pytest
import torch

from model import VisionTransformer, ViTConfig, create_model, vit_config
from model.variants import NAMES, ModelConfigError


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("ViT-B/32", 88_224_232),
        ("ViT-B/16", 86_567_656),
        ("ViT-L/32", 306_535_400),
        ("ViT-L/16", 304_326_632),
        ("ViT-H/14", 632_045_800),
    ],
)
def test_parameter_counts_are_exactly_those_of_the_paper(name: str, parameters: int) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("ViT-Ti/16", (12, 192, 768, 3)),
        ("ViT-S/16", (12, 384, 1536, 6)),
        ("ViT-B/16", (12, 768, 3072, 12)),
        ("ViT-L/16", (24, 1024, 4096, 16)),
        ("ViT-H/16", (32, 1280, 5120, 16)),
    ],
)
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    config = vit_config(name)
    assert (config.depth, config.width, config.mlp_dim, config.heads) == shape
    assert (config.dropout, config.representation_size, config.pool, config.head_bias) == (0.0, None, "token", 0.0)


@pytest.mark.parametrize("name", ["ViT-H/14", "vit_h14", "H/14", "h14", "vit-h-14", "VIT-h/14", " ViT-H/14 ", "vith14"])
def test_lenient_spellings(name: str) -> None:
    assert vit_config(name) == vit_config("ViT-H/14")
    assert vit_config(name).name == "ViT-H/14"


def test_every_canonical_name_is_the_name_of_its_config() -> None:
    assert len(NAMES) == 15
    assert [vit_config(name).name for name in NAMES[:2]] == list(NAMES[:2])
    for name in NAMES:
        patch = int(name.split("/")[1])
        assert vit_config(name, image_size=2 * patch).name == name


def test_any_patch_size_in_the_name_or_as_an_override() -> None:
    assert vit_config("ViT-B/8").patch_size == 8
    overridden = vit_config("ViT-B/16", patch_size=8)
    assert overridden == vit_config("ViT-B/8")


def test_overrides_replace_single_fields() -> None:
    config = vit_config("ViT-B/16", width=96, heads=3, depth=2, dropout=0.1, pool="gap", head_bias=-10.0)
    assert (config.width, config.heads, config.depth, config.dropout) == (96, 3, 2, 0.1)
    assert (config.pool, config.head_bias) == ("gap", -10.0)
    assert config.mlp_dim == 3072  # of the variant
    assert vit_config("ViT-B/16", depth=None) == vit_config("ViT-B/16")


def test_config_is_immutable_and_hashable() -> None:
    config = vit_config("ViT-B/16")
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.depth = 1  # type: ignore[misc]
    assert config in {vit_config("b16")}


@pytest.mark.parametrize(
    ("arguments", "key", "mentions"),
    [
        ({"name": "ViT-Huge/14"}, "name", "ViT-H/14"),
        ({"name": "resnet50"}, "name", "unknown model 'resnet50'"),
        ({"name": "ViT-B/0"}, "name", "unknown model"),
        ({"image_size": 225}, "image_size", "nearest: 224 or 240"),
        ({"image_size": 8}, "image_size", "nearest: 16"),
        ({"heads": 7}, "heads", "7 heads do not divide the width 768"),
        ({"depth": 0}, "depth", "positive whole number, not 0"),
        ({"width": 768.0}, "width", "positive whole number, not 768.0"),
        ({"mlp_dim": True}, "mlp_dim", "positive whole number, not True"),
        ({"num_classes": -1}, "num_classes", "positive whole number, not -1"),
        ({"representation_size": 0}, "representation_size", "positive whole number, not 0"),
        ({"dropout": 1.0}, "dropout", "less than 1"),
        ({"dropout": -0.1}, "dropout", "at least 0"),
        ({"dropout": "0.1"}, "dropout", "finite number"),
        ({"head_bias": float("nan")}, "head_bias", "finite number"),
        ({"pool": "max"}, "pool", "token, gap"),
        ({"gelu": "relu"}, "gelu", "tanh, erf"),
        ({"norm_eps": 0.0}, "norm_eps", "positive"),
        ({"norm_eps": float("nan")}, "norm_eps", "finite"),
        ({"norm_eps": "1e-6"}, "norm_eps", "finite"),
        ({"droput": 0.1}, "droput", "dropout"),
    ],
)
def test_impossible_models_are_one_line_that_names_the_key(arguments: dict, key: str, mentions: str) -> None:
    with pytest.raises(ModelConfigError) as caught:
        vit_config(**{"name": "ViT-B/16"} | arguments)
    assert isinstance(caught.value, ValueError)
    assert caught.value.key == key
    assert mentions in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_created_directly_is_validated() -> None:
    with pytest.raises(ModelConfigError, match="heads"):
        ViTConfig("mine", image_size=32, patch_size=4, depth=2, width=64, mlp_dim=128, heads=5, num_classes=10)
    config = ViTConfig("mine", image_size=32, patch_size=4, depth=2, width=64, mlp_dim=128, heads=4, num_classes=10)
    assert VisionTransformer(config)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("vit_base_patch16_224", "ViT-B/16"),
        ("vit_huge_patch14_224.orig_in21k", "ViT-H/14"),
        ("google/vit-base-patch16-224-in21k", "ViT-B/16"),
        ("hf-hub:timm/vit_tiny_patch16_224.augreg_in21k", "ViT-Ti/16"),
        ("facebook/deit-small-patch16-224", "ViT-S/16"),
        ("vit_large_patch14_clip_224.openai", None),
        ("vit_giant_patch14_224", None),
        ("vit_base_patch16_siglip_224", None),
        ("vit_small_patch14_dinov2.lvd142m", None),
        ("vit_base_r50_s16_224", None),
        ("deit_base_distilled_patch16_224", None),
        ("deit3_base_patch16_224", None),
        ("openai/clip-vit-base-patch32", None),
        ("facebook/dinov2-base", None),
    ],
)
def test_names_of_timm_and_hugging_face(name: str, ours: str | None) -> None:
    with pytest.raises(ModelConfigError) as caught:
        vit_config(name)
    text = str(caught.value)
    assert text.endswith(f"use {ours}") if ours else text.endswith("none of ours is its network")
    if ours:
        assert vit_config(ours).name == ours
