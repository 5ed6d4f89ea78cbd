import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model.objectives import correct_top_k, dense_targets, sigmoid_cross_entropy, softmax_cross_entropy

B, K = 6, 10


def random_logits(dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(B, K, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)


def one_label() -> tuple[Tensor, Tensor]:
    """Class numbers and their dense targets."""
    labels = torch.tensor([3, 0, 9, 1, 3, 7])
    return labels, dense_targets(labels[:, None], torch.ones(B, 1), K)


def several_labels() -> Tensor:
    labels = torch.tensor([[3, 1, -1], [0, -1, -1], [9, 8, 7], [-1, -1, -1], [2, -1, 4], [5, 6, -1]])
    weights = torch.tensor([[1, 0.5, 9.0], [1, 9.0, 9.0], [1, 1, 1], [9.0, 9.0, 9.0], [1, 9.0, 0.25], [1, 1, 9.0]])
    return dense_targets(labels, weights, K)


def test_dense_targets() -> None:
    expected = torch.zeros(B, K)
    expected[0, 3], expected[0, 1] = 1, 0.5
    expected[1, 0] = 1
    expected[2, 7:10] = 1
    expected[4, 2], expected[4, 4] = 1, 0.25
    expected[5, 5:7] = 1
    assert torch.equal(several_labels(), expected)
    assert several_labels().dtype == torch.float32
    labels, targets = one_label()
    assert torch.equal(targets, F.one_hot(labels, K).float())


def test_dense_targets_of_a_repeated_class_keep_the_larger_weight() -> None:
    targets = dense_targets(torch.tensor([[2, 2, 0]]), torch.tensor([[0.5, 0.75, 1.0]]), 4)
    assert targets.tolist() == [[1.0, 0.0, 0.75, 0.0]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_softmax_equals_torchs_cross_entropy(smoothing: float, dtype: torch.dtype) -> None:
    labels, targets = one_label()
    logits = random_logits(dtype)
    loss = softmax_cross_entropy(logits, targets, smoothing)
    assert loss.dtype == torch.float32
    expected = F.cross_entropy(logits.float(), labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(loss, expected)


def test_softmax_shares_one_unit_among_several_labels() -> None:
    logits, targets = random_logits(), several_labels()
    shares = targets / targets.sum(dim=1, keepdim=True)
    expected = F.cross_entropy(logits, shares.nan_to_num(), reduction="none")
    torch.testing.assert_close(softmax_cross_entropy(logits, targets), expected)
    assert softmax_cross_entropy(logits, targets)[3] == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("multi_label", [False, True])
def test_sigmoid_equals_torchs_binary_cross_entropy(smoothing: float, dtype: torch.dtype, multi_label: bool) -> None:
    targets = several_labels() if multi_label else one_label()[1]
    logits = random_logits(dtype)
    smoothed = targets * (1 - smoothing) + smoothing / K
    loss = sigmoid_cross_entropy(logits, targets, smoothing)
    assert loss.dtype == torch.float32
    expected = F.binary_cross_entropy_with_logits(logits.double(), smoothed.double(), reduction="none").sum(1)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)


def test_sigmoid_at_the_initial_head_bias() -> None:
    # Kernel 0 and bias -10: the loss is log(1 + e^-10) per class, plus 10 for the true class.
    targets = dense_targets(torch.tensor([[5]]), torch.ones(1, 1), 18_291)
    loss = sigmoid_cross_entropy(torch.full((1, 18_291), -10.0), targets)
    assert loss.item() == pytest.approx(18_291 * math.log1p(math.exp(-10)) + 10, rel=1e-5)


@pytest.mark.parametrize("objective", [sigmoid_cross_entropy, softmax_cross_entropy])
def test_losses_and_gradients_are_finite_for_padding_and_large_logits(objective) -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [5.0, 5.0, 5.0]], requires_grad=True)
    targets = dense_targets(torch.tensor([[1], [-1]]), torch.ones(2, 1), 3)
    loss = objective(logits, targets, 0.1)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_correct_top_k_equals_a_stable_sort(data: st.DataObject) -> None:
    classes = data.draw(st.integers(1, 6))
    rows = data.draw(st.integers(1, 4))
    k = data.draw(st.integers(1, classes))
    # Few distinct values, so that ties are common.
    row = st.lists(st.integers(-1, 1), min_size=classes, max_size=classes)
    logits = data.draw(st.lists(row, min_size=rows, max_size=rows))
    true = data.draw(st.lists(st.sets(st.integers(0, classes - 1)), min_size=rows, max_size=rows))
    targets = torch.tensor([[0.5 if c in row else 0.0 for c in range(classes)] for row in true])
    expected = []
    for row_logits, row_true in zip(logits, true, strict=True):
        ranked = np.argsort(-np.array(row_logits), kind="stable")  # equal logits: lower class number first
        expected.append(bool(set(ranked[:k].tolist()) & row_true))
    assert correct_top_k(torch.tensor(logits).float(), targets, k).tolist() == expected


def test_correct_top_k_equals_torchs_topk_without_ties() -> None:
    labels, targets = one_label()
    logits = random_logits()
    for k in (1, 5):
        expected = (logits.topk(k, dim=1).indices == labels[:, None]).any(1)
        assert torch.equal(correct_top_k(logits, targets, k), expected)
    assert torch.equal(correct_top_k(logits.bfloat16(), targets, 1), correct_top_k(logits, targets, 1))


def test_nan_is_never_correct() -> None:
    nan = float("nan")
    logits = torch.tensor([[nan, nan, nan], [1.0, nan, 0.0], [nan, 1.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert correct_top_k(logits, targets, 1).tolist() == [False, False, False]
    assert correct_top_k(logits, targets, 2).tolist() == [False, True, False]
