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
    (
        *("thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "picasa.ini", ".picasa.ini", "icon\r"),
        *(".ds_store", ".localized", ".directory", ".nomedia", "synofile_thumb.db", ".syncthing", ".dropbox"),
        *(".gitignore", ".gitattributes", ".gitkeep", ".gitmodules", ".keep", ".dvcignore", ".htaccess"),
    )
)
_IMAGES = frozenset(("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm"))
_OTHERS = frozenset(
    (
        *(
            "json",
            "jsonl",
            "ndjson",
            "geojson",
            "txt",
            "text",
            "csv",
            "tsv",
            "xml",
            "yaml",
            "yml",
            "toml",
            "ini",
            "cfg",
        ),
        *("parquet", "arrow", "feather", "avro", "orc", "xls", "xlsx", "ods", "db", "sqlite", "sqlite3", "mdb", "lmdb"),
        *("md", "rst", "log", "tex", "bib", "rtf", "doc", "docx", "odt", "ppt", "pptx", "pdf", "ps", "eps", "epub"),
        *(
            "html",
            "htm",
            "xhtml",
            "css",
            "js",
            "ts",
            "py",
            "pyc",
            "ipynb",
            "r",
            "m",
            "c",
            "h",
            "cpp",
            "java",
            "sh",
            "bat",
        ),
        *(
            "npy",
            "npz",
            "mat",
            "h5",
            "hdf5",
            "pkl",
            "pickle",
            "pt",
            "pth",
            "ckpt",
            "safetensors",
            "onnx",
            "pb",
            "tfrecord",
        ),
        *("zip", "tar", "gz", "tgz", "bz2", "tbz2", "xz", "txz", "zst", "lz4", "7z", "rar", "iso", "dmg", "jar", "whl"),
        *("mp4", "m4v", "mov", "avi", "mkv", "webm", "mpg", "mpeg", "wmv", "flv", "3gp", "ogv", "mts", "vtt", "srt"),
        *("mp3", "wav", "flac", "ogg", "oga", "opus", "m4a", "aac", "wma", "mid", "midi", "aif", "aiff"),
        *("md5", "sha1", "sha256", "sha512", "sig", "asc", "crc", "lock", "torrent", "url", "lnk", "exe", "dll", "so"),
        *("part", "partial", "crdownload", "download", "aria2", "tmp", "temp", "swp"),
    )
)


def is_hidden(folder: str) -> bool:
    """Whether a folder's name is that of a hidden or system folder.

    >>> [is_hidden(name) for name in (".git", ".Trash-1000", "@eaDir", "__MACOSX", "$RECYCLE.BIN", "cats")]
    [True, True, True, True, True, False]
    """
    return folder.startswith(".") or folder.lower() in _FOLDERS


def is_system_file(name: str) -> bool:
    """Whether a file's name is that of the notes of a system or a program.

    >>> [is_system_file(name) for name in ("Thumbs.db", ".DS_Store", ".nomedia", "db.jpg", ".a")]
    [True, True, True, False, False]
    """
    return name.lower() in _FILES


def extension_of(name: str) -> str:
    """The extension in small letters; "" if there is none."""
    return name.rpartition(".")[2].lower() if "." in name else ""


def is_image_name(name: str) -> bool:
    """Whether a file's extension is that of images that every earlier version packed, too.

    A new one would belong into the files that are judged by their first bytes: sets that hold such files without being
    images must keep their identity.
    """
    return extension_of(name) in _IMAGES


def is_unread(name: str) -> bool:
    """Whether a file's extension says that it is no image: a million tables or captions need not be opened."""
    return extension_of(name) in _OTHERS
