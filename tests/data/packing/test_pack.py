import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset

from data import DataError, open_index, storage
from data.__main__ import main
from data.images.transcode import Transcode
from data.packing.pack import Options, pack
from data.packing.source import Item, Reading, Skipped, Source
from data.shards.class_names import read_class_list
from data.version import VERSION
from infra.local.stores import gcs_server, reached_by, s3_server

ALONE = {**os.environ, "RAY_ADDRESS": "local"}  # independent of clusters on this machine


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    """Checksum and modification time of every file."""
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def digests(folder: Path) -> dict[str, str]:
    return {name: digest for name, (digest, _) in snapshot(folder).items()}


class Numbers(Source):
    """Item i is a small PNG of label i % classes. Items in `bad` are skipped."""

    name = "numbers"
    fingerprint = "1"
    mean_bytes = 100.0

    def __init__(self, count: int, *, classes: int = 7, bad: tuple[int, ...] = (), mixed: bool = False) -> None:
        self._count, self._bad, self.num_classes, self.mixed = count, bad, classes, mixed

    def __len__(self) -> int:
        return self._count

    def reading(self, positions: np.ndarray) -> Reading:
        return partial(read_numbers, positions.tolist(), self.num_classes or 7, self._bad)


def read_numbers(numbers: list[int], classes: int, bad: tuple[int, ...]) -> Iterator[Item | Skipped]:
    for number in numbers:
        if number in bad:
            yield Skipped(str(number), "bad luck")
        else:
            _, png = cv2.imencode(".png", np.full((1, 1), number % 251, np.uint8))
            yield Item(f"{number:06d}", {"png": png.tobytes(), "cls": b"%d" % (number % classes)})


def keys(folder: Path) -> list[list[str]]:
    """Keys by shard, as WebDataset reads them."""
    return [
        [sample["__key__"] for sample in webdataset.WebDataset(str(tar), shardshuffle=False)]
        for tar in sorted(folder.glob("*.tar"))
    ]


@pytest.mark.parametrize(("count", "per_shard"), [(1, 10), (1000, 64), (1000, 1000), (997, 10), (40, 7)])
def test_shards_are_balanced_and_every_item_is_in_one(tmp_path, count, per_shard):
    packed = pack(str(tmp_path), Numbers(count), Options(samples_per_shard=per_shard))
    found = keys(tmp_path)
    sizes = [len(shard) for shard in found]
    assert len(sizes) == -(-count // per_shard)
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= per_shard
    assert sorted(key for shard in found for key in shard) == [f"{number:06d}" for number in range(count)]
    assert [shard.samples for shard in packed.index.shards] == sizes
    expected = {label: len(range(label, count, 7)) for label in range(min(count, 7))}
    assert dict(open_index(str(tmp_path)).label_counts) == expected


def test_default_size_of_shards(tmp_path):
    """About 200 MB, but at least 16 shards if there are 256 samples for each."""
    source = Numbers(5000)
    for mean, shards in ((100.0, 16), (1e6, 25), (2e6, 50)):
        source.mean_bytes = mean
        packed = pack(str(tmp_path / str(mean)), source)
        assert len(packed.index.shards) == shards
    assert len(pack(str(tmp_path / "few"), Numbers(500)).index.shards) == 2


def test_shuffled_by_a_seed(tmp_path):
    """Items that are sorted by class are mixed, equally for equal seeds. Without a seed they keep their order."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1), ("kept", None)):
        pack(str(tmp_path / name), Numbers(1000), Options(seed, samples_per_shard=100))
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    a, c, kept = (keys(tmp_path / name) for name in ("a", "c", "kept"))
    assert a != c
    assert list(chain(*kept)) == sorted(chain(*a))
    for shard in a:  # its mean place: the standard error of 100 uniform draws from 1,000 is 29
        assert abs(np.mean([int(key) for key in shard]) - 500) < 4 * 29
    pack(str(tmp_path / "mixed"), Numbers(1000, mixed=True), Options(0, samples_per_shard=100))
    assert keys(tmp_path / "mixed") == kept


def test_skipped_items_are_counted_and_named(tmp_path):
    packed = pack(str(tmp_path), Numbers(100, bad=(3, 50, 99)), Options(None, samples_per_shard=10))
    assert packed.skipped == {"bad luck": 3}
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert lines == [{"key": key, "reason": "bad luck"} for key in ("3", "50", "99")]
    assert [shard.samples for shard in packed.index.shards] == [9, 10, 10, 10, 10, 9, 10, 10, 10, 9]
    assert pack(str(tmp_path), Numbers(100, bad=(3, 50, 99)), Options(None, samples_per_shard=10)).skipped == {
        "bad luck": 3
    }


def test_a_shard_of_nothing_but_skipped_items_is_left_out(tmp_path):
    packed = pack(str(tmp_path), Numbers(30, bad=tuple(range(10, 20))), Options(None, samples_per_shard=10))
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == ["000000.tar", "000002.tar"]
    assert [shard.url for shard in open_index(str(tmp_path)).shards] == ["000000.tar", "000002.tar"]
    assert packed.index.num_samples == 20
    with pytest.raises(DataError, match=r"numbers gave nothing to pack \(it is empty\)"):
        pack(str(tmp_path / "none"), Numbers(0))
    with pytest.raises(DataError, match=r"numbers gave nothing to pack \(5 x bad luck\)"):
        pack(str(tmp_path / "none"), Numbers(5, bad=tuple(range(5))))
    assert list((tmp_path / "none").iterdir()) == []


class Counted(Numbers):
    """A source that says what it found, and merged."""

    def __init__(self, count: int, *, found: int, merged: int = 0, bad: tuple[int, ...] = ()) -> None:
        super().__init__(count, bad=bad)
        self.found, self.merged = found, merged
        self.skipped = [Skipped("a\udcff\n\u2028/x.txt", "unread: text")]
        self.class_names = ["plain", "two words, a comma", "line\nbreak\u2028", "猫", "\udcff", "\ud800", "\x85"]
        self.about = {"how": "by hand", "found": "not this"}


def test_found_is_packed_and_merged_and_skipped(tmp_path):
    """They add up in what `pack` returns and in the index, and are the same when the set is complete already."""
    source = Counted(10, found=13, merged=2, bad=(3,))
    packed = pack(str(tmp_path), source)
    assert (packed.found, packed.merged, packed.skipped) == (13, 2, {"unread: text": 1, "bad luck": 1})
    assert packed.index.num_samples == 9
    index = open_index(str(tmp_path))
    assert dict(index.about) == {
        "how": "by hand",
        "packed_by": VERSION,
        "found": 13,
        "merged": 2,
        "skipped": {"unread: text": 1, "bad luck": 1},
    }
    again = pack(str(tmp_path), source)
    assert (again.wrote, again.found, again.merged, again.skipped) == (False, 13, 2, packed.skipped)


def test_any_name_is_kept(tmp_path):
    """Of classes in the index, of what was skipped in its list; classes.txt has a line for each class."""
    source = Counted(10, found=11)
    pack(str(tmp_path), source)
    assert list(open_index(str(tmp_path)).class_names) == source.class_names
    (line,) = (tmp_path / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line) == {"key": "a\udcff\n\u2028/x.txt", "reason": "unread: text"}
    names = (tmp_path / "classes.txt").read_bytes().split(b"\n")
    assert names[:3] == [b"plain", b"two words, a comma", rb'"line\nbreak\u2028"']
    assert names[3:] == ["猫".encode(), rb'"\udcff"', rb'"\ud800"', rb'"\u0085"', b""]
    assert list(read_class_list(f"{tmp_path}/classes.txt").names) == source.class_names


def test_a_set_of_an_earlier_version_says_what_it_can(tmp_path):
    pack(str(tmp_path), Numbers(10, bad=(3,)))
    index = json.loads((tmp_path / "index.json").read_text())
    del index["about"]
    (tmp_path / "index.json").write_text(json.dumps(index))
    packed = pack(str(tmp_path), Numbers(10, bad=(3,)))
    assert (packed.wrote, packed.found, packed.merged, packed.skipped) == (False, 10, 0, {"bad luck": 1})


def test_a_source_that_loses_something_is_an_error(tmp_path):
    """While it lists, and while it reads. Nothing is indexed."""
    with pytest.raises(DataError, match=r"found 12 things, but 10 packed \+ 0 merged \+ 1 skipped make 11: "):
        pack(str(tmp_path / "a"), Counted(10, found=12))
    assert not (tmp_path / "a").exists()
    with pytest.raises(DataError, match=r"found 10 things, but 9 packed \+ 0 merged \+ 0 skipped make 9: "):
        pack(str(tmp_path / "b"), Loses(10))
    assert not (tmp_path / "b" / "index.json").exists()


class Loses(Numbers):
    """Its reading passes over item 3."""

    found = 10

    def reading(self, positions: np.ndarray) -> Reading:
        return super().reading(positions[positions != 3])


class Given(Numbers):
    """These items."""

    def __init__(self, *items: Item) -> None:
        super().__init__(len(items), classes=5)
        self._items = items

    def reading(self, positions: np.ndarray) -> Reading:
        return partial(iter, [self._items[place] for place in positions])


def test_items_that_no_reader_could_use_are_skipped(tmp_path):
    items = [
        Item("good", {"jpg": b"x", "cls": b"4"}),
        Item("far", {"jpg": b"x", "cls": b"5"}),
        Item("none", {"jpg": b"x"}),
        Item("odd", {"jpg": b"x", "cls": b"four"}),
        Item("a.b", {"jpg": b"x", "cls": b"1"}),
        Item("__x__/1", {"jpg": b"x", "cls": b"1"}),
        Item("nul\0", {"jpg": b"x", "cls": b"1"}),
        Item("half\ud800", {"jpg": b"x", "cls": b"1"}),
    ]
    packed = pack(str(tmp_path), Given(*items))
    assert keys(tmp_path) == [["good"]]
    assert packed.skipped == {
        "name that cannot be a WebDataset key": 4,
        "label outside the classes": 1,
        "no label": 1,
        "unreadable label": 1,
    }


def test_transcoding_changes_images_and_skips_those_it_cannot_decode(tmp_path, photos, encode):
    items = [
        Item("big", {"jpg": encode(photos[0], "JPEG"), "cls": b"1"}),
        Item("small", {"jpg": encode(photos[0][:50, :50], "JPEG"), "cls": b"1"}),
        Item("broken", {"jpg": encode(photos[0], "JPEG")[:1000], "cls": b"1"}),
    ]
    packed = pack(str(tmp_path), Given(*items), Options(None, transcode=Transcode(resize=100)))
    assert packed.skipped == {"undecodable image: JPEG cut short": 1}
    big, small = webdataset.WebDataset(str(tmp_path / "000000.tar"), shardshuffle=False).decode("rgb8")
    assert (big["jpg"].shape, small["jpg"].shape) == ((100, 150, 3), (50, 50, 3))


def interrupt(after: int):
    """A runner that stops like a killed process, between two shards."""

    def run(function, calls):
        for number, call in enumerate(calls):
            if number == after:
                raise KeyboardInterrupt
            yield function(*call)

    return run


def test_goes_on_where_it_stopped(tmp_path):
    undisturbed, source, options = tmp_path / "a", Numbers(1000, bad=(5, 700)), Options(samples_per_shard=100)
    pack(str(undisturbed), source, options)
    resumed = tmp_path / "b"
    with pytest.raises(KeyboardInterrupt):
        pack(str(resumed), source, options, runner=interrupt(4))
    assert not (resumed / "index.json").exists()
    (resumed / "000002.tar").write_bytes(b"cut")  # damaged after it was noted as finished
    (resumed / "000004.tar").write_bytes(b"begun")  # the unfinished one
    before = snapshot(resumed)
    packed = pack(str(resumed), source, options)
    assert packed.wrote
    assert digests(resumed) == digests(undisturbed)
    after = snapshot(resumed)
    kept = [name for name in before if name in after and before[name] == after[name]]
    assert kept == ["000000.tar", "000001.tar", "000003.tar"]


def test_another_plan_does_not_mix_with_what_is_there(tmp_path):
    folder, options = str(tmp_path), Options(samples_per_shard=100)
    with pytest.raises(KeyboardInterrupt):
        pack(folder, Numbers(1000), options, runner=interrupt(2))
    before = snapshot(tmp_path)
    for source, other, words in (
        (Numbers(1001), options, "packing that differs in items, shards:"),
        (Numbers(1000), Options(samples_per_shard=50), "packing that differs in shards:"),
        (Numbers(1000), Options(1, samples_per_shard=100), "packing that differs in shuffle_seed:"),
        (
            Numbers(1000),
            Options(samples_per_shard=100, transcode=Transcode(quality=50)),
            "packing that differs in transcode:",
        ),
    ):
        with pytest.raises(DataError, match=words):
            pack(folder, source, other)
    assert snapshot(tmp_path) == before
    pack(folder, Numbers(1000), options)
    with pytest.raises(DataError, match=r"already holds 'numbers \w{12}', and this is 'numbers \w{12}'"):
        pack(folder, Numbers(1001), options)
    assert pack(folder, Numbers(500), options, force=True).index.num_samples == 500
    assert len(list(tmp_path.glob("*.tar"))) == 5


def test_complete_sets_are_left_alone(tmp_path):
    pack(str(tmp_path), Numbers(1000), Options(samples_per_shard=100))
    before = snapshot(tmp_path)
    assert not pack(str(tmp_path), Numbers(1000), Options(samples_per_shard=100)).wrote
    assert snapshot(tmp_path) == before
    (tmp_path / "packing").mkdir()  # killed between the index and the removal of its notes
    (tmp_path / "packing" / "plan.json").write_text("{}")
    assert not pack(str(tmp_path), Numbers(1000), Options(samples_per_shard=100)).wrote
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("server", [gcs_server, s3_server])
def test_object_stores(tmp_path, server):
    """The same bytes on an object store, also after an interruption. No notes are left over."""
    options = Options(samples_per_shard=30)
    pack(str(tmp_path), Numbers(200, bad=(3,)), options)
    with server() as running, reached_by(running) as bucket:
        url = f"{bucket}/deep/set"
        with pytest.raises(KeyboardInterrupt):
            pack(url, Numbers(200, bad=(3,)), options, runner=interrupt(3))
        packed = pack(url, Numbers(200, bad=(3,)), options)
        assert packed.index.digest == open_index(str(tmp_path)).digest
        assert storage.matching(url, "*") == sorted(path.name for path in tmp_path.iterdir())
        assert not pack(url, Numbers(200, bad=(3,)), options).wrote
        assert pack(url, Numbers(50), options, force=True).index.num_samples == 50
        assert storage.matching(url, "*") == ["000000.tar", "000001.tar", "index.json"]


def test_somebody_elses_tars_are_not_touched(tmp_path):
    options = Options(samples_per_shard=100)
    pack(str(tmp_path), Numbers(500), options)
    (tmp_path / "index.json").unlink()
    with pytest.raises(DataError, match="did not pack"):
        pack(str(tmp_path), Numbers(500), options)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "data", *arguments], capture_output=True, text=True, check=False, env=ALONE
    )


def test_command_line(tmp_path):
    """pack, pack again, index, show, in real processes, as a user runs them."""
    packed = command("pack", "digits", str(tmp_path), "--json")
    assert (packed.returncode, packed.stderr) == (0, "")
    facts = json.loads(packed.stdout.splitlines()[-1])
    assert facts["packed"]
    assert facts["train"]["num_samples"] + facts["test"]["num_samples"] == 1797
    assert (facts["train"]["found"], facts["train"]["merged"], facts["train"]["skipped"]) == (1442, 0, {})
    assert "\n  found 1,442 = packed 1,442 + merged 0 + skipped 0\n" in packed.stdout
    assert "already packed: 1,442 samples of 10 classes in 4 shards" in command("pack", "digits", str(tmp_path)).stdout
    indexed = command("pack", "--index-only", str(tmp_path / "train"), "--json")
    assert (indexed.returncode, indexed.stderr) == (0, "")
    assert json.loads(indexed.stdout.splitlines()[-1])["digest"] == facts["train"]["digest"]


AT_ONCE = """
import sys
from data import ray_session
from data.__main__ import main

ray_session.RAY_SECONDS = 0.0  # so little work would start no Ray
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.cluster
def test_on_ray_with_a_kill_in_the_middle(tmp_path):
    """Two workers; the driver is killed after some shards. Then the same command makes only the others."""
    shapes = ["--samples", "4096", "--test-samples", "100", "--classes", "20", "--image-size", "48"]
    one, two = tmp_path / "one", tmp_path / "two"
    alone = command("pack", "shapes", str(one), *shapes)
    assert alone.returncode == 0, alone.stderr
    words = [sys.executable, "-c", AT_ONCE, "pack", "shapes", str(two), *shapes, "--workers", "2"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ALONE) as process:
        deadline = time.monotonic() + 300
        while len(list(two.glob("train/packing/0*.json"))) < 3:
            assert process.poll() is None, process.stdout.read()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    time.sleep(1.0)  # Ray ends the tasks of a driver that has ended
    assert not (two / "train" / "index.json").exists()
    finished = {path.stem for path in two.glob("train/packing/0*.json")}
    before = snapshot(two / "train")
    resumed = subprocess.run([*words, "--json"], capture_output=True, text=True, check=False, env=ALONE)
    assert resumed.returncode == 0, resumed.stderr
    after = snapshot(two / "train")
    for number in finished:
        assert after[f"{number}.tar"] == before[f"{number}.tar"]
    assert digests(two) == digests(one)
    facts = json.loads(resumed.stdout.splitlines()[-1])
    assert (facts["packed"], facts["train"]["num_samples"], facts["test"]["num_samples"]) == (True, 4096, 100)
    for line in resumed.stderr.splitlines():  # Ray prints nothing
        assert line.startswith("packing shapes/"), resumed.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "required: COMMAND"),
        (("pack",), "give SOURCE and DEST, or --index-only URL"),
        (("pack", "cifar", "x"), "'cifar'"),
        (("pack", "--index-only", "/nowhere"), "/nowhere: no .tar files there"),
        (("pack", "--index-only", "/nowhere", "digits", "/tmp/x"), "--index-only takes one URL and no SOURCE"),
        (("pack", "digits", "/proc/nowhere"), "/proc/nowhere"),
        (("pack", "folder", "/tmp/x", "--from", "/nowhere"), "/nowhere: does not exist"),
        (("pack", "shapes", "/tmp/x", "--classes", "5"), "classes = 5: choose 10 to 1,000"),
        (("pack", "imagenet", "/tmp/x", "--from", "/nowhere"), "/nowhere/ILSVRC2012_img_train.tar: does not exist"),
        (("pack", "img2dataset", "/tmp/x", "--from", "/nowhere"), "/nowhere: does not exist"),
        (("show", "gs-typo://bucket/x"), "Protocol not known: gs-typo"),
    ],
)
def test_wrong_commands_are_one_line(arguments, words, capsys):
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    assert (code, said.out) == (2, "")
    assert len(said.err.splitlines()) == 1
    assert words in said.err


@pytest.mark.parametrize("source", ["", "digits", "shapes", "folder", "imagenet", "imagenet21k", "img2dataset", "tfds"])
def test_help_teaches(source, capsys):
    with pytest.raises(SystemExit):
        main(["pack", *filter(None, [source]), "--help"])
    assert f"python -m data pack {source or '--index-only URL'}" in capsys.readouterr().out
