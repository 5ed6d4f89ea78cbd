import pytest

from data import DataError
from data.shards.class_names import ClassList
from data.sources.classes.numbering import number_folders, number_labels

PETS = ClassList("pets.txt", ("dog", "cat", "a, b", "7"))
TEN = ClassList("ten", tuple(str(number) for number in range(10)))


def labels(*values, given=None):
    return number_labels(
        [[value] for value in values], [f"{place}.jpg" for place in range(len(values))], "t.csv", given
    )


@pytest.mark.parametrize(
    ("folders", "numbers", "names"),
    [
        (["b", "a"], {"a": 0, "b": 1}, ["a", "b"]),
        (["0", "1", "10", "2", *"3456789"], {str(n): n for n in range(11)}, [str(n) for n in range(11)]),
        (["000", "002", "001"], {"000": 0, "001": 1, "002": 2}, ["000", "001", "002"]),
        (["0", "1", "3"], {"0": 0, "1": 1, "3": 3}, ["0", "1", "2", "3"]),
        (["00", "03", "01"], {"00": 0, "01": 1, "03": 3}, ["00", "01", "02", "03"]),
        (["1", "2", "3"], {"1": 1, "2": 2, "3": 3}, ["0", "1", "2", "3"]),
        (["9", "10", "x"], {"10": 0, "9": 1, "x": 2}, ["10", "9", "x"]),
        (["\udcff", "", " ", "a\nb", "猫"], {"": 0, " ": 1, "a\nb": 2, "猫": 3, "\udcff": 4}, None),
    ],
)
def test_folders(folders, numbers, names):
    found = number_folders(folders, "x")
    assert {name: found.numbers[name] for name in folders} == numbers
    assert list(found.class_names) == (names or sorted(folders))
    assert found.num_classes == len(found.class_names)


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["0", "1", "6"], "are the folders 0, 1, 6 class numbers or names"),
        (["5"], "class numbers or names"),
        (["2019", "2020", "2021"], "--classes"),
        (["1", "01"], "x: 01 and 1 are both class 1 of the folders; say which with --classes"),
        (["-1", "0", "1"], "-1 is no class number"),
        (["0.0", "1.0"], "0.0 is no class number"),
    ],
)
def test_folders_that_leave_open_what_they_mean(folders, words):
    with pytest.raises(DataError, match=words):
        number_folders(folders, "x")


def test_folders_of_a_list():
    found = number_folders(["cat", "7"], "x", PETS)
    assert (found.numbers["cat"], found.numbers["7"]) == (1, 3)
    assert (found.class_names, found.num_classes) == (PETS.names, 4)
    years = ClassList("years", ("2019", "2020"))
    assert number_folders(["2020"], "x", years).numbers["2020"] == 1
    assert number_folders(["007", "3"], "x", TEN).numbers == {"007": 7, "3": 3}
    assert number_folders(["1", "01"], "x", ClassList("both", ("1", "01"))).numbers == {"1": 0, "01": 1}
    with pytest.raises(DataError, match=r"x: the folder bird is no class of pets.txt; add it there"):
        number_folders(["bird", "cat"], "x", PETS)
    with pytest.raises(DataError, match=r"07 and 7 are both class 7 of the folders of ten; merge or rename one"):
        number_folders(["07", "7"], "x", TEN)


def test_numbers_among_names_are_said():
    assert "10 is class 0" in number_folders(["9", "10", "x"], "x").warnings[0]
    assert "differ only in blanks" in labels("a", "a ", "b").warnings[0]
    assert not number_folders(["a", "b"], "x").warnings


@pytest.mark.parametrize(
    ("values", "numbers", "num_classes"),
    [
        (["0.0", "2.0", "11.0"], {"0.0": 0, "2.0": 2, "11.0": 11}, 12),
        (["3", "03", "3.", "3e0", " 3 "], {"3": 3, "03": 3, "3.": 3, "3e0": 3, " 3 ": 3}, 4),
        (["1", "", "nan", "10"], {"1": 1, "10": 10}, 11),
        (["", "nan"], {}, 0),
        (["golden retriever", "a, b", "x"], {"a, b": 0, "golden retriever": 1, "x": 2}, 3),
        (["nan", "x"], {"nan": 0, "x": 1}, 2),
    ],
)
def test_labels(values, numbers, num_classes):
    found = labels(*values)
    assert (found.numbers, found.num_classes) == (numbers, num_classes)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (["0", "-1", "10"], r"t.csv: row 2 \(1.jpg\): label -1 is no class number"),
        (["0", "1", "2.5"], r"row 3 \(2.jpg\): label 2.5 is no class number"),
        (["0", "16777216"], "label 16777216 is no class number"),
        (["0", "1e999999999"], "label 1e999999999 is no class number"),
    ],
)
def test_numbers_that_no_class_has(values, words):
    with pytest.raises(DataError, match=words):
        labels(*values)


def test_labels_of_a_list():
    assert labels("cat", "a, b", "7", given=PETS).numbers == {"cat": 1, "a, b": 2, "7": 3}
    assert labels("1.0", "0", given=PETS).numbers == {"1.0": 1, "0": 0}
    assert labels("-1", "10", given=ClassList("l", ("-1", "10"))).numbers == {"-1": 0, "10": 1}
    found = labels("0", "2.0", "", given=ClassList("l", ("b", "a", "c")))
    assert (found.numbers, found.class_names, found.num_classes) == ({"0": 0, "2.0": 2}, ("b", "a", "c"), 3)
    with pytest.raises(DataError, match=r"row 2 \(1.jpg\): label bird is no class of pets.txt"):
        labels("cat", "bird", given=PETS)
    with pytest.raises(DataError, match=r"label 4 is not below 4, the number of classes of pets.txt"):
        labels("0", "4", given=PETS)
