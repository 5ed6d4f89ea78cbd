import doctest

import pytest

from data.sources.walk import names


def test_the_examples():
    assert doctest.testmod(names).failed == 0


@pytest.mark.parametrize("name", [".ipynb_checkpoints", ".", "..", "@EADIR", "__macosx", "LOST+FOUND", "$Recycle.Bin"])
def test_hidden_folders(name):
    assert names.is_hidden(name)


@pytest.mark.parametrize("name", ["cat", "__init__", "_cat", "@cat", "#1", "$5", "~", "cat.dog", "lost and found", "…"])
def test_folders_that_are_classes(name):
    assert not names.is_hidden(name)


@pytest.mark.parametrize(
    ("name", "extension"), [("a.JPG", "jpg"), ("a", ""), ("jpg", ""), (".jpg", "jpg"), ("a.tar.gz", "gz"), ("a.", "")]
)
def test_extensions(name, extension):
    assert names.extension_of(name) == extension
