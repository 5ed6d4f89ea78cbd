"""A name is a name: on every store, folders and files with odd names are themselves, and their neighbours stay."""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from aiohttp import ClientError

from data import storage
from data.errors import DataError
from data.storage import patience
from infra.local.stores import FaultyProxy, Server, file_server, gcs_server, reached_by, s3_server
from tests.data.storage.odd_names import NAMES, NEIGHBOURS, NOT_ON_S3, STORES

ALL = (*NAMES, *NEIGHBOURS)


@pytest.fixture(scope="module", params=STORES, ids=lambda store: store.__name__)
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with request.param(tmp_path_factory.mktemp("store")) as url:
        yield url


def find(folder: str) -> dict[str, int]:
    """Size of every file under a folder, by its path."""
    found: dict[str, int] = {}
    for entry in storage.entries(folder):
        if entry.is_folder:
            found |= {f"{entry.name}/{path}": size for path, size in find(storage.join(folder, entry.name)).items()}
        else:
            found[entry.name] = entry.size
    return found


def names_on(place: str) -> list[str]:
    return [name for name in ALL if not (place.startswith("s3://") and name in NOT_ON_S3)]


def write_tree(url: str) -> dict[str, bytes]:
    """A folder of every name with a file of the same name and two others: path -> content."""
    held = {
        f"{folder}/{name}": f"{folder} {name}".encode()
        for folder in names_on(url)
        for name in (folder, "v1", "000.tar")
    }
    for path, content in held.items():
        storage.write_atomic(f"{url}/{path}", content)
    return held


def test_files_and_folders_of_every_name(place: str, tmp_path: Path) -> None:
    held = write_tree(f"{place}/tree")
    assert find(f"{place}/tree") == {path: len(content) for path, content in held.items()}
    assert set(storage.contents(f"{place}/tree")) == set(names_on(place))
    for name in names_on(place)[: len(NAMES)]:
        url = storage.join(f"{place}/tree", name)
        assert storage.exists(url)
        assert storage.is_folder(url)
        assert not storage.exists(f"{url}~")
        file, content = f"{url}/{name}", held[f"{name}/{name}"]
        assert storage.read(file) == content
        assert storage.read_range(file, 1, 4) == content[1:4]
        assert storage.size(file) == len(content)
        assert not storage.is_folder(file)
        with storage.open_read(file, 1000) as opened:
            assert opened.read() == content
        storage.get_file(file, tmp_path / "got")
        assert (tmp_path / "got").read_bytes() == content
        assert set(storage.contents(url)) == {name, "v1", "000.tar"}
        assert "000.tar" in storage.matching(url, "*.tar")
        assert storage.matching(url, "v[1-8]") == sorted({"v1", name} & {"v1", "v2"})


def test_a_folder_of_every_name_is_removed_and_its_neighbours_stay(place: str) -> None:
    held = write_tree(f"{place}/removed")
    folders = set(names_on(place))
    for name in NAMES:
        storage.remove_folder(f"{place}/removed/{name}")
        folders -= {name}
        assert set(storage.contents(f"{place}/removed")) == folders, name
    left = {path: len(content) for path, content in held.items() if path.split("/")[0] in NEIGHBOURS}
    assert find(f"{place}/removed") == left
    storage.remove_folder(f"{place}/removed/nothing[1]")
    storage.remove_folder(f"{place}/removed")
    assert not storage.exists(f"{place}/removed")


def test_a_file_of_every_name_is_removed_and_its_neighbours_stay(place: str, tmp_path: Path) -> None:
    names = names_on(place)
    for name in names:
        (tmp_path / "source").write_bytes(b"12345")
        storage.put_file(tmp_path / "source", f"{place}/files/{name}")
    for number, name in enumerate(names):
        storage.remove(f"{place}/files/{name}")
        if name in NAMES:
            assert storage.contents(f"{place}/files") == dict.fromkeys(names[number + 1 :], 5)
    for name in NAMES[:12]:
        with storage.open_write(f"{place}/streamed/{name}") as file:
            file.write(b"123")
    assert storage.contents(f"{place}/streamed") == dict.fromkeys(NAMES[:12], 3)


def test_a_folder_goes_but_not_the_file_whose_name_it_begins_with(place: str) -> None:
    for name in ("v/1", "v1", "v.tar"):
        storage.write_atomic(f"{place}/begins/{name}", b"1")
    storage.remove_folder(f"{place}/begins/v")
    assert find(f"{place}/begins") == {"v1": 1, "v.tar": 1}


def test_names_over_https(tmp_path: Path) -> None:
    """A URL of the web is escaped; the names that it lists are not."""
    names = [name for name in ALL if "\\" not in name]  # aiohttp serves no name with a backslash
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"{name}.txt").write_text(name)
        (folder / "000.tar").write_text(f"{name} tar")
    for ranges in (True, False):
        with file_server(tmp_path, ranges=ranges) as server:
            if not ranges:  # aiohttp's listing does not tell folders from files
                files = {f"{name}/{file}" for name in names for file in (f"{name}.txt", "000.tar")}
                assert set(find(server.url)) == files
            for name in names:
                url = storage.join(server.url, name)
                assert set(storage.contents(url)) == {f"{name}.txt", "000.tar"}
                assert storage.read(storage.join(url, f"{name}.txt")).decode() == name
                assert storage.read_range(storage.join(url, "000.tar"), 0, 100).decode() == f"{name} tar"
                assert storage.size(storage.join(url, f"{name}.txt")) == len(name.encode())


def test_a_url_of_the_web_need_not_be_escaped(tmp_path: Path) -> None:
    """What a browser's user writes is found, too: a fragment is never sent, so a `#` is part of the name."""
    names = ("v[1]", "a b", "v#1", "100%", "{v}", "v*", "図書", "a&b=c")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "000.tar").write_text(name)
    with file_server(tmp_path) as server:
        for name in names:
            assert storage.matching(f"{server.url}/{name}", "*.tar") == ["000.tar"]
            assert storage.read(f"{server.url}/{name}/000.tar").decode() == name


def test_bytes_that_are_no_text_are_a_name_on_a_local_disk(tmp_path: Path) -> None:
    name = os.fsdecode(b"v\xff[1]")
    for folder in (name, "v1"):
        storage.write_atomic(f"{tmp_path}/{folder}/000.tar", b"1")
    assert find(str(tmp_path)) == {f"{name}/000.tar": 1, "v1/000.tar": 1}
    storage.remove_folder(f"{tmp_path}/{name}")
    assert find(str(tmp_path)) == {"v1/000.tar": 1}


def test_a_name_begins_with_a_tilde_and_a_path_from_home_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert storage.join("/data", "~x.tar") == "/data/~x.tar"
    assert storage.join("/data", "~/x.tar") == "/data/~/x.tar"
    assert storage.absolute("~/x.tar") == "/home/me/x.tar"


def test_the_url_of_a_local_file_is_its_path(tmp_path: Path) -> None:
    storage.write_atomic(f"file://{tmp_path}/v#1?x%20y/[z]", b"1")
    assert (tmp_path / "v#1?x%20y" / "[z]").read_bytes() == b"1"
    assert storage.absolute(f"file://{tmp_path}/v#1") == f"{tmp_path}/v#1"


def test_a_path_with_a_zero_byte_is_an_error_in_one_line() -> None:
    for url in ("/data/\0", "memory://\0", "gs://bucket/\0"):
        with pytest.raises(DataError, match="zero byte"):
            storage.exists(url)


@pytest.mark.parametrize("kind", ["a pipe", "a socket", "a device", "a link to a pipe"])
def test_what_is_no_file_is_an_error_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "000000.tar"
    if kind == "a device":
        path.symlink_to("/dev/zero")
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(path))
    else:
        pipe = path if kind == "a pipe" else tmp_path / "pipe"
        os.mkfifo(pipe)
        if pipe != path:
            path.symlink_to(pipe)
    calls = [
        lambda: storage.read(str(path)),
        lambda: storage.read_range(str(path), 0, 10),
        lambda: storage.open_read(str(path), 1000),
        lambda: storage.size(str(path)),
        lambda: storage.get_file(str(path), tmp_path / "got"),
    ]
    for call in calls:
        with pytest.raises(DataError, match=rf"^{path}: is {kind.removeprefix('a link to ')}, not a file"):
            call()


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed, scandir = tmp_path / "tree" / "closed", os.scandir
    closed.mkdir(parents=True)

    def refuse(path: str) -> object:  # the superuser, too
        if str(path) == str(closed):
            raise PermissionError(f"no right to list {path}")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for call in (storage.contents, storage.entries, find):
        with pytest.raises(PermissionError):
            call(str(closed))
    with pytest.raises(PermissionError):
        storage.matching(str(closed), "*.tar")
    with pytest.raises(PermissionError):
        find(str(tmp_path / "tree"))


@pytest.mark.parametrize("server", [gcs_server, s3_server, file_server])
def test_a_store_that_fails_is_no_empty_folder(
    tmp_path: Path, server: Callable[..., AbstractContextManager[Server]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "ATTEMPTS", 1)
    monkeypatch.setattr(patience, "REQUEST_SECONDS", 0.5)
    folder = (tmp_path,) if server is file_server else ()
    with server(*folder) as target, FaultyProxy(target, fail=1.0) as proxy, reached_by(proxy.server) as url:
        for call in (storage.contents, storage.entries, storage.exists):
            with pytest.raises((OSError, ClientError)) as raised:
                call(f"{url}/v")
            assert not isinstance(raised.value, FileNotFoundError)


def test_a_name_as_long_as_the_disk_allows_is_written(tmp_path: Path) -> None:
    storage.write_atomic(f"{tmp_path}/{'x' * 255}", b"1")
    assert storage.contents(str(tmp_path)) == {"x" * 255: 1}
    with pytest.raises(OSError, match="File name too long"):
        storage.write_atomic(f"{tmp_path}/{'x' * 256}", b"1")
