"""Files and folders by URL."""

import tracemalloc
from pathlib import Path

import pytest

from data import storage


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_files_opened_to_read_can_be_sought(tmp_path: Path, kind: str) -> None:
    url = f"{tmp_path}/file" if kind == "local" else f"memory://{tmp_path}/file"
    content = bytes(range(256)) * 100
    storage.write_atomic(url, content)
    with storage.open_read(url, 1000) as file:
        assert file.read(10) == content[:10]
        file.seek(-20, 2)
        assert file.read() == content[-20:]
        file.seek(5000)
        assert file.read(3000) == content[5000:8000]
        assert file.tell() == 8000
    with pytest.raises(FileNotFoundError):
        storage.open_read(f"{url}-not", 1000)


@pytest.mark.parametrize("kind", ["memory", "local"])
def test_files_and_folders_are_moved_listed_and_deleted(tmp_path: Path, kind: str) -> None:
    folder = f"{tmp_path}/there" if kind == "local" else f"memory://{tmp_path}/there"
    source, back = tmp_path / "source", tmp_path / "back"
    assert storage.contents(folder) == {}
    source.write_bytes(b"12345")
    storage.put_file(source, f"{folder}/inner/file")
    assert not source.exists()
    storage.write_atomic(f"{folder}/other", b"1")
    assert storage.contents(f"{folder}/inner") == {"file": 5}
    assert set(storage.contents(folder)) == {"inner", "other"}
    storage.get_file(f"{folder}/inner/file", back)
    assert back.read_bytes() == b"12345"
    with pytest.raises(FileNotFoundError):
        storage.get_file(f"{folder}/nothing", back)
    for _ in range(2):
        storage.remove_folder(f"{folder}/inner")
        assert set(storage.contents(folder)) == {"other"}


def test_deleting_a_linked_folder_deletes_the_link(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_bytes(b"x")
    for target in ("outside", "absent"):
        link = tmp_path / "link"
        link.symlink_to(tmp_path / target)
        storage.remove_folder(str(link))
        assert not link.is_symlink()
    assert (tmp_path / "outside" / "file").read_bytes() == b"x"


def test_a_range_far_beyond_the_end_takes_no_memory(tmp_path: Path) -> None:
    """As an index may claim that a shard is a terabyte long."""
    (tmp_path / "a").write_bytes(b"0123456789")
    tracemalloc.start()
    try:
        for begin, expected in ((0, b"0123456789"), (4, b"456789"), (10, b""), (99, b"")):
            assert storage.read_range(f"{tmp_path}/a", begin, 10**15, attempts=1) == expected
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
