"""Labels with a probability each, as a classifier gives them: which of them are kept, and in which form."""

import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from data.errors import BadSample, Cause
from data.shards.label_rule import class_number

NOT_LIKELY = "no label above --min-probability"
NO_PROBABILITIES = "no probabilities, which --min-probability needs"


class Kept(NamedTuple):
    """Which labels are kept.

    Attributes:
        min_probability: labels with a probability above it; None keeps all.
        hard: keep them without their probabilities, so that each has weight 1.
    """

    min_probability: float | None = None
    hard: bool = False

    def notes(self) -> dict[str, float | bool]:
        """What is not the default, for the index."""
        return {name: value for name, value in self._asdict().items() if value is not None and value is not False}

    def field(self, labels: Sequence[object], probabilities: Sequence[object]) -> bytes:
        """The `.json` of an image. No probabilities: there is no such column.

        Raises:
            BadSample: a label or a probability that is none, not as many of them, or no label is left.
        """
        try:
            classes = [class_number(label) for label in labels]
            weights = [_probability(value) for value in probabilities]
        except (TypeError, ValueError, OverflowError) as error:
            raise BadSample(Cause.BAD_LABEL) from error
        if weights and len(weights) != len(classes):
            raise BadSample(Cause.BAD_LABEL)
        if self.min_probability is not None:
            if classes and not weights:
                raise BadSample(NO_PROBABILITIES)
            likely = [place for place, weight in enumerate(weights) if weight > self.min_probability]
            if not likely:
                raise BadSample(NOT_LIKELY)
            classes, weights = [classes[place] for place in likely], [weights[place] for place in likely]
        record: dict[str, Any] = {"labels": classes}
        if weights and not self.hard:
            record["probabilities"] = weights
        return json.dumps(record).encode()


def _probability(value: object) -> float:
    number = float(value)  # type: ignore[arg-type]
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{value!r} is no probability")
    return number
