"""Rules of right answers, image by image in plain Python."""

import pytest
import torch

from orchestrator.training.evaluation.rules import RULES

CLASSES = 8
SHARED = [1, 3, 4, 6]


def ranked(row: list[float]) -> list[int]:
    """Classes, the best first; of equal ones the lower number."""
    return sorted(range(len(row)), key=lambda k: (-row[k], k))


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    found = torch.randn(60, CLASSES, generator=torch.Generator().manual_seed(1))
    found[7] = 0.0  # a tie of all
    return found


def targets_of(labels: list[list[int]]) -> torch.Tensor:
    targets = torch.zeros(len(labels), CLASSES)
    for row, of_image in enumerate(labels):
        targets[row, of_image] = 1.0
    return targets


def test_one_label(logits: torch.Tensor) -> None:
    labels = [[i % CLASSES] for i in range(60)]
    right, judged = RULES["top1"](logits, targets_of(labels), None)
    assert judged.all()
    for name, k in (("top1", 1), ("top5", 5)):
        expected = [labels[i][0] in ranked(row)[:k] for i, row in enumerate(logits.tolist())]
        assert right[name].tolist() == expected
        assert 0 < sum(expected) < 60


@pytest.mark.parametrize(("rule", "name"), [("any_label", "top1"), ("multi_label", "precision_at_1")])
def test_any_of_several_labels(logits: torch.Tensor, rule: str, name: str) -> None:
    labels = [[] if i % 5 == 0 else sorted({i % CLASSES, (3 * i + 1) % CLASSES}) for i in range(60)]
    right, judged = RULES[rule](logits, targets_of(labels), None)
    assert judged.tolist() == [bool(of_image) for of_image in labels]
    assert right[name].tolist() == [ranked(row)[0] in labels[i] for i, row in enumerate(logits.tolist())]


def test_objectnet(logits: torch.Tensor) -> None:
    """Right if the best of all classes is one of the object's; beside it, the best among the shared ones."""
    labels = [[3, 6] if i % 2 else [1] for i in range(60)]
    shared = torch.zeros(CLASSES, dtype=torch.bool)
    shared[SHARED] = True
    right, judged = RULES["objectnet"](logits, targets_of(labels), shared)
    assert judged.all()
    rows = logits.tolist()
    assert right["top1"].tolist() == [ranked(row)[0] in labels[i] for i, row in enumerate(rows)]
    among = [next(k for k in ranked(row) if k in SHARED) in labels[i] for i, row in enumerate(rows)]
    assert right["top1_among_shared"].tolist() == among
    assert sum(among) > int(right["top1"].sum())
    with pytest.raises(ValueError, match="objectnet"):
        RULES["objectnet"](logits, targets_of(labels), None)
