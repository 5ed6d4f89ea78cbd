"""Files of a run that a fault damages between two starts: half a line at the end of one, or a checkpoint's content."""

import json
from collections.abc import Callable
from pathlib import Path

from data import storage

HALF_A_LINE = b'{"set": "train", "id": 12'


def tear_file(run: str, spools: Path, draw: float) -> str:
    """Leaves half a line in a file that the run reads back at its next start. Returns the file's name.

    Args:
        run: URL of the run's folder.
        spools: folder in which spools of the tracker lie, at any depth.
        draw: in [0, 1), chooses the file.
    """
    names = storage.contents(run)
    choices: list[Callable[[], str]] = [
        *(lambda name=name: _append(f"{run}/{name}") for name in ("quarantine.jsonl", "summary.json", "lock")),
        *(lambda name=name: _append(f"{run}/{name}") for name in sorted(names) if name.startswith("tracking-")),
        *(lambda path=path: _append(str(path)) for path in sorted(spools.rglob("tracking-*.jsonl"))),
    ]
    if "samples" in names and (ledger := sorted(storage.contents(f"{run}/samples"))):
        # A copy that was cut short, of a later attempt: what the file itself says must not be lost.
        content = storage.read(f"{run}/samples/{ledger[-1]}")
        torn = f"{run}/samples/{ledger[-1].rpartition('-')[0]}-999999.json"
        choices.append(lambda: _write(torn, content[: len(content) // 2]))
    return choices[int(draw * len(choices))]()


def damage_checkpoint(url: str, draw: float) -> str:
    """Damages a complete checkpoint, so that only a reader notices. Returns the damaged file's name.

    Args:
        draw: in [0, 1), chooses the damage.
    """
    shard = f"{url}/{min(name for name in storage.contents(url) if name.endswith('.safetensors'))}"
    manifest = f"{url}/manifest.json"
    content, text = storage.read(shard), storage.read(manifest)
    choices: list[Callable[[], str]] = [
        lambda: _write(shard, content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]),
        lambda: _write(shard, content[: len(content) // 2]),
        lambda: _write(manifest, text[: len(text) // 2]),
        lambda: _write(manifest, json.dumps(json.loads(text) | {"step": 10**6}).encode()),
        lambda: _remove(shard),
    ]
    return choices[int(draw * len(choices))]()


def _append(url: str) -> str:
    content = storage.read(url) if storage.exists(url) else b""
    return _write(url, content + HALF_A_LINE)


def _write(url: str, content: bytes) -> str:
    storage.write_atomic(url, content)
    return url.rpartition("/")[2]


def _remove(url: str) -> str:
    storage.remove(url)
    return url.rpartition("/")[2]
