"""Random trees of a folder of images: all that lies in them is packed with its label, or named.

The expectation is a plain walk written apart from the code: `Plain` follows each link by `realpath`, and knows of every
file that it met what `Tree` put there.
"""

import io
import json
import os
import random
import tarfile
from collections import Counter
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest

from data import open_index
from data.__main__ import main
from data.packing.pack import Options, Packed, pack
from data.sources.folder import Folder

NAMES = ["cat", "dog", "two words", "a,b", "猫", "[x]*?", "#1", "%20", "~", "a:", "x.y", "-f", "\udcff", "q\n", "__x__"]
HIDDEN = [".git", ".ipynb_checkpoints", ".Trash-1000", "@eaDir", "__MACOSX", "lost+found", "$RECYCLE.BIN"]
STEMS = ["1", "1", "a.b", "a_b", "IMG 1", "猫", "x~2", "x", "._1", "\udcfe", "new\nline", "%", "[1]"]
OTHERS = {  # content by extension that is no image
    "txt": b"words",
    "json": b"{}",
    "jpg": b"<html>404</html>",
    "jpeg": b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 1\n",
    "png": b"",
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "db": b"\xd0\xcf\x11\xe0",
    "": b"README",
}


class Tree:
    """A random tree. `images` holds the bytes of each image by its real path."""

    def __init__(self, folder: Path, seed: int, *, links: bool = True) -> None:
        self.rng, self.images = random.Random(seed), dict[str, bytes]()
        self.root, self.outside = folder / "root", folder / "outside"
        self._links = links
        for place in (self.root, self.outside):
            self._fill(place, 0)
        for name in self.rng.sample(NAMES, 2):
            if not (self.root / name).exists():
                (self.root / name).mkdir()
        (self.root / "sure").mkdir()
        while not any("/sure/" in path for path in self.images):
            self._file(self.root / "sure")
        if links:
            for place in [self.root, *self._folders(self.root)]:
                if self.rng.random() < 0.6:
                    self._link(place)
            for place in self._folders(self.outside):
                if self.rng.random() < 0.3:  # back to the tree, or to itself
                    self._symlink(place, self.rng.choice([self.root, place, *self._folders(self.root)]))

    def _folders(self, place: Path) -> list[Path]:
        return [Path(found) for found, _, _ in sorted(os.walk(place)) if found != str(place)]

    def _fill(self, place: Path, depth: int) -> None:
        place.mkdir(parents=True)
        for name in self.rng.sample(NAMES, self.rng.randrange(4) if depth < 2 else 0):
            self._fill(place / name, depth + 1)
        if self.rng.random() < 0.3:
            self._fill(place / self.rng.choice(HIDDEN), 2)
        for _ in range(self.rng.randrange(5)):
            self._file(place)

    def _file(self, place: Path) -> None:
        if self.rng.random() < 0.6:
            extension = self.rng.choice(["jpg", "JPEG", "png", "avif", "jfif", "unknown", ""])
            pixels = np.frombuffer(self.rng.randbytes(4 * 4 * 3), np.uint8).reshape(4, 4, 3)
            content = cv2.imencode(self.rng.choice([".jpg", ".png", ".webp"]), pixels)[1].tobytes()
        else:
            extension, content = self.rng.choice(sorted(OTHERS.items()))
        path = place / ".".join(filter(None, [self.rng.choice(STEMS), extension]))
        if os.path.lexists(path):
            return
        if self._links and self.rng.random() < 0.1:
            os.mkfifo(path)
            return
        path.write_bytes(content)
        if content not in OTHERS.values():
            self.images[os.path.realpath(path)] = content

    def _link(self, place: Path) -> None:
        somewhere = self.rng.choice([self.root, self.outside])
        files = sorted(Path(found, name) for found, _, names in os.walk(somewhere) for name in names)
        targets = [*self._folders(somewhere), *files, self.root, self.root.parent, place / "nowhere"]
        self._symlink(place, self.rng.choice(targets))

    def _symlink(self, place: Path, target: Path) -> None:
        link = place / f"link{self.rng.randrange(100)}{target.suffix}"
        if not os.path.lexists(link):
            link.symlink_to(target if self.rng.random() < 0.5 else os.path.relpath(target, os.path.realpath(place)))


class Plain:
    """A plain walk: real path of each file that counts, by its path; what is named; the classes."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self.files: dict[str, str] = {}
        self.named: set[str] = set()
        self.classes: set[str] = set()
        own = self._own(self.root)
        links = self._enter(self.root, "", own)
        for path in sorted(links):
            seen, waiting = set(own), [path]
            while waiting:
                waiting += sorted(self._follow(waiting.pop(0), seen))

    def _own(self, top: str) -> set[str]:
        """The real paths of all files and folders under a folder that need no link."""
        found = {os.path.realpath(top)}
        for folder, folders, files in os.walk(top):
            folders[:] = [name for name in folders if name not in HIDDEN]
            found |= {os.path.realpath(f"{folder}/{n}") for n in folders + files if not os.path.islink(f"{folder}/{n}")}
        return found

    def _enter(self, top: str, prefix: str, seen: set[str]) -> list[str]:
        links = []
        for folder, folders, files in os.walk(top):
            here = prefix + folder[len(top) :]
            for name in list(folders):
                path = f"{here}/{name}".lstrip("/")
                if os.path.islink(f"{folder}/{name}"):
                    links.append(path)
                elif name in HIDDEN:
                    self.named.add(f"{path}/")
                    folders.remove(name)
                else:
                    self.classes |= {path} if "/" not in path else set()
            for name in files:
                path = f"{here}/{name}".lstrip("/")
                if os.path.islink(f"{folder}/{name}"):
                    links.append(path)
                elif os.path.isfile(f"{folder}/{name}"):
                    self.files[path] = os.path.realpath(f"{folder}/{name}")
                else:
                    self.named.add(path)
        return links

    def _follow(self, path: str, seen: set[str]) -> list[str]:
        place = f"{self.root}/{path}"
        real = os.path.realpath(place)
        slash = "/" if os.path.isdir(place) else ""
        above = os.path.isdir(place) and any(
            f"{at}/".startswith(f"{real}/") for at in (os.path.realpath(os.path.dirname(place)), self.root)
        )
        if not os.path.exists(place) or real in seen or above:
            self.named.add(path + slash)
        elif not slash:
            if os.path.isfile(place):
                self.files[path] = real
            else:
                self.named.add(path)
        else:
            seen |= self._own(real)
            self.classes |= {path} if "/" not in path else set()
            return self._enter(real, path, seen)
        return []


def packed_samples(folder: Path) -> Counter[tuple[bytes, int]]:
    """(image, label) of each sample, read by tarfile alone: keys are the same in neighbours, and nowhere else."""
    found: Counter[tuple[bytes, int]] = Counter()
    keys: list[str] = []
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as archive:
            fields: dict[str, bytes] = {}
            for member in archive:
                key, _, extension = member.name.rpartition(".")
                if not keys or key != keys[-1]:
                    keys.append(key)
                fields[extension] = archive.extractfile(member).read()
                if "cls" in fields:
                    found[next(fields[name] for name in fields if name != "cls"), int(fields["cls"])] += 1
                    fields = {}
    assert len(set(keys)) == len(keys) == found.total()
    return found


def names_of_skipped(folder: Path) -> list[str]:
    file = folder / "skipped.jsonl"
    return [json.loads(line)["key"] for line in file.read_text().splitlines()] if file.exists() else []


def check(packed: Packed, out: Path, expected: Counter[tuple[bytes, int]], named: set[str], classes: list[str]) -> None:
    assert packed_samples(out) == expected
    skipped = names_of_skipped(out)
    assert sorted(skipped) == sorted(named)
    assert packed.found == packed.index.num_samples + packed.merged + len(skipped)
    assert list(open_index(str(out)).class_names) == classes
    assert main(["verify", str(out), "--workers", "1"]) == 0


@pytest.mark.parametrize("seed", range(50))
def test_a_random_tree(tmp_path, seed):
    tree = Tree(tmp_path, seed)
    plain = Plain(tree.root)
    classes = sorted(plain.classes)
    chosen = {path for path, real in plain.files.items() if real in tree.images and "/" in path}
    expected = Counter((tree.images[plain.files[path]], classes.index(path.split("/")[0])) for path in chosen)
    packed = pack(str(tmp_path / "out"), Folder(str(tree.root)), Options(samples_per_shard=7))
    check(packed, tmp_path / "out", expected, plain.named | (plain.files.keys() - chosen), classes)


@pytest.mark.parametrize("seed", range(100, 110))
def test_a_random_tree_in_a_store(tmp_path, seed):
    """As keys of a store, where there are no links and no empty folders."""
    tree = Tree(tmp_path, seed, links=False)
    for folder, _, _ in sorted(os.walk(tree.root), reverse=True):
        if not os.listdir(folder):
            os.rmdir(folder)
    memory, top = fsspec.filesystem("memory"), f"/trees{seed}"
    plain = Plain(tree.root)
    for folder, _, files in os.walk(tree.root):
        for name in files:
            path = f"{folder}/{name}"
            memory.pipe(f"{top}/{os.path.relpath(path, tree.root)}", Path(path).read_bytes())
    classes = sorted(plain.classes)
    chosen = {path for path, real in plain.files.items() if real in tree.images and "/" in path}
    expected = Counter((tree.images[plain.files[path]], classes.index(path.split("/")[0])) for path in chosen)
    packed = pack(str(tmp_path / "out"), Folder(f"memory:/{top}"), Options(samples_per_shard=7))
    check(packed, tmp_path / "out", expected, plain.named | (plain.files.keys() - chosen), classes)


@pytest.mark.parametrize("seed", range(200, 210))
def test_a_random_tree_with_a_table(tmp_path, seed):
    """Rows for some files, for files of other kinds, and for files that are not there."""
    tree = Tree(tmp_path, seed)
    plain = Plain(tree.root)
    rng = random.Random(seed)
    plain_text = [path for path in sorted(plain.files) if path.isprintable() and '"' not in path]
    listed = rng.sample(plain_text, len(plain_text) // 2)
    absent = [f"gone/{number}.jpg" for number in range(rng.randrange(4))]
    rows = {path: rng.randrange(5) for path in listed + absent}
    buffer = io.StringIO("path,label\n" + "".join(f'"{path}",{label}\n' for path, label in rows.items()))
    (tmp_path / "labels.csv").write_text(buffer.getvalue())
    chosen = {path for path in listed if plain.files[path] in tree.images}
    if not chosen:
        return
    expected = Counter((tree.images[plain.files[path]], rows[path]) for path in chosen)
    packed = pack(str(tmp_path / "out"), Folder(str(tree.root), str(tmp_path / "labels.csv")), Options(None))
    named = plain.named | (plain.files.keys() - chosen) | set(absent)
    assert packed_samples(tmp_path / "out") == expected
    assert sorted(names_of_skipped(tmp_path / "out")) == sorted(named)
    assert packed.found == packed.index.num_samples + len(named)
