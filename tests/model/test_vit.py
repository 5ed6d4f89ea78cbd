"""The network against a plain implementation of the paper; its initialisation against the expected distributions."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.ndimage
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from model import VisionTransformer, checkpoint_blocks, compile_blocks, create_model
from model.layers.dropout import fold_in
from model.variants import ModelConfigError, ViTConfig


def plain_vit(model: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """(features, logits) in float64 from the model's weights: separate q, k, v, explicit softmax, norm and GELU."""
    config, state = model.config, model.state_dict()

    def weight(name: str) -> Tensor:
        return state[name].double()

    def dense(x: Tensor, name: str, rows: slice = slice(None)) -> Tensor:
        return torch.einsum("...i,oi->...o", x, weight(f"{name}.weight")[rows]) + weight(f"{name}.bias")[rows]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred / (variance + config.norm_eps).sqrt() * weight(f"{name}.weight") + weight(f"{name}.bias")

    def gelu(x: Tensor) -> Tensor:
        if config.gelu == "erf":
            return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attention(x: Tensor, name: str) -> Tensor:
        width, size = config.width, config.width // config.heads
        q, k, v = (dense(x, f"{name}.qkv", slice(i * width, (i + 1) * width)) for i in range(3))
        heads = []
        for h in range(config.heads):
            own = slice(h * size, (h + 1) * size)
            scores = q[..., own] @ k[..., own].transpose(1, 2) / math.sqrt(size)
            powers = torch.exp(scores - scores.amax(-1, keepdim=True))
            heads.append(powers / powers.sum(-1, keepdim=True) @ v[..., own])
        return dense(torch.cat(heads, dim=-1), f"{name}.out")

    batch, _, height, width = images.shape
    patch, side = config.patch_size, config.image_size // config.patch_size
    rows, columns = height // patch, width // patch
    patches = images.double().reshape(batch, 3, rows, patch, columns, patch)
    x = torch.einsum("bcrpsq,dcpq->brsd", patches, weight("embedding.projection.weight"))
    x = (x + weight("embedding.projection.bias")).reshape(batch, rows * columns, config.width)

    position = weight("embedding.position")[0]
    prefix = 0
    if config.pool == "token":
        prefix = 1
        x = torch.cat([weight("embedding.class_token").repeat(batch, 1, 1), x], dim=1)
    if (rows, columns) != (side, side):
        grid = position[prefix:].reshape(side, side, -1).numpy()
        grid = scipy.ndimage.zoom(grid, (rows / side, columns / side, 1), order=1)
        position = torch.cat([position[:prefix], torch.from_numpy(grid).reshape(rows * columns, -1)])
    x = x + position

    for i in range(config.depth):
        x = x + attention(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attention")
        hidden = gelu(dense(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1"))
        x = x + dense(hidden, f"blocks.{i}.mlp.fc2")
    x = norm(x, "norm")
    x = x[:, 0] if config.pool == "token" else x.mean(1)
    if config.representation_size is not None:
        x = torch.tanh(dense(x, "pre_logits"))
    return x, dense(x, "head")


@torch.no_grad()
def random_model(name: str, **overrides: object) -> VisionTransformer:
    """A model without degenerate parameters: those that the initialisation leaves constant are random, too."""
    torch.manual_seed(0)
    model = create_model(name, **overrides).eval()  # type: ignore[arg-type]
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("head.weight"):
            parameter.normal_(std=parameter.shape[1] ** -0.5)
        elif "norm" in parameter_name and parameter_name.endswith("weight"):
            parameter.uniform_(0.5, 1.5)
        elif parameter.ndim == 1 or "class_token" in parameter_name:
            parameter.normal_(std=0.1)
        elif "position" in parameter_name:
            parameter.normal_(std=0.5)
    return model


@torch.no_grad()
def assert_agrees(model: VisionTransformer, images: Tensor) -> None:
    expected_features, expected_logits = plain_vit(model, images)
    assert expected_logits.std() > 0.1  # otherwise the comparison would prove nothing
    torch.testing.assert_close(model.features(images).double(), expected_features, rtol=0, atol=1e-5)
    torch.testing.assert_close(model(images).double(), expected_logits, rtol=0, atol=1e-5)


def random_images(batch: int, height: int, width: int) -> Tensor:
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize(
    ("name", "image_size", "depth"),
    [
        ("ViT-Ti/16", 224, 12),
        ("ViT-S/32", 224, 12),
        ("ViT-S/16", 64, 12),
        ("ViT-B/32", 224, 3),
        ("ViT-B/16", 96, 3),
        ("ViT-L/32", 96, 2),
        ("ViT-L/16", 64, 2),
        ("ViT-H/14", 42, 2),
    ],
)
def test_logits_equal_a_plain_implementation(name: str, image_size: int, depth: int) -> None:
    model = random_model(name, image_size=image_size, depth=depth, num_classes=19)
    assert_agrees(model, random_images(2, image_size, image_size))


def test_the_whole_vit_h14_equals_a_plain_implementation() -> None:
    model = random_model("ViT-H/14", image_size=28, num_classes=11, representation_size=1280)
    assert len(model.blocks) == 32
    assert_agrees(model, random_images(1, 28, 28))


def test_the_authors_gelu_and_epsilon_are_the_defaults() -> None:
    config = create_model("Ti/8", image_size=8, depth=1).config
    assert (config.gelu, config.norm_eps) == ("tanh", 1e-6)


@pytest.mark.parametrize("gelu", ["tanh", "erf"])
@pytest.mark.parametrize("norm_eps", [1e-12, 1e-6, 1e-2])
def test_gelu_and_epsilon(gelu: str, norm_eps: float) -> None:
    """Each setting gives logits of its own, in every norm and MLP."""
    model = random_model("Ti/8", image_size=16, depth=2, num_classes=7, gelu=gelu, norm_eps=norm_eps)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("embedding") or name.endswith(("out.weight", "fc2.weight")):
                parameter *= 1e-2  # small tokens, so that the epsilon matters
    images = random_images(2, 16, 16)
    assert_agrees(model, images)
    others = {"tanh", "erf"} - {gelu}, {1e-12, 1e-6, 1e-2} - {norm_eps}
    for config in (dataclasses.replace(model.config, gelu=g) for g in others[0]):
        assert_differs(model, config, images)
    for config in (dataclasses.replace(model.config, norm_eps=eps) for eps in others[1]):
        assert_differs(model, config, images)


@torch.no_grad()
def assert_differs(model: VisionTransformer, config: ViTConfig, images: Tensor) -> None:
    other = VisionTransformer(config).double().eval()
    other.load_state_dict(model.state_dict())
    expected = plain_vit(model, images)[1]
    assert (other(images.double()) - expected).abs().max() > 1e-10


@pytest.mark.parametrize("pool", ["token", "gap"])
@pytest.mark.parametrize("representation_size", [None, 48])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (48, 48), (16, 16), (24, 56)])
def test_pools_pre_logits_and_other_image_sizes(
    pool: str, representation_size: int | None, height: int, width: int
) -> None:
    model = random_model(
        "Ti/8", image_size=32, depth=2, num_classes=7, pool=pool, representation_size=representation_size
    )
    assert model.features(random_images(2, height, width)).shape == (2, representation_size or 192)
    assert_agrees(model, random_images(2, height, width))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_training_skips_the_other_tokens_of_the_last_block_with_the_same_result(mode: str, dropout: float) -> None:
    """Logits and gradients equal those of a network that computes every token and then selects the class token."""
    model = random_model("Ti/8", image_size=32, depth=3, num_classes=7, dropout=dropout).double().train()
    checkpoint_blocks(model, mode)  # type: ignore[arg-type]
    images, seeds = random_images(2, 32, 32).double(), torch.tensor([3, 2**60])
    shapes = []
    model.blocks[-1].mlp.register_forward_hook(lambda _, inputs, output: shapes.append(tuple(output.shape)))

    def whole(x: Tensor, seeds: Tensor) -> Tensor:
        x = model.embedding(x, seeds)
        for index, block in enumerate(model.blocks):
            x = block(x, fold_in(seeds, index) if dropout else None)
        return model.head(model.norm(x)[:, 0])

    results = []
    for function in (model, whole):
        model.zero_grad()
        logits = function(images, seeds)
        (logits * torch.linspace(1, 2, logits.numel()).view_as(logits)).sum().backward()
        results.append([logits.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert shapes[0] == (2, 1, 192)
    assert shapes[-1] == (2, 17, 192)
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_channels_last_images_give_the_same_logits() -> None:
    model = random_model("Ti/8", image_size=32, depth=2, num_classes=7)
    images = random_images(2, 32, 32)
    torch.testing.assert_close(
        model(images.contiguous(memory_format=torch.channels_last)), model(images), rtol=0, atol=1e-5
    )


def test_bfloat16_parameters_take_float32_images() -> None:
    model = random_model("Ti/8", image_size=32, depth=2, num_classes=7)
    images = random_images(2, 32, 32)
    exact = model(images)
    rounded = model.bfloat16()(images)
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0, atol=0.1)


def test_images_that_patches_do_not_tile_are_refused() -> None:
    model = create_model("Ti/8", image_size=32, depth=1)
    with pytest.raises(ModelConfigError, match="36 is not a multiple of the patch size 8"):
        model(torch.zeros(1, 3, 36, 32))


def test_a_pooled_model_has_no_class_token() -> None:
    with torch.device("meta"):
        pooled, token = (create_model("B/16", pool=pool) for pool in ("gap", "token"))
    assert pooled.embedding.position.shape == (1, 196, 768)
    assert token.embedding.position.shape == (1, 197, 768)
    assert set(token.state_dict()) - set(pooled.state_dict()) == {"embedding.class_token"}


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = create_model("B/16", depth=2, num_classes=1000, representation_size=768, head_bias=-10.0)
    width, hidden = 768, 3072

    def assert_uniform(values: Tensor, bound: float) -> None:
        assert values.abs().max() <= bound
        assert values.abs().max() > 0.999 * bound
        assert values.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
        assert abs(values.mean().item()) < 0.01 * bound

    def assert_truncated_normal(values: Tensor, std: float) -> None:
        # Truncation at two standard deviations multiplies the standard deviation by 0.87962566.
        assert values.std().item() == pytest.approx(std, rel=0.01)
        assert values.abs().max() <= 2 * std / 0.87962566 * (1 + 1e-6)
        assert values.abs().max() > 1.98 * std / 0.87962566

    for block in model.blocks:
        for third in block.attention.qkv.weight.split(width):
            assert_uniform(third, math.sqrt(6 / (width + width)))
        assert_uniform(block.attention.out.weight, math.sqrt(6 / (width + width)))
        assert_uniform(block.mlp.fc1.weight, math.sqrt(6 / (width + hidden)))
        assert_uniform(block.mlp.fc2.weight, math.sqrt(6 / (width + hidden)))
        assert not block.attention.qkv.bias.any()
        assert not block.attention.out.bias.any()
        for bias in (block.mlp.fc1.bias, block.mlp.fc2.bias):
            assert bias.std().item() == pytest.approx(1e-6, rel=0.1)
    assert_truncated_normal(model.embedding.projection.weight, (3 * 16 * 16) ** -0.5)
    assert not model.embedding.projection.bias.any()
    assert model.embedding.position.std().item() == pytest.approx(0.02, rel=0.01)
    assert not model.embedding.class_token.any()
    assert_truncated_normal(model.pre_logits.weight, width**-0.5)
    assert not model.pre_logits.bias.any()
    assert not model.head.weight.any()
    assert (model.head.bias == -10.0).all()
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_initialisation_is_a_function_of_the_torch_seed() -> None:
    def digest(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return create_model("Ti/16", image_size=32, depth=1, num_classes=3).state_dict()

    first, again, other = digest(0), digest(0), digest(1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])


def dropout_model(**overrides: object) -> VisionTransformer:
    return random_model("Ti/8", image_size=32, depth=3, num_classes=7, dropout=0.2, **overrides).train()


def test_dropout_follows_every_dense_layer_but_qkv_and_the_position_embeddings() -> None:
    model = dropout_model()
    seen: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *_: seen.append(name)

    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d) or "dropout" in name:
            module.register_forward_hook(note(name))
    model(random_images(1, 32, 32), torch.tensor([5]))
    order = ["attention.qkv", "attention.out", "dropout", "mlp.fc1", "mlp.dropout1", "mlp.fc2", "mlp.dropout2"]
    blocks = [f"blocks.{i}.{name}" for i in range(3) for name in order]
    assert seen == ["embedding.projection", "embedding.dropout", *blocks, "head"]


def test_a_samples_logits_under_dropout_do_not_depend_on_its_batch() -> None:
    model = dropout_model()
    images, seeds = random_images(5, 32, 32), torch.tensor([3, 1, -4, 2**62, 5])
    together = model(images, seeds)
    apart = torch.cat([model(images[3:], seeds[3:]), model(images[:3], seeds[:3])])
    torch.testing.assert_close(apart[[2, 3, 4, 0, 1]], together, rtol=0, atol=1e-5)
    other_masks = model(images, seeds + 1)
    assert ((other_masks - together).abs().amax(dim=1) > 1e-2).all()


def test_dropout_of_each_block_differs() -> None:
    masks = []
    model = dropout_model(pool="gap")  # every block computes all tokens
    for module in model.modules():
        if type(module).__name__ == "SampleDropout":
            module.register_forward_hook(lambda _, inputs, output: masks.append((output == 0).flatten()[:6000]))
    model(random_images(1, 32, 32), torch.tensor([5]))
    assert len(masks) == 1 + 3 * 3
    agreement = np.corrcoef(torch.stack([mask[:3000] for mask in masks]).numpy())
    off_diagonal = agreement[~np.eye(len(masks), dtype=bool)]
    assert np.abs(off_diagonal).max() < 5 / math.sqrt(3000)


def test_missing_seeds_come_from_torchs_generator() -> None:
    model, images = dropout_model(), random_images(2, 32, 32)
    torch.manual_seed(7)
    first, second = model(images), model(images)
    torch.manual_seed(7)
    assert torch.equal(model(images), first)
    assert not torch.allclose(second, first)
    model.eval()
    assert torch.equal(model(images), model(images, torch.tensor([1, 2])))


@pytest.mark.servers
def test_compiled_blocks_equal_eager_ones_and_share_graphs() -> None:
    images, seeds = random_images(2, 16, 16), torch.tensor([1, 2])
    results = []
    for compiled in (False, True):
        model = random_model(
            "Ti/8", image_size=16, depth=3, width=32, mlp_dim=64, heads=2, num_classes=5, dropout=0.2
        ).train()
        checkpoint_blocks(model, "selective")
        names = list(model.state_dict())
        if compiled:
            torch._dynamo.reset()
            counters.clear()
            compile_blocks(model)
        logits = model(images, seeds)
        logits.square().sum().backward()
        assert list(model.state_dict()) == names
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    assert counters["stats"]["unique_graphs"] == 2, "one for the last block, one for the others"
    for eager, compiled_result in zip(*results, strict=True):
        torch.testing.assert_close(compiled_result, eager, rtol=1e-5, atol=1e-5)
