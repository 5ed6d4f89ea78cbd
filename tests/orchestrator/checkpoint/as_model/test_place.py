"""Weights of one network in another."""

import pytest
import scipy.ndimage
import torch
from torch import Tensor

import model
from orchestrator.checkpoint.as_model.place import Misfit, place
from tests.orchestrator.checkpoint.runs import MODEL


def network(**changes: object) -> model.VisionTransformer:
    torch.manual_seed(len(changes))
    made = model.create_model(**{**MODEL, **changes})  # type: ignore[arg-type]
    torch.nn.init.normal_(made.head.weight)
    return made


def weights(**changes: object) -> dict[str, Tensor]:
    """Of another network: its values are its own."""
    made = network(**changes)
    return {name: torch.randn_like(p) for name, p in made.named_parameters()}


def test_the_same_network() -> None:
    there, given = network(), weights()
    placed = place(there, given, "keep")
    assert all(torch.equal(p, given[name]) for name, p in there.named_parameters())
    assert placed.lines() == (f"loaded {len(given)} tensors", "not loaded: nothing")


@pytest.mark.parametrize(("before", "after"), [(8, 12), (12, 8), (8, 22)])
@pytest.mark.parametrize("pool", ["token", "gap"])
def test_position_embeddings_are_resized_as_the_authors_do(before: int, after: int, pool: str) -> None:
    """The authors' code calls scipy.ndimage.zoom with order 1 on the grid, and keeps the class token's."""
    there, given = network(image_size=after, pool=pool), weights(image_size=before, pool=pool)
    old, first = given["embedding.position"], int(pool == "token")
    grid = old[0, first:].unflatten(0, (before // 2, before // 2)).numpy()
    zoomed = scipy.ndimage.zoom(grid, (after / before, after / before, 1), order=1)
    placed = place(there, given, "keep")
    found = there.embedding.position[0]
    assert torch.equal(found[:first], old[0, :first])
    assert torch.allclose(found[first:], torch.from_numpy(zoomed).flatten(0, 1), atol=1e-6)
    sides = f"resized from {before // 2} x {before // 2} to {after // 2} x {after // 2} patches"
    assert sides in placed.lines()[0]


def test_a_new_head() -> None:
    there, given = network(num_classes=3), weights(representation_size=32)
    before = there.head.weight.clone()
    placed = place(there, given, "new")
    assert torch.equal(there.head.weight, before)
    assert torch.equal(there.blocks[0].mlp.fc1.weight, given["blocks.0.mlp.fc1.weight"])
    assert placed.lines()[1] == (
        "not loaded: new: head.bias, head.weight; left out: head.bias, head.weight, pre_logits.bias, pre_logits.weight"
    )


def test_a_new_head_on_the_same_pre_logits() -> None:
    there, given = network(num_classes=3, representation_size=32), weights(representation_size=32)
    placed = place(there, given, "new")
    assert there.pre_logits is not None
    assert torch.equal(there.pre_logits.weight, given["pre_logits.weight"])
    assert placed.lines()[1] == "not loaded: new: head.bias, head.weight; left out: head.bias, head.weight"


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"num_classes": 3},
            "of another shape: head.bias (10,) instead of (3,), head.weight (10, 48) instead of (3, 48); with "
            "model.head: new the job gets a head of its own",
        ),
        ({"depth": 4}, "missing: blocks.3.attention.out.bias (48,), "),
        ({"depth": 2}, "left over: blocks.2.attention.out.bias (48,), "),
        ({"pool": "gap"}, "left over: embedding.class_token (1, 1, 48)"),
        ({"width": 96}, "of another shape: "),
    ],
)
def test_nothing_is_loaded_by_half(changes: dict[str, object], line: str) -> None:
    there = network(**changes)
    before = {name: p.clone() for name, p in there.named_parameters()}
    with pytest.raises(Misfit) as error:
        place(there, weights(), "keep")
    assert line in str(error.value)
    assert all(torch.equal(p, before[name]) for name, p in there.named_parameters())


def test_pre_logits_that_the_job_lacks() -> None:
    with pytest.raises(Misfit, match=r"left over: pre_logits\.bias \(32,\), .*model\.head: new"):
        place(network(), weights(representation_size=32), "keep")


def test_shapes_alone() -> None:
    given = {name: value.to("meta") for name, value in weights(image_size=12).items()}
    there = network()
    before = there.norm.weight.clone()
    assert "resized from 6 x 6 to 4 x 4" in place(there, given, "keep").lines()[0]
    assert torch.equal(there.norm.weight, before)
