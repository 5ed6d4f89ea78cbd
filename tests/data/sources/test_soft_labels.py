import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import BadSample, Cause
from data.shards.label_rule import FIRST
from data.sources.soft_labels import NO_PROBABILITIES, NOT_LIKELY, Kept

PAIRS = st.lists(st.tuples(st.integers(0, 2**24 - 1), st.floats(0, 1)), max_size=60)


@given(PAIRS, st.none() | st.floats(0, 1, exclude_max=True), st.booleans())
def test_the_labels_that_are_kept(pairs, above, hard):
    labels, probabilities = [one for one, _ in pairs], [p for _, p in pairs]
    wanted = [(one, p) for one, p in pairs if above is None or p > above]
    if above is not None and not wanted:
        with pytest.raises(BadSample, match=NOT_LIKELY):
            Kept(above, hard).field(labels, probabilities)
        return
    content = Kept(above, hard).field(labels, probabilities)
    found = FIRST.labels({"json": content})
    assert found.classes == tuple(one for one, _ in wanted)
    assert found.weights == tuple(1.0 if hard else p for _, p in wanted)
    assert ("probabilities" in json.loads(content)) == (bool(wanted) and not hard)


@pytest.mark.parametrize(
    ("kept", "labels", "probabilities", "cause"),
    [
        (Kept(), [1, 2], [0.5], Cause.BAD_LABEL),
        (Kept(0.1), [1, 2], [0.5], Cause.BAD_LABEL),
        (Kept(0.1), [1], [float("nan")], Cause.BAD_LABEL),
        (Kept(0.1), [1, 2], [0.5, None], Cause.BAD_LABEL),
        (Kept(), [1], [-0.5], Cause.BAD_LABEL),
        (Kept(), [2.5], [], Cause.BAD_LABEL),
        (Kept(), [-1], [], Cause.BAD_LABEL),
        (Kept(), [None], [], Cause.BAD_LABEL),
        (Kept(), ["dog"], [], Cause.BAD_LABEL),
        (Kept(), [2**24], [], Cause.HUGE_LABEL),
        (Kept(0.1), [1], [], NO_PROBABILITIES),
        (Kept(0.1), [], [], NOT_LIKELY),
    ],
)
def test_labels_that_cannot_be_kept(kept, labels, probabilities, cause):
    with pytest.raises(BadSample, match=cause):
        kept.field(labels, probabilities)


def test_whole_floats_and_texts_are_numbers():
    assert json.loads(Kept().field([1.0, "2", "3.0"], [])) == {"labels": [1, 2, 3]}
