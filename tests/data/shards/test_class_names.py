import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import DataError, open_index
from data.shards.class_names import class_names, read_class_list, shown, text_list, warn_of_one_based, warn_of_untrained
from data.shards.index import write_index
from tests.data.shards.test_index import small_index

ODD = ["two words", "a, b", "猫", " blank ", "tab\t", "line\nbreak", "\x85\u2028\r", "\udcff", '"quoted"', "[x]", "{y}"]
ANY_NAME = st.text(st.characters(exclude_categories=()), min_size=1)


def write(folder, names, **changes):
    index = small_index(f"{folder}/index.json", num_classes=len(names), class_names=tuple(names), **changes)
    write_index(index)
    return index


def test_every_form_of_a_list_gives_the_same_names(tmp_path):
    write(tmp_path / "set", ODD)
    (tmp_path / "list.json").write_text(json.dumps(ODD))
    (tmp_path / "list.txt").write_bytes(text_list(ODD))
    for url in ("set", "set/index.json", "list.json", "list.txt"):
        assert list(read_class_list(f"{tmp_path}/{url}").names) == ODD, url


@given(st.lists(ANY_NAME, min_size=1, unique=True))
def test_text_holds_any_name(tmp_path_factory, names):
    path = tmp_path_factory.getbasetemp() / "names.txt"
    path.write_bytes(text_list(names))
    assert len(path.read_bytes().splitlines()) == len(names)
    assert list(read_class_list(str(path)).names) == names
    assert all(shown(name).encode() for name in names)


def test_text_that_people_write(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\r\ngolden retriever\r\n[x\r\ncaf\xe9\r\n\r\n")
    assert read_class_list(str(path)).names == ("cat", "golden retriever", "[x", "caf\udce9")
    path.write_text("[]\n[1, 2]\n")
    assert read_class_list(str(path)).names == ("[]", "[1, 2]")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "", "holds no class name"),
        ("a.txt", "cat\n\ndog\n", "line 2 has no class name"),
        ("a.txt", "cat\ndog\ncat\n", "classes 0 and 2 have one name, cat"),
        ("a.json", '["cat", null]', "null is no class name"),
        ("a.json", '["cat"', "not a JSON list"),
        ("a.json", '{"cat": 0}', "corrupt index"),
        ("a.json", "[" * 100_000, "not a JSON list"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=words):
        read_class_list(f"{tmp_path}/{name}")


def test_no_list_there(tmp_path):
    for url in ("nothing", "."):
        with pytest.raises(DataError, match=r"nothing: does not exist; give an index.json|cannot be opened"):
            read_class_list(f"{tmp_path}/{url}")


def test_an_index_without_names_lists_its_numbers(tmp_path):
    write_index(small_index(f"{tmp_path}/index.json", num_classes=3))
    assert read_class_list(str(tmp_path)).names == ("0", "1", "2")


def test_older_sets_have_classes_txt(tmp_path):
    """Its lines are the names, unless a name has a line break; people write it for shards of other tools."""
    index = small_index(f"{tmp_path}/index.json", num_classes=2)
    write_index(index)
    assert class_names(open_index(str(tmp_path))) == ()
    (tmp_path / "classes.txt").write_bytes('"Äpfel"\u2028 \nbirds\r\n'.encode())
    assert class_names(index) == ('"Äpfel"\u2028 ', "birds\r")
    assert read_class_list(str(tmp_path)).names == ('"Äpfel"\u2028 ', "birds\r")
    (tmp_path / "classes.txt").write_bytes(b"ap\nples\nbirds\n")
    assert class_names(index) == ()
    assert class_names(dataclasses.replace(index, source="")) == ("ap", "ples", "birds")
    assert class_names(dataclasses.replace(index, class_names=("x", "y"))) == ("x", "y")
    (tmp_path / "classes.txt").write_bytes(text_list(ODD))  # of a set that was packed, and indexed again
    assert class_names(dataclasses.replace(index, source="")) == tuple(ODD)


@pytest.mark.parametrize(
    ("counts", "names", "said"),
    [
        ({1: 5, 2: 5}, (), True),
        ({1: 5, 3: 5}, ("0", "1", "2", "3"), True),
        ({0: 1, 1: 5}, (), False),
        ({2: 5, 3: 5}, (), False),
        ({1: 5, 2: 5}, ("cat", "dog", "emu"), False),
        ({}, (), False),
    ],
)
def test_labels_that_may_count_from_one(counts, names, said):
    index = small_index("x", num_classes=4, label_counts=counts, class_names=names)
    assert (warn_of_one_based(index) is not None) == said


def test_classes_without_images_to_train_on():
    train = small_index("/set/train/index.json", label_counts={0: 9})
    assert warn_of_untrained(train, train) is None
    val = small_index("/set/val/index.json", label_counts={0: 1, 2: 1, 3: 1}, class_names=("a", "b", "c\n"))
    line = 'class 2, "c\\n" and 1 more have images here, and none in /set/train'
    assert warn_of_untrained(val, train) == line
