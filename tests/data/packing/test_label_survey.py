"""`pack --index-only`: what is said about labels is said once, and everything that reads the set keeps to it."""

import io
import json
import re
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import data
from data import Augment, Index, Loader, SampleOrder, open_index
from data.__main__ import main
from data.commands.contact_sheet import find
from data.packing.pack import pack
from data.packing.scan import index_shards
from data.packing.source import Item, Reading, Source
from data.shards.index import concatenate
from data.shards.label_rule import LabelRule


@pytest.fixture
def tar(encode) -> Callable[..., Path]:
    """tar(folder, [fields, ...]) writes a tar of samples 0, 1, ... with an image each, by the standard library."""
    image = encode(np.zeros((8, 8, 3), np.uint8), "PNG")

    def write(folder: Path, samples: list[dict[str, bytes]], name: str = "0.tar") -> Path:
        folder.mkdir(exist_ok=True)
        with tarfile.open(folder / name, "w") as archive:
            for number, fields in enumerate(samples):
                for extension, content in {"png": image, **fields}.items():
                    info = tarfile.TarInfo(f"{name[0]}{number}.{extension}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
        return folder

    return write


def as_json(*values: object) -> list[dict[str, bytes]]:
    return [{"json": json.dumps(value).encode()} for value in values]


def index_only(capsys, *words: object) -> tuple[int, dict, str]:
    """Exit code, facts and stderr of `pack --index-only`."""
    code = main(["pack", "--index-only", *map(str, words), "--json"])
    printed = capsys.readouterr()
    return code, json.loads(printed.out.splitlines()[-1]) if code == 0 else {}, printed.err


def by_the_loader(index: Index) -> list[tuple[int, ...] | str]:
    """Labels or cause of each sample, as training sees them."""
    order = SampleOrder(index, batch_size=index.num_samples, shuffle=False)
    options = {"rank": 0, "world_size": 1, "image_size": 8, "augment": Augment("resize"), "seed": 0}
    with Loader(index, order, stop_step=1, **options) as loader:
        (batch,) = loader
    causes = {bad.sample_id: bad.cause for bad in batch.bad}
    labels = [tuple(label for label in row if label >= 0) for row in batch.labels.tolist()]
    return [causes.get(number, labels[number]) for number in range(index.num_samples)]


def by_all_readers(folder: Path, capsys) -> list[tuple[int, ...] | str]:
    """Labels or cause of each sample, as the loader, `show`, `verify` and WebDataset all see them."""
    index = open_index(str(folder))
    seen = by_the_loader(index)
    shown = [find(index, number) for number in range(index.num_samples)]
    assert [one.cause or one.classes for one in shown] == seen
    capsys.readouterr()
    main(["verify", str(folder)])
    faults = [line.split(": ")[-1].split(" by the rule")[0] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert sorted(faults) == sorted(one for one in seen if isinstance(one, str))
    pipeline = data.webdataset(str(folder), decode="uint8", handler=lambda error: True)
    found = [tuple(np.flatnonzero(label).tolist()) if index.multi_label else (label,) for _, label in pipeline]
    assert found == [tuple(sorted(one)) for one in seen if not isinstance(one, str)]
    return seen


CASES = {
    "clear": (
        [
            {"cls": b"\xef\xbb\xbf3"},
            {"cls": b"3\r\n"},
            {"cls": b"3.0"},
            {"cls": "3\r\n".encode("utf-16")},
            *as_json({"label": "3"}, {"label": 3.0}, 3, "3", {"labels": "4"}, {"cls": " 2 "}),
            {"cls": b"dog"},
            {"cls": b"2000000000"},
            {"txt": b"3"},
        ],
        [],
        [(3,)] * 8 + [(4,), (2,), "unreadable label", "absurd class number", "no label"],
        {"num_classes": 5, "multi_label": False, "unlabelled": 3},
    ),
    "inner key": (
        as_json({"a": {"b": 1}, "label": 7}, {"a": {"b": "2"}}, {"a": {"b": [1]}}, {"label": 3}),
        ["--label-key", "a.b"],
        [(1,), (2,), "unreadable label", "no label"],
        {"num_classes": 3, "unlabelled": 2},
    ),
    "names": (
        [{"cls": b"dog\n"}, {"cls": "\ufeffcat\r\n".encode()}, {"cls": "Ägypten, 2".encode()}, {"cls": b" "}],
        ["--label-kind", "name"],
        [(1,), (0,), (2,), "unreadable label"],
        {"num_classes": 3, "unlabelled": 1},
    ),
    "names in lists": (
        as_json({"x": ["dog", "cat"]}, {"x": ["dog"]}),
        ["--label-kind", "name", "--label-key", "x"],
        [(1, 0), (1,)],
        {"num_classes": 2, "multi_label": True},
    ),
    "one-hot": (
        as_json(*np.eye(5, dtype=np.float32)[[0, 2]].tolist(), [0.5] * 5, [0] * 5),
        ["--label-kind", "one-hot"],
        [(0,), (2,), "unreadable label", "no label"],
        {"num_classes": 5, "multi_label": False, "unlabelled": 2},
    ),
    "several ones": (
        as_json({"y": [1, 0, 1]}, {"y": [0, 0, 0]}, {"y": [0, 1, 0]}),
        ["--label-kind", "one-hot", "--label-key", "y"],
        [(0, 2), (), (1,)],
        {"num_classes": 3, "multi_label": True, "unlabelled": 0},
    ),
    "one-hot of given length": (
        as_json([0, 1], [0, 1, 0]),
        ["--label-kind", "one-hot", "--num-classes", "3"],
        ["unreadable label", (1,)],
        {"num_classes": 3, "unlabelled": 1},
    ),
    "numbers in lists": (
        as_json({"label": [0, 1]}, {"label": 3}),
        ["--label-kind", "number"],
        [(0, 1), (3,)],
        {"num_classes": 4, "multi_label": True},
    ),
}


@pytest.mark.parametrize(
    "case", ["inner key", "names", "names in lists", "one-hot", "one-hot of given length", "numbers in lists"]
)
def test_indexed_again_it_need_not_be_said_again(case, tar, tmp_path, capsys):
    """Classes keep their numbers: a new name is no class. What is said again replaces all that was said."""
    samples, words, expected, _ = CASES[case]
    folder = tar(tmp_path / "set", samples)
    index_only(capsys, folder, *words)
    first = (folder / "index.json").read_bytes()
    assert main(["pack", "--index-only", str(folder)]) == 0
    assert "labels are read as the index that is there says: " in capsys.readouterr().out
    assert (folder / "index.json").read_bytes() == first
    if case == "names":
        tar(folder, [{"cls": b"ant"}, {"cls": b"dog"}], "1.tar")
        index_only(capsys, folder)
        assert by_the_loader(open_index(str(folder))) == [*expected, "unknown class name", (1,)]
        index_only(capsys, folder, *words)
        assert open_index(str(folder)).class_names == ("ant", "cat", "dog", "Ägypten, 2")


def test_unlabelled_and_classes_need_not_be_said_again(tar, tmp_path, capsys):
    bare = tar(tmp_path / "bare", [{"txt": b"a dog"}])
    index_only(capsys, bare, "--unlabelled")
    assert index_only(capsys, bare)[0] == 0
    (tmp_path / "classes").write_text("a\nb\nc\n")
    folder = tar(tmp_path / "set", [{"cls": b"1"}])
    index_only(capsys, folder, "--classes", tmp_path / "classes")
    code, facts, _ = index_only(capsys, folder)
    assert (code, facts["num_classes"], open_index(str(folder)).class_names) == (0, 3, ("a", "b", "c"))


@pytest.mark.parametrize("case", CASES)
def test_all_readers_keep_to_what_was_said(case, tar, tmp_path, capsys):
    samples, words, expected, facts = CASES[case]
    folder = tar(tmp_path / "set", samples)
    code, found, _ = index_only(capsys, folder, *words)
    assert code == 0
    assert {key: found[key] for key in facts} == facts
    assert by_all_readers(folder, capsys) == expected
    first = (folder / "index.json").read_bytes()
    assert index_only(capsys, folder, *words)[0] == 0
    assert (folder / "index.json").read_bytes() == first
    index = open_index(str(folder))
    kept = [number for number, one in enumerate(expected) if not isinstance(one, str)]
    assert index.label_counts == {
        label: sum(label in expected[number] for number in kept)
        for label in sorted({label for number in kept for label in expected[number]})
    }


def test_names_found_are_the_classes(tar, tmp_path, capsys):
    """Whichever tar they are in."""
    tar(tmp_path, [{"cls": b"dog"}, {"cls": b"cat"}], "0.tar")
    tar(tmp_path, [{"cls": b"ape"}, {"cls": b"cat"}], "1.tar")
    assert index_only(capsys, tmp_path, "--label-kind", "name")[0] == 0
    index = open_index(str(tmp_path))
    assert index.class_names == ("ape", "cat", "dog")
    assert index.label_counts == {0: 1, 1: 2, 2: 1}
    assert index.about["label_rule"] == {"version": 2, "kind": "name"}


def test_a_list_of_classes(tar, tmp_path, capsys):
    """It numbers names, and names numbers; a name that it does not have is no class."""
    (tmp_path / "classes").write_text('zebra\ndog\n"\\tcat"\n', newline="\r\n")
    folder = tar(tmp_path / "set", [{"cls": b"dog"}, *as_json("zebra", "\tcat", "cat")])
    code, facts, _ = index_only(capsys, folder, "--label-kind", "name", "--classes", tmp_path / "classes")
    assert (code, facts["num_classes"], facts["unlabelled"]) == (0, 3, 1)
    assert by_all_readers(folder, capsys) == [(1,), (0,), (2,), "unknown class name"]
    assert open_index(str(folder)).class_names == ("zebra", "dog", "\tcat")
    other = tar(tmp_path / "other", [{"cls": b"1"}, {"cls": b"3"}])
    code, facts, _ = index_only(capsys, other, "--classes", folder)
    assert (code, facts["num_classes"], facts["labels_outside"]) == (0, 3, 1)
    assert open_index(str(other)).class_names == ("zebra", "dog", "\tcat")
    assert index_only(capsys, other, "--classes", tmp_path / "nowhere")[0] == 2


def test_an_index_of_an_earlier_version_is_read_as_before(tar, tmp_path, capsys):
    """Until its tars are indexed again. So a run keeps its samples and its masked slots."""
    samples = [{"cls": b"1"}, {"cls": b"3.0"}, *as_json({"label": "3"}), {"cls": b"\xef\xbb\xbf2"}]
    folder = tar(tmp_path / "set", samples)
    index_only(capsys, folder)
    assert by_all_readers(folder, capsys) == [(1,), (3,), (3,), (2,)]
    record = json.loads((folder / "index.json").read_text())
    assert record["about"].pop("label_rule") == {"version": 2}
    record["label_counts"] = {"1": 1}
    (folder / "index.json").write_text(json.dumps(record))
    assert by_all_readers(folder, capsys) == [(1,), *["unreadable label"] * 3]
    main(["verify", str(folder)])
    advice = "unreadable label by the rule of earlier versions; indexed again with `pack --index-only`, it is read"
    assert capsys.readouterr().out.splitlines()[:-1] == [f"0.tar: sample '0{number}': {advice}" for number in (1, 2, 3)]


def test_sets_whose_labels_were_all_read_before_state_no_rule(tar, tmp_path, capsys):
    """Indexing them again changes nothing for the runs on them."""
    folder = tar(tmp_path / "set", [{"cls": b"1"}, *as_json({"labels": [3]}, {"x": 1})])
    index_only(capsys, folder)
    assert "label_rule" not in open_index(str(folder)).about


def test_joined_sets_keep_their_rules(tar, tmp_path, capsys):
    first = tar(tmp_path / "a", [{"cls": b"1"}, {"cls": b"3"}])
    second = tar(tmp_path / "b", [{"cls": b"dog"}, {"cls": b"cat"}])
    third = tar(tmp_path / "c", as_json({"label": 9, "x": 2}))
    index_only(capsys, first)
    index_only(capsys, second, "--label-kind", "name")
    index_only(capsys, third, "--label-key", "x")
    sets = [open_index(str(folder)) for folder in (first, second, third)]
    assert by_the_loader(concatenate(sets)) == [(1,), (3,), (1,), (0,), (2,)]
    assert by_the_loader(concatenate([concatenate(sets[:2]), sets[2]])) == [(1,), (3,), (1,), (0,), (2,)]
    assert concatenate([sets[0], sets[0]]).label_rules == ()


UNREADABLE = {
    "a caption": ([{"txt": b"a dog"}], [], r"1 x no label\); in the first there are only \.png \.txt;"),
    "names": ([{"cls": b"dog"}], [], r"1 x unreadable label\); in the first \.cls is b'dog'; .*--label-kind"),
    "a record": (as_json({"a": {"b": 3}, "c": 1}), [], r"in the first \.json has the keys a\.b, c; .*--label-key"),
    "odd keys": (as_json({"a\n\ud800": 3, "b": 1}), [], r"has the keys a\\n\\ud800, b; "),
    "odd fields": ([{"t\nxt": b"3"}], [], r"there are only \.png \.t\\nxt; "),
    "one-hot": (as_json({"label": [0, 1]}), [], r"in the first \.json has label = \[0, 1\]; .*one-hot"),
    "another key": (as_json({"label": 3}), ["--label-key", "x"], r"1 x no label.*has the keys label; "),
    "no JSON": ([{"json": b"3;"}], [], r"in the first \.json is b'3;'; "),
    "names that are numbers": ([{"cls": b"10"}, {"cls": b"9"}], ["--label-kind", "name"], "names .* are all numbers"),
    "lengths": (as_json([0, 1], [1]), ["--label-kind", "one-hot"], "lists of 1 to 2 numbers; .*--num-classes"),
    "no length": (as_json([0, 1]), ["--label-kind", "one-hot", "--num-classes", 3], "1 x unreadable label"),
    "too many classes": (as_json(3), ["--num-classes", 10**12], "1,000,000,000,000 classes are more than"),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_a_set_without_a_readable_label_is_an_error(case, tar, tmp_path, capsys):
    samples, words, reason = UNREADABLE[case]
    folder = tar(tmp_path / "set", samples)
    try:
        code, _, printed = index_only(capsys, folder, *words)
    except SystemExit as exit:
        code, printed = exit.code, capsys.readouterr().err
    assert code == 2
    (line,) = [line for line in printed.splitlines() if "python -m data pack: " in line]
    assert re.search(reason, line), line
    assert [path.name for path in folder.iterdir()] == ["0.tar"]


def test_unlabelled(tar, tmp_path, capsys):
    """The set is sound, and `show` draws its images without alarm. Training on it would mask every image."""
    folder = tar(tmp_path / "set", [{"txt": b"a dog"}, *as_json({"caption": "3"})])
    code, facts, printed = index_only(capsys, folder, "--unlabelled")
    assert (code, facts["unlabelled"], facts["num_classes"]) == (0, 2, 0)
    assert "masked" not in printed
    assert main(["verify", str(folder)]) == 0
    index = open_index(str(folder))
    assert [find(index, number).cause for number in range(2)] == ["", ""]
    assert index.about["label_rule"]["unlabelled"]
    assert by_the_loader(index) == ["no label", "unreadable label"]


def test_some_without_a_label_are_counted_with_an_example(tar, tmp_path, capsys):
    code, facts, printed = index_only(capsys, tar(tmp_path / "set", [{"cls": b"3"}, {"cls": b"dog"}, {"cls": b"cat"}]))
    assert (code, facts["unlabelled"]) == (0, 2)
    assert "2 samples without a readable label (in the first .cls is b'dog'): their slots will be masked" in printed


@pytest.mark.parametrize("word", [["--label-key", "a"], ["--label-kind", "name"], ["--unlabelled"], ["--classes", "x"]])
def test_sources_have_options_of_their_own(word, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["pack", *word, "digits", str(tmp_path)])
    assert exit.value.code == 2
    assert "belong to --index-only" in capsys.readouterr().err


@pytest.mark.cluster
def test_on_ray(tar, tmp_path):
    """Names and rules reach the processes of a cluster as they are."""
    for number in range(3):
        tar(tmp_path, [{"cls": name} for name in (b"dog", b"cat", b"ape")], f"{number}.tar")
    index_shards(str(tmp_path), rule=LabelRule(kind="name"))
    first = (tmp_path / "index.json").read_bytes()
    index_shards(str(tmp_path), rule=LabelRule(kind="name"), workers=2)
    assert (tmp_path / "index.json").read_bytes() == first


class Given(Source):
    """A source of these items."""

    name, fingerprint, mean_bytes = "given", "", 1.0

    def __init__(self, *items: Item) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def reading(self, positions: np.ndarray) -> Reading:
        return partial(iter, [self._items[place] for place in positions])


def test_labels_that_are_clear_are_packed_and_their_rule_is_kept(tmp_path):
    """Of a source of one's own: what packing can read, training reads, too. Labels beyond the bounds are left out."""
    items = [
        Item("a", {"jpg": b"x", "cls": b"4"}),
        Item("b", {"jpg": b"x", "cls": b"3.0\r\n"}),
        Item("c", {"jpg": b"x", "json": b'{"labels": [' + b"1, " * 10_000 + b"2]}"}),
        Item("d", {"jpg": b"x", "cls": b"2000000000"}),
    ]
    packed = pack(str(tmp_path / "some"), Given(*items))
    assert packed.skipped == {"too many labels": 1, "absurd class number": 1}
    index = open_index(str(tmp_path / "some"))
    assert index.about["label_rule"] == {"version": 2}
    assert index.label_counts == {3: 1, 4: 1}
    assert [index.label_rule().labels(item.fields).classes for item in items[:2]] == [(4,), (3,)]
    pack(str(tmp_path / "plain"), Given(items[0]))
    assert "label_rule" not in open_index(str(tmp_path / "plain")).about
