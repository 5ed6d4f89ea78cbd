import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data import DataError, SampleOrder
from data.order.exclude import Excluded, open_exclusions, write_exclusions


def excluded(sample_id: int, against: int = 0) -> Excluded:
    return Excluded(sample_id, f"k{sample_id}", "000000.tar", against, 7, "t7", "000001.tar", 2, 0.9)


@pytest.fixture
def listed(train_index, tmp_path):
    """A list for the digits: samples 1000, 3 (twice) and 40."""
    url = str(tmp_path / "lists" / "exclusions.json")
    found = [excluded(1000), excluded(3), excluded(3, against=1), excluded(40)]
    write_exclusions(url, train_index, found, against=[{"url": "t"}, {"url": "u"}], method={"bits": 64})
    return url


def test_ids_come_back_ascending_and_once(listed, train_index):
    ids = open_exclusions(listed, train_index)
    assert ids.dtype == np.int64
    assert ids.tolist() == [3, 40, 1000]


def test_an_empty_list_excludes_nothing(train_index, tmp_path):
    url = str(tmp_path / "none.json")
    write_exclusions(url, train_index, [])
    ids = open_exclusions(url, train_index)
    assert (ids.dtype, ids.shape) == (np.int64, (0,))


def test_the_file_says_what_and_why(listed, train_index):
    record = json.loads(Path(listed).read_text())
    assert record["index"]["digest"] == train_index.digest
    assert record["method"] == {"bits": 64}
    assert [entry["id"] for entry in record["samples"]] == [3, 3, 40, 1000]
    assert record["samples"][2] == excluded(40)._asdict()


def test_the_order_leaves_the_listed_samples_out(listed, train_index):
    order = SampleOrder(train_index, seed=5, batch_size=64, exclude=open_exclusions(listed, train_index))
    steps = range(order.steps_per_epoch)
    seen = sorted(number for step in steps for number in order.batch(step) if number >= 0)
    assert seen == sorted(set(range(train_index.num_samples)) - {3, 40, 1000})


def test_a_list_for_another_data_set_is_refused(listed, train_index):
    other = replace(train_index, shards=train_index.shards[:-1])
    with pytest.raises(DataError, match=r"exclusions\.json: made for another data set .*data dedup"):
        open_exclusions(listed, other)


def test_a_missing_list_says_how_to_make_it(train_index, tmp_path):
    with pytest.raises(DataError, match=r"no such exclusion list; `python -m data dedup .* --out .*nothing\.json`"):
        open_exclusions(str(tmp_path / "nothing.json"), train_index)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace("vit-at-scale/exclusions", "else"),
        lambda text: text.replace('"version": 1', '"version": 2'),
        lambda text: text.replace('"id": 40', '"id": "forty"'),
        lambda text: text.replace('"id": 40', '"id": 4.5'),
        lambda text: text.replace('"id": 40', f'"id": {2**70}'),
        lambda text: text.replace('"samples"', '"simples"'),
        lambda text: "[]",
        lambda text: "",
    ],
)
def test_a_damaged_list_is_one_line(listed, train_index, damage):
    text = damage(Path(listed).read_text())
    Path(listed).write_text(text)
    with pytest.raises(DataError, match="not a readable exclusion list") as caught:
        open_exclusions(listed, train_index)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("outside", [-1, 1442])
def test_ids_outside_the_data_set_are_refused(train_index, tmp_path, outside):
    url = str(tmp_path / "outside.json")
    assert train_index.num_samples == 1442
    write_exclusions(url, train_index, [excluded(5), excluded(outside)])
    with pytest.raises(DataError, match=f"excludes sample {outside} of a data set of 1442"):
        open_exclusions(url, train_index)
