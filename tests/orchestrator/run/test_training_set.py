"""Several sources, subsets and exclusions of a job's training data, on the packed digits."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import open_index
from data.order.exclude import Excluded, write_exclusions
from data.shards.index import write_index
from orchestrator.job.data_sections import TrainSet
from orchestrator.run.training_set import TrainingSet, TrainingSetError, open_training_set


def train_set(**keys: object) -> TrainingSet:
    return open_training_set(TrainSet.model_validate(keys), seed=3, batch_size=48)


def epoch_of(data: TrainingSet, steps: int | None = None) -> Counter[int]:
    return Counter(i for step in range(steps or data.order.steps_per_epoch) for i in data.order.batch(step) if i >= 0)


@pytest.fixture
def urls(digits: Path) -> tuple[str, str]:
    return str(digits / "train"), str(digits / "test")


def test_one_set_is_its_own_index(urls: tuple[str, str]) -> None:
    data = train_set(url=urls[0])
    assert data.digest == open_index(urls[0]).digest
    assert epoch_of(data) == dict.fromkeys(range(data.index.num_samples), 1)


def test_how_labels_are_read_is_a_part_of_the_digest(urls: tuple[str, str], tmp_path: Path) -> None:
    """A run on a set that is indexed again, so that samples get other labels, is not continued without a word."""
    plain = open_index(urls[0])
    digests = {train_set(url=urls[0]).digest}
    for number, (rule, names) in enumerate(
        [({"version": 2}, ()), *(({"version": 2, "kind": "name"}, names) for names in (("a", "b"), ("b", "a")))]
    ):
        index = replace(plain, url=f"{tmp_path}/{number}/index.json", about={"label_rule": rule}, class_names=names)
        write_index(index)
        data = train_set(url=f"{tmp_path}/{number}")
        assert data.index.digest == plain.digest
        digests.add(data.digest)
    assert len(digests) == 4
    again = replace(plain, url=f"{tmp_path}/4/index.json", about={"packed_by": "9"}, class_names=("a", "b"))
    write_index(again)
    assert train_set(url=f"{tmp_path}/4").digest == plain.digest


def test_sets_without_weights_are_one_large_set(urls: tuple[str, str]) -> None:
    data = train_set(sources={"a": {"url": urls[0]}, "b": {"url": urls[1]}})
    total = sum(open_index(url).num_samples for url in urls)
    assert data.index.num_samples == total
    assert epoch_of(data) == dict.fromkeys(range(total), 1)
    swapped = train_set(sources={"b": {"url": urls[1]}, "a": {"url": urls[0]}})
    assert swapped.digest != data.digest


def test_weights_are_shares_of_every_batch(urls: tuple[str, str]) -> None:
    data = train_set(sources={"a": {"url": urls[0], "weight": 1}, "b": {"url": urls[1], "weight": 3}})
    first, second = (open_index(url).num_samples for url in urls)
    for step in (0, 1, 5):
        ids = np.array(data.order.batch(step))
        assert (ids < first).sum() == 12
        assert (ids >= first).sum() == 36
    steps = -(-second // 36)  # a pass over the second set
    counts = epoch_of(data, steps)
    assert {counts[first + number] for number in range(second)} == {1}
    assert max(counts[number] for number in range(first)) == 1


def test_a_subset_and_an_exclusion(urls: tuple[str, str], tmp_path: Path) -> None:
    data = train_set(url=urls[0], subset=300)
    chosen = epoch_of(data)
    assert (len(chosen), set(chosen.values())) == (300, {1})
    other_seed = open_training_set(TrainSet(url=urls[0], subset=300), seed=4, batch_size=48)
    assert epoch_of(other_seed) == chosen  # the subset never changes, only its order
    assert other_seed.digest == data.digest != train_set(url=urls[0]).digest

    index = open_index(urls[0])
    left_out = sorted(chosen)[:7]
    exclusions = str(tmp_path / "exclusions.json")
    write_exclusions(exclusions, index, [Excluded(i, "", "", 0, 0, "", "", 0, 0) for i in left_out])
    fewer = train_set(url=urls[0], subset=300, exclude=exclusions)
    assert set(epoch_of(fewer)) == set(chosen) - set(left_out)
    mixed = train_set(sources={"b": {"url": urls[1]}, "a": {"url": urls[0], "exclude": exclusions}})
    offset = open_index(urls[1]).num_samples
    everything = range(offset + index.num_samples)
    assert set(epoch_of(mixed)) == set(everything) - {offset + number for number in left_out}
    with pytest.raises(TrainingSetError) as wrong:
        train_set(url=urls[1], exclude=exclusions)  # made for the other set
    assert wrong.value.key == "data.train.exclude"


def test_a_subset_larger_than_the_set(urls: tuple[str, str]) -> None:
    with pytest.raises(TrainingSetError, match="1442") as wrong:
        train_set(sources={"a": {"url": urls[1]}, "b": {"url": urls[0], "subset": 5000}})
    assert wrong.value.key == "data.train.sources.b.subset"
