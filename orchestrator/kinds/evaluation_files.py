"""Files of an evaluation: accuracy by class, confusion matrices, and paired tests of the answers to the same images.

report/SET.WEIGHTS.classes.csv       class, name, images, right, accuracy, standard_error
report/SET.WEIGHTS.confusion.csv     a row a class: images of it, by the class that they are taken for
report/SET.WEIGHTS.confusion.png     the same as a picture, each row divided by its images
report/SET.WEIGHTS.worst.csv         the most frequent confusions
"""

import csv
import io
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data import storage
from orchestrator.training.evaluation.metrics import NOT_JUDGED, RIGHT, class_accuracies, standard_error, worst_pairs
from orchestrator.training.evaluation.paired import compare

MOST_PAIRS = 20  # of the table of confusions


def write_report(
    url: str, names: Mapping[str, Sequence[str]], weights: Sequence[str], before: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Write the files of all sets.

    Args:
        url: the folder of the evaluation.
        names: of the classes of each set, by number; empty if they have none.
        weights: kinds that were measured.
        before: answers of another evaluation, by set.

    Returns:
        By set: `worst`, the confusions of the first weights, and `pairs`, the paired tests.
    """
    found: dict[str, Any] = {}
    for name, class_names in names.items():
        answers: dict[str, np.ndarray] = {}
        worst: list[dict[str, Any]] = []
        for kind in weights:
            content = np.load(io.BytesIO(storage.read(f"{url}/answers/{name}.{kind}.npz")), allow_pickle=False)
            answers[f"{kind} weights"] = content["answers"]
            pairs = _write_set(f"{url}/report/{name}.{kind}", content, class_names)
            worst = worst or pairs
        if name in before:
            answers["the compared evaluation"] = before[name]
        found[name] = {"worst": worst, "pairs": paired_tests(answers)}
    return found


def read_answers(url: str, digests: Mapping[str, str]) -> dict[str, np.ndarray]:
    """The answers that an evaluation left of sets with these digests, by name; of the live weights if it has them.

    Raises:
        ValueError: the folder holds no answers.
    """
    files = storage.contents(f"{url}/answers")
    if not files:
        raise ValueError("not the folder of an evaluation (it has no answers)")
    found: dict[str, np.ndarray] = {}
    for name, digest in digests.items():
        for kind in ("live", "ema"):
            if f"{name}.{kind}.npz" in files:
                content = np.load(io.BytesIO(storage.read(f"{url}/answers/{name}.{kind}.npz")), allow_pickle=False)
                if str(content["digest"]) == digest:
                    found.setdefault(name, content["answers"])
    return found


def paired_tests(answers: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Each two models on the images that both are judged on."""
    tests = []
    for (first, a), (second, b) in itertools.combinations(answers.items(), 2):
        both = (a != NOT_JUDGED) & (b != NOT_JUDGED)
        if both.any():
            tests.append({"first": first, "second": second, **compare(a[both] == RIGHT, b[both] == RIGHT)._asdict()})
    return tests


def _write_set(start: str, content: Mapping[str, np.ndarray], names: Sequence[str]) -> list[dict[str, Any]]:
    """Write the tables of a set of one label an image; returns the most frequent confusions."""
    if "class_images" not in content:
        return []

    def name(number: int) -> str:
        return names[number] if number < len(names) else str(number)

    images, right = content["class_images"], content["class_right"]
    rows = [
        [number, name(number), of_class, hits, share, standard_error(share, of_class)]
        for number, (of_class, hits, share) in enumerate(
            zip(images.tolist(), right.tolist(), class_accuracies(images, right).tolist(), strict=True)
        )
    ]
    _write_csv(f"{start}.classes.csv", [["class", "name", "images", "right", "accuracy", "standard_error"], *rows])
    if "confusion" not in content:
        return []
    matrix = content["confusion"]
    pairs = [
        {"truth": name(pair.truth), "prediction": name(pair.prediction), "images": pair.images}
        for pair in worst_pairs(matrix, MOST_PAIRS)
    ]
    every = [name(number) for number in range(len(matrix))]
    table = [[label, *row] for label, row in zip(every, matrix.tolist(), strict=True)]
    _write_csv(f"{start}.confusion.csv", [["class", *every], *table])
    _write_csv(f"{start}.worst.csv", [["class", "taken_for", "images"], *(list(pair.values()) for pair in pairs)])
    storage.write_atomic(f"{start}.confusion.png", picture(matrix, every))
    return pairs


def _write_csv(url: str, rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    storage.write_atomic(url, text.getvalue().encode())


def picture(matrix: np.ndarray, names: Sequence[str]) -> bytes:
    """A confusion matrix as PNG: a row a class, each divided by its images."""
    from matplotlib.figure import Figure

    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    labelled = len(names) <= 50
    side = max(5.0, 0.3 * len(names) + 2.0) if labelled else 12.0
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(shares, vmin=0.0, vmax=1.0, cmap="Blues", interpolation="nearest")
    if labelled:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the class")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()
