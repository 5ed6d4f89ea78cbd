"""What a walk through a folder finds."""

from collections.abc import Collection
from dataclasses import dataclass, field

from data.packing.source import Skipped
from data.sources.walk.names import is_hidden

HIDDEN = "hidden or system folder"


@dataclass
class Listing:
    """What was found in a folder. Every path is relative to it, with slashes between names.

    Attributes:
        files: size in bytes of each file, by its path.
        folders: the folders that were entered, empty ones too. A folder directly in the root has no slash in its path.
        skipped: what is neither: its path, of a folder with a final slash, and the reason.
        found: number of things that were met: files, and all that is skipped.
    """

    files: dict[str, int] = field(default_factory=dict)
    folders: list[str] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)
    found: int = 0

    def skip(self, path: str, reason: str) -> None:
        """Name something that is left out."""
        self.found += 1
        self.skipped.append(Skipped(path, reason))

    def take(self, path: str, size: int) -> None:
        """Keep a file."""
        self.found += 1
        self.files[path] = size


def leaves_out(path: str, entered: Collection[str]) -> bool:
    """Whether the folder at `path` is not entered, because of its name."""
    return is_hidden(path.rpartition("/")[2]) and not any(f"{one}/".startswith(f"{path}/") for one in entered)
