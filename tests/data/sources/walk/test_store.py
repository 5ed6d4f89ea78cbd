"""The walk on object stores: odd names, marks of folders, errors of the store."""

from collections.abc import Iterator
from contextlib import ExitStack

import fsspec
import pytest

from data import DataError, storage
from data.sources.walk import store, walk
from data.sources.walk.listing import HIDDEN
from infra.local.stores import gcs_server, reached_by, s3_server

FILES = {
    "cat/1.jpg": 5,
    "cat/deep/2.v1.jpg": 0,
    "cat/a//b.jpg": 1,
    "dog/ [a]*?{b}#%20+&=.jpg": 3,
    "two words, a comma/猫.jpg": 2,
    "~dog/1.jpg": 1,
    "a:/b.jpg": 1,
    "v[1]/x": 1,
    "top.jpg": 1,
}
OTHERS = {".git/objects/1": 1, ".git/HEAD": 1, "cat/@eaDir/1.jpg/SYNO.jpg": 1, "__MACOSX/cat/._1.jpg": 1}


@pytest.fixture(scope="module", params=[None, gcs_server, s3_server], ids=["memory", "gs", "s3"])
def bucket(request: pytest.FixtureRequest) -> Iterator[str]:
    with ExitStack() as stack:
        if request.param is None:
            yield "memory://walked"
        else:
            running = stack.enter_context(request.param())
            yield stack.enter_context(reached_by(running))


def put(url: str, content: bytes) -> None:
    fs, path = storage.resolve(url)
    fs.pipe_file(
        path.rstrip("/") + url[len(url.rstrip("/")) :], content
    )  # with the slash at the end of a folder's mark


def test_everything_is_found(bucket):
    root = f"{bucket}/set [v1]"
    for name, size in (FILES | OTHERS).items():
        put(f"{root}/{name}", bytes(size))
    put(f"{bucket}/set [v1]2/neighbour.jpg", b"1")
    put(f"{bucket}/set 1/neighbour.jpg", b"1")
    for url in (root, f"{root}/"):
        listing = walk(url)
        assert listing.files == FILES
        assert listing.folders == sorted(
            ["cat", "cat/deep", "cat/a", "dog", "two words, a comma", "~dog", "a:", "v[1]"]
        )
        assert [one.key for one in listing.skipped] == [".git/", "__MACOSX/", "cat/@eaDir/"]
        assert {one.reason for one in listing.skipped} == {HIDDEN}
        assert listing.found == len(FILES) + 3
    assert walk(root, {"__MACOSX/cat"}).files.keys() == {*FILES, "__MACOSX/cat/._1.jpg"}
    for name in FILES:
        assert len(storage.read(f"{root}/{name}")) == FILES[name]


def test_marks_of_folders(bucket):
    """An empty object `folder/` is an empty folder. One with bytes is named, and so is what has no folder's name."""
    root = f"{bucket}/marks"
    put(f"{root}/cat/1.jpg", b"1")
    if bucket.startswith("memory"):
        fsspec.filesystem("memory").mkdir("/walked/marks/empty")
    else:
        for name, content in (("", b""), ("empty/", b""), ("cat/", b""), ("full/", b"1"), (".git/", b"")):
            put(f"{root}/{name}", content)
        put(f"{root}//nameless.jpg", b"1")
    listing = walk(root)
    assert listing.files == {"cat/1.jpg": 1}
    if bucket.startswith("memory"):
        assert listing.folders == ["cat", "empty"]
        return
    assert listing.folders == ["cat", "empty", "full"]
    assert [(one.key, one.reason) for one in listing.skipped] == [
        (".git/", HIDDEN),
        ("/nameless.jpg", store.NO_NAME),
        ("full/", store.FOLDER_WITH_BYTES),
    ]


def test_what_is_no_folder(bucket):
    put(f"{bucket}/files/1.jpg", b"1")
    for name in ("nowhere", "files/1.jpg", "file", "files/1"):
        with pytest.raises(DataError, match=f"{bucket}/{name}: does not exist, or holds nothing"):
            walk(f"{bucket}/{name}")


def test_an_error_of_the_store_is_an_error(bucket, monkeypatch):
    put(f"{bucket}/rights/cat/1.jpg", b"1")
    fs, _ = storage.resolve(bucket)
    name = "find" if "memory" not in bucket else "invalidate_cache"

    def refused(*_: object, **__: object) -> None:
        raise PermissionError("Forbidden")

    monkeypatch.setattr(fs, name, refused)
    with pytest.raises(DataError, match=r"/rights: cannot be opened \(PermissionError: Forbidden\)"):
        walk(f"{bucket}/rights")


class Folders(fsspec.AbstractFileSystem):
    """A store with folders, one of which cannot be listed."""

    protocol = "folders"
    closed = True

    def ls(self, path: str, detail: bool = True, **_: object) -> list[dict[str, object]]:
        tree = {"root": ["cat/", "dog/", "1.jpg"], "root/cat": ["2.jpg"], "root/dog": []}
        if path == "root/dog" and self.closed:
            raise PermissionError("closed")
        return [
            {"name": f"{path}/{name}".rstrip("/"), "size": 3, "type": "directory" if name[-1] == "/" else "file"}
            for name in tree[path]
        ]


def test_other_stores_are_listed_folder_by_folder(monkeypatch):
    """fsspec's `find` and `walk` pass over the folder that cannot be listed."""
    fsspec.register_implementation("folders", Folders, clobber=True)
    with pytest.raises(DataError, match="closed"):
        walk("folders://root")
    assert fsspec.filesystem("folders").find("root") == ["root/1.jpg", "root/cat/2.jpg"]
    monkeypatch.setattr(Folders, "closed", False)
    listing = walk("folders://root")
    assert (listing.files, listing.folders) == ({"1.jpg": 3, "cat/2.jpg": 3}, ["cat", "dog"])
