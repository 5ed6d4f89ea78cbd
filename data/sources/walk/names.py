"""Names that people did not give: of folders and files that systems and programs leave among images."""

_FOLDERS = frozenset(  # in small letters; names with a dot in front need not be here
    (
        "$recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "__macosx",
        "network trash folder",
        "temporary items",
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@tmp",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "__pycache__",
    )
)
_FILES = frozenset(
    ("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", "icon\r", "synofile_thumb.db")
)


def is_hidden(folder: str) -> bool:
    """Whether a folder's name is that of a hidden or system folder.

    >>> [is_hidden(name) for name in (".git", ".Trash-1000", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "cats")]
    [True, True, True, True, True, False]
    """
    return folder.startswith(".") or folder.lower() in _FOLDERS


def is_system_file(name: str) -> bool:
    """Whether a file's name is that of a system's own notes, or begins with a dot and has no extension.

    >>> [is_system_file(name) for name in ("Thumbs.db", ".DS_Store", ".nomedia", "db.jpg", ".a.jpg")]
    [True, True, True, False, False]
    """
    return name.lower() in _FILES or (name.startswith(".") and "." not in name[1:])
