import numpy as np
import pytest
import scipy.ndimage
import torch

from model.layers.position import resize_position_embeddings


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize(("old", "new"), [(14, (24, 24)), (7, (3, 11)), (24, (14, 14)), (5, (5, 5)), (4, (1, 9))])
def test_equals_the_authors_scipy_zoom(prefix: int, old: int, new: tuple[int, int]) -> None:
    embed = torch.from_numpy(np.random.default_rng(0).normal(size=(1, prefix + old * old, 6))).float()
    resized = resize_position_embeddings(embed, new, prefix)
    grid = embed[0, prefix:].reshape(old, old, 6).numpy()
    expected = scipy.ndimage.zoom(grid, (new[0] / old, new[1] / old, 1), order=1)
    assert expected.shape == (*new, 6)
    assert torch.equal(resized[:, :prefix], embed[:, :prefix])
    np.testing.assert_allclose(resized[0, prefix:].numpy(), expected.reshape(-1, 6), atol=1e-5)


def test_gradient_reaches_the_stored_grid() -> None:
    embed = torch.zeros(1, 1 + 16, 2, requires_grad=True)
    resize_position_embeddings(embed, (7, 7), 1).sum().backward()
    assert embed.grad is not None
    assert (embed.grad > 0).all()
    assert embed.grad[0, 1:].sum().item() == pytest.approx(2 * 49)  # interpolation weights of each point sum to one


def test_dtype_is_kept() -> None:
    embed = torch.ones(1, 1 + 16, 2, dtype=torch.bfloat16)
    assert resize_position_embeddings(embed, (6, 6), 1).dtype == torch.bfloat16


def test_a_grid_that_is_not_square_is_refused() -> None:
    with pytest.raises(ValueError, match="15 grid entries do not make a square grid"):
        resize_position_embeddings(torch.zeros(1, 16, 2), (3, 3), 1)
