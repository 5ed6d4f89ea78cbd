"""The kind of a file by its first bytes. Its name may be wrong.

`kind` names images and the other files that lie among them: web pages that were saved as images, pointers that stand
for a file of a large-file store, pictures of telephones. It serves two questions. Which files without an image's
extension are images? And why can a file that is called an image not be decoded?
"""

import codecs
import re
from typing import NamedTuple

from data.errors import Cause

HEAD_BYTES = 512  # enough for `kind`


class Kind(NamedTuple):
    """A kind of file: whether it is an image, and whether images of this kind can be packed."""

    name: str
    is_packed: bool = False
    is_image: bool = False


_STARTS = (  # (first bytes, how many bytes come before them, kind)
    (b"\xff\xd8\xff", 0, Kind("JPEG", True, True)),
    (b"\x89PNG\r\n\x1a\n", 0, Kind("PNG", True, True)),
    (b"GIF87a", 0, Kind("GIF", True, True)),
    (b"GIF89a", 0, Kind("GIF", True, True)),
    (b"\0\0\0\x0cjP  \r\n\x87\n", 0, Kind("JPEG 2000", True, True)),
    (b"\xff\x4f\xff\x51\0", 0, Kind("JPEG 2000", True, True)),
    (b"\0\0\0\x0cJXL \r\n\x87\n", 0, Kind("JPEG XL", False, True)),
    (b"\xff\x0a", 0, Kind("JPEG XL", False, True)),
    (b"CR\x02", 8, Kind("camera's raw image", False, True)),  # a TIFF by its first bytes
    (b"FUJIFILMCCD-RAW", 0, Kind("camera's raw image", False, True)),
    (b"II*\0", 0, Kind("TIFF", True, True)),
    (b"MM\0*", 0, Kind("TIFF", True, True)),
    (b"II+\0", 0, Kind("TIFF", True, True)),
    (b"MM\0+", 0, Kind("TIFF", True, True)),
    (b"8BPS\0", 0, Kind("Photoshop file", False, True)),
    (b"gimp xcf", 0, Kind("GIMP file", False, True)),
    (b"\0\0\x01\0", 0, Kind("icon", False, True)),
    (b"DICM", 128, Kind("DICOM image", False, True)),
    (b"\0\x05\x16\x07", 0, Kind("macOS AppleDouble file")),
    (b"\0\x05\x16\0", 0, Kind("macOS AppleSingle file")),
    (b"version https://git-lfs.github.com/", 0, Kind("Git LFS pointer")),
    (b"version https://hawser.github.com/", 0, Kind("Git LFS pointer")),
    (b"%PDF", 0, Kind("PDF")),
    (b"PK\x03\x04", 0, Kind("ZIP archive")),
    (b"PK\x05\x06", 0, Kind("ZIP archive")),
    (b"\x1f\x8b", 0, Kind("gzip file")),
    (b"BZh", 0, Kind("bzip2 file")),
    (b"\xfd7zXZ\0", 0, Kind("xz file")),
    (b"\x28\xb5\x2f\xfd", 0, Kind("Zstandard file")),
    (b"7z\xbc\xaf\x27\x1c", 0, Kind("7-Zip archive")),
    (b"Rar!\x1a\x07", 0, Kind("RAR archive")),
    (b"ustar", 257, Kind("tar archive")),
    (b"\x1a\x45\xdf\xa3", 0, Kind("Matroska video")),
    (b"\x93NUMPY", 0, Kind("NumPy array")),
    (b"\x89HDF\r\n", 0, Kind("HDF5 file")),
    (b"PAR1", 0, Kind("Parquet table")),
    (b"SQLite format 3\0", 0, Kind("SQLite database")),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0, Kind("Microsoft Office file")),
    (b"\x7fELF", 0, Kind("program")),
    (b"MZ\x90\0", 0, Kind("program")),
    (b"ID3", 0, Kind("MP3 audio")),
    (b"OggS", 0, Kind("Ogg audio or video")),
    (b"fLaC", 0, Kind("FLAC audio")),
)
_BRANDS = (  # of ISO base media files, `....ftypBRAND`; an AVIF may have HEIC's brands, too
    ({b"avif", b"avis"}, Kind("AVIF", True, True)),
    ({b"crx "}, Kind("camera's raw image", False, True)),
    (
        {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"},
        Kind("HEIC", False, True),
    ),
)
_RIFF = {b"WEBP": Kind("WebP", True, True), b"AVI ": Kind("AVI video"), b"WAVE": Kind("WAV audio")}
_BITMAP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes of a BMP's second header, by version
_PORTABLE = re.compile(rb"P[1-6]\s(?:\s*#[^\n]*\n)*\s*\d|P7\s+(?:WIDTH|HEIGHT|DEPTH|MAXVAL|TUPLTYPE|#)")
_HTML = re.compile(rb"(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body|script|title|meta|div)\b", re.I | re.S)
_CONTROL = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def kind(content: bytes) -> Kind | None:
    """What `content`, a whole file or its first HEAD_BYTES, is. None for bytes that nothing here names."""
    for start, before, found in _STARTS:
        if content.startswith(start, before):
            return found
    if content[4:8] == b"ftyp":
        end = min(int.from_bytes(content[:4], "big"), len(content), HEAD_BYTES)
        brands = {content[at : at + 4] for at in (8, *range(16, end, 4))}
        return next((found for known, found in _BRANDS if known & brands), Kind("MP4 or QuickTime video"))
    if content[:4] == b"RIFF":
        return _RIFF.get(content[8:12], Kind("RIFF file"))
    if content[:2] == b"BM" and int.from_bytes(content[14:18], "little") in _BITMAP_HEADERS:
        return Kind("BMP", True, True)
    if _PORTABLE.match(content):
        return Kind("PNM", True, True)
    return _kind_of_text(content[:HEAD_BYTES])


def _kind_of_text(head: bytes) -> Kind | None:
    if head and not head.strip(b"\0"):
        return Kind("file of zeros")
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:64].replace(b"\\", b"/").find(b"/annex/objects/") != -1:
        return Kind("git-annex pointer")
    if _HTML.match(text):
        return Kind("HTML page")
    if text.startswith(b"<"):
        if re.search(rb"<svg\b", text):
            return Kind("SVG drawing", False, True)
        return Kind("XML text")
    try:
        whole = codecs.getincrementaldecoder("utf-8")().decode(text)  # a character may be cut at the end
    except UnicodeDecodeError:
        return None
    if not whole or _CONTROL.search(text):
        return None
    return Kind("JSON text") if text[:1] in b"{[" else Kind("text")


def is_cut_short(content: bytes) -> bool:
    """Whether a JPEG, PNG, WebP, GIF or BMP lacks its end. If it has other bytes after its end, it seems so, too."""
    if content.startswith(b"\xff\xd8"):
        return not content.endswith(b"\xff\xd9")
    if content.startswith(b"\x89PNG"):
        return not content.endswith(b"IEND\xaeB`\x82")
    if content.startswith(b"GIF8"):
        return not content.endswith(b";")
    if content.startswith(b"RIFF"):
        return len(content) < 8 + int.from_bytes(content[4:8], "little")
    if content.startswith(b"BM"):
        return len(content) < int.from_bytes(content[2:6], "little")
    return False


def why_unusable(content: bytes) -> str:
    """The cause that says what a file is that cannot be packed as an image."""
    found = kind(content)
    if found is None:
        return Cause.UNDECODABLE
    if not found.is_image:
        return f"not an image: {found.name}"
    if not found.is_packed:
        return f"{Cause.UNDECODABLE}: {found.name}"
    return (
        f"{Cause.UNDECODABLE}: {found.name} cut short"
        if is_cut_short(content)
        else f"{Cause.UNDECODABLE}: damaged {found.name}"
    )
