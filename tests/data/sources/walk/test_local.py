"""The walk on a local disk: links, pipes, rights, hidden folders."""

import os
import socket
import stat
from pathlib import Path

import pytest

from data import DataError
from data.sources.walk import Listing, walk
from data.sources.walk import local as kinds
from data.sources.walk.listing import HIDDEN


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of one file each."""
    for name in ("cat", "dog"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "1.jpg").write_bytes(b"12345")
    return tmp_path / "root"


def skipped(listing: Listing) -> dict[str, str]:
    assert listing.found == len(listing.files) + len(listing.skipped)
    assert len({one.key for one in listing.skipped}) == len(listing.skipped)
    return {one.key: one.reason for one in listing.skipped}


def test_files_and_folders(root):
    (root / "dog" / "deep" / "er").mkdir(parents=True)
    (root / "dog" / "deep" / "er" / "2").write_bytes(b"")
    (root / "empty").mkdir()
    (root / os.fsdecode(b"\xff\n")).mkdir()
    (root / os.fsdecode(b"\xff\n") / " [a]*?{b}#%20.jpg").write_bytes(b"1")
    listing = walk(str(root))
    odd = os.fsdecode(b"\xff\n")
    assert listing.files == {
        "cat/1.jpg": 5,
        "dog/1.jpg": 5,
        "dog/deep/er/2": 0,
        f"{odd}/ [a]*?{{b}}#%20.jpg": 1,
    }
    assert sorted(listing.folders) == ["cat", "dog", "dog/deep", "dog/deep/er", "empty", odd]
    assert (listing.skipped, listing.found) == ([], 4)


def test_hidden_and_system_folders_are_one_thing_each(root):
    names = [
        ".ipynb_checkpoints",
        ".Trash-1000",
        "@eaDir",
        "__MACOSX",
        "lost+found",
        "$RECYCLE.BIN",
        "Recycler",
        ".git",
    ]
    for name in names:
        (root / name / "deep").mkdir(parents=True)
        (root / name / "deep" / "1.jpg").write_bytes(b"1")
        (root / "cat" / name).mkdir()
    (root / ".hidden").symlink_to(root.parent)
    listing = walk(str(root))
    assert sorted(listing.folders) == ["cat", "dog"]
    expected = {f"{name}/": HIDDEN for name in (*names, ".hidden", *(f"cat/{name}" for name in names))}
    assert skipped(listing) == expected
    entered = walk(str(root), {"@eaDir/deep", "cat/.git"})
    assert entered.files["@eaDir/deep/1.jpg"] == 1
    assert skipped(entered).keys() == expected.keys() - {"@eaDir/", "cat/.git/"}


def test_links_to_what_lies_elsewhere_are_followed(root, tmp_path):
    pool = tmp_path / "pool"
    (pool / "birds" / "deep").mkdir(parents=True)
    (pool / "birds" / "deep" / "3.jpg").write_bytes(b"123")
    (root / ".store").mkdir()
    (root / ".store" / "blob").write_bytes(b"1234567")
    (root / "bird").symlink_to(pool / "birds")
    (root / "bird2").symlink_to("../pool/birds/deep")
    (root / "cat" / "more").symlink_to(root / "bird")
    (root / "cat" / "2.jpg").symlink_to("../.store/blob")
    (root / "cat" / "3.jpg").symlink_to(pool / "birds" / "deep" / "3.jpg")
    listing = walk(str(root))
    assert listing.files == {
        "cat/1.jpg": 5,
        "dog/1.jpg": 5,
        "bird/deep/3.jpg": 3,
        "bird2/3.jpg": 3,
        "cat/more/deep/3.jpg": 3,
        "cat/2.jpg": 7,
        "cat/3.jpg": 3,
    }
    assert {"bird", "bird/deep", "bird2", "cat/more"} < set(listing.folders)
    assert skipped(listing) == {".store/": HIDDEN}


def test_links_to_what_the_walk_meets_itself_are_named(root):
    (root / "cat" / "again.jpg").symlink_to("1.jpg")
    (root / "other.jpg").symlink_to(root / "dog" / "1.jpg")
    (root / "pets").symlink_to("cat")
    (root / "dog" / "up").symlink_to("..")
    (root / "dog" / "self").symlink_to(".")
    (root / "dog" / "far").symlink_to("../../..")
    listing = walk(str(root))
    assert listing.files == {"cat/1.jpg": 5, "dog/1.jpg": 5}
    assert skipped(listing) == {
        "cat/again.jpg": kinds.SAME_FILE,
        "other.jpg": kinds.SAME_FILE,
        "pets/": kinds.SAME_FOLDER,
        "dog/up/": kinds.ABOVE,
        "dog/self/": kinds.ABOVE,
        "dog/far/": kinds.ABOVE,
    }


def test_links_among_followed_folders(root, tmp_path):
    """Two folders that lead to each other, and a folder that is met by a link and again from above."""
    left, right = tmp_path / "left", tmp_path / "right"
    for folder in (left, right / "inner"):
        folder.mkdir(parents=True)
        (folder / "x.jpg").write_bytes(b"1")
    (left / "a").symlink_to(right / "inner")
    (left / "b").symlink_to(right)
    (right / "back").symlink_to(left)
    (right / "root").symlink_to(root / "cat")
    (right / "x.jpg").symlink_to(left / "x.jpg")
    (root / "class").symlink_to(left)
    listing = walk(str(root))
    assert listing.files == {"cat/1.jpg": 5, "dog/1.jpg": 5, "class/x.jpg": 1, "class/a/x.jpg": 1}
    assert skipped(listing) == {
        "class/b/inner/": kinds.AGAIN,
        "class/b/back/": kinds.SAME_FOLDER,
        "class/b/root/": kinds.SAME_FOLDER,
        "class/b/x.jpg": kinds.SAME_FILE,
    }


def test_many_links_to_each_other_end_soon(root, tmp_path):
    """Each of 40 folders links to all: 40! ways through them."""
    folders = [tmp_path / "maze" / str(number) for number in range(40)]
    for folder in folders:
        folder.mkdir(parents=True)
        for other in folders:
            (folder / f"to{other.name}").symlink_to(other)
    (root / "maze").symlink_to(folders[0])
    listing = walk(str(root))
    assert listing.files.keys() == {"cat/1.jpg", "dog/1.jpg"}
    assert len(listing.folders) == 2 + 40
    assert len(skipped(listing)) == 40 * 40 - 39


def test_links_that_lead_nowhere(root):
    (root / "cat" / "gone.jpg").symlink_to("nothing.jpg")
    (root / "cat" / "through.jpg").symlink_to("1.jpg/x")
    (root / "cat" / "circle.jpg").symlink_to("circle2.jpg")
    (root / "cat" / "circle2.jpg").symlink_to("circle.jpg")
    (root / "class").symlink_to("/nowhere/at/all")
    listing = walk(str(root))
    assert listing.files == {"cat/1.jpg": 5, "dog/1.jpg": 5}
    assert skipped(listing) == {
        "cat/gone.jpg": kinds.NOWHERE,
        "cat/through.jpg": kinds.NOWHERE,
        "cat/circle.jpg": kinds.CIRCLE,
        "cat/circle2.jpg": kinds.CIRCLE,
        "class": kinds.NOWHERE,
    }
    assert listing.folders == ["cat", "dog"]


def test_pipes_sockets_and_devices_are_named_and_never_opened(root, monkeypatch):
    os.mkfifo(root / "cat" / "pipe.jpg")
    (root / "cat" / "zero.jpg").symlink_to("/dev/zero")
    (root / "cat" / "linked.jpg").symlink_to("pipe.jpg")
    expected = {"cat/pipe.jpg": "pipe", "cat/zero.jpg": "link to a device", "cat/linked.jpg": "link to a pipe"}
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(root / "cat")  # a socket's path may have 107 bytes
        listening.bind("socket.jpg")
        expected["cat/socket.jpg"] = "socket"
        try:
            os.mknod("device.jpg", stat.S_IFCHR | 0o600, os.makedev(1, 5))
            expected["cat/device.jpg"] = "device"
        except PermissionError:
            pass  # only root makes devices
        assert skipped(walk(str(root))) == expected


@pytest.mark.parametrize("mode", [0o000, 0o300, 0o444])
def test_a_folder_that_cannot_be_listed_is_an_error(root, mode):
    """Without the right to read it, and with that right but without the one to reach its files."""
    root.chmod(0o755)
    (root / "cat").chmod(mode)
    try:
        said = walk_as_another_user(root)
    finally:
        (root / "cat").chmod(0o755)
    assert said.startswith(f"{root}/cat: cannot be listed (Permission denied); its images would be lost: ")


def test_a_link_into_a_folder_without_rights_is_an_error(root, tmp_path):
    (tmp_path / "closed").mkdir()
    (tmp_path / "closed" / "1.jpg").write_bytes(b"1")
    (root / "cat" / "2.jpg").symlink_to(tmp_path / "closed" / "1.jpg")
    (tmp_path / "closed").chmod(0o000)
    try:
        said = walk_as_another_user(root)
    finally:
        (tmp_path / "closed").chmod(0o755)
    assert said == f"{root}/cat/2.jpg: cannot be followed (Permission denied); make what it leads to readable"


def walk_as_another_user(root: Path) -> str:
    """What the walk says in a process without root's rights. A fork: the project may lie where only root reads."""
    closed = [folder for folder in root.parents if os.getuid() == 0 and not folder.stat().st_mode & stat.S_IXOTH]
    modes = {folder: folder.stat().st_mode for folder in closed}
    for folder in closed:  # pytest's own folders are only its user's
        folder.chmod(modes[folder] | 0o011)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            said = f"listed {walk(str(root)).found} things"
        except Exception as error:
            said = str(error)
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    for folder in closed:
        folder.chmod(modes[folder])
    with os.fdopen(reading) as answer:
        return answer.read()


def test_what_is_no_folder(root):
    os.mkfifo(root / "pipe")
    for name, words in (("nowhere", "does not exist"), ("cat/1.jpg", "is no folder"), ("pipe", "is no folder")):
        with pytest.raises(DataError, match=f"{root}/{name}: {words}"):
            walk(f"{root}/{name}")
    (root / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=f"{root}/loop: "):
        walk(f"{root}/loop")
