"""The manifest of a checkpoint. It is written last and makes a folder a checkpoint; its digests cover every byte.

    {run}/step-000001200-5f3a90c1/
        rank-00000-of-00002.000.safetensors    fragments of rank 0, in files of about half a gigabyte
        rank-00001-of-00002.000.safetensors
        manifest.json                          step, totals, size and SHA-256 of each file and of itself, each fragment

A folder without a manifest is not a checkpoint. The random suffix separates a new attempt at a step from the remains of
an earlier one that crashed.

Commands list checkpoints with this file, which loads neither torch nor Ray.
"""

import hashlib
import itertools
import json
import logging
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data import storage
from orchestrator.names import SKIPPED

MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 512 * 2**20  # a thousand ranks at ZeRO 3 need a fifth of this
WEIGHT = "weight"  # state of the float32 weights; the others are the optimizer's keys: exp_avg, momentum_buffer, ...
_NAME = re.compile(r"step-(\d{9})-[0-9a-f]{8}")

FileName = Annotated[str, Field(pattern=r"^rank-\d{5}-of-\d{5}\.\d{3}\.safetensors$")]
Size = Annotated[int, Field(ge=0, lt=2**63)]
Fragment = tuple[str, str, Size, Size, FileName]  # state, parameter, start, numel, file

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint does not fit this run, or could not be saved or restored."""


class File(BaseModel):
    """Length and SHA-256 (hex) of one file."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    bytes: Size
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Part(BaseModel):
    """One rank's part: the number of elements of each parameter, the rank's files and the fragments in them."""

    model_config = ConfigDict(extra="forbid")

    parameters: dict[str, Size]
    files: dict[FileName, File]
    fragments: list[Fragment]


class Manifest(Part):
    """The contents of a complete checkpoint. `totals` and `metrics` are those after `step` steps; both are restored."""

    format: Literal[1, 2] = 2  # format 1 has no digest of itself
    step: Size
    world_size: Size
    totals: dict[str, Any]
    metrics: dict[str, float]
    _name: str = ""

    @property
    def name(self) -> str:
        """The checkpoint's folder in its run."""
        return self._name

    @property
    def states(self) -> list[str]:
        """The optimizer's keys, such as exp_avg."""
        return sorted({state for state, *_ in self.fragments} - {WEIGHT})

    @property
    def updates(self) -> int:
        """Number of updates of the weights: steps without the skipped ones."""
        return self.step - int(self.metrics.get(SKIPPED, 0))

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        """Check that each state has each element of each parameter exactly once, in listed files."""
        pieces: dict[tuple[str, str], list[tuple[int, int]]] = defaultdict(list)
        for state, parameter, start, numel, file in self.fragments:
            pieces[state, parameter].append((start, numel))
            if file not in self.files:
                raise ValueError(f"{file!r} is not in the list of files")
        for state in (WEIGHT, *self.states):
            for parameter, size in self.parameters.items():
                end = 0
                for start, numel in sorted(pieces.pop((state, parameter), [])):
                    if start != end:
                        raise ValueError(f"{state} of {parameter} has a gap or an overlap at {end}")
                    end += numel
                if end != size:
                    raise ValueError(f"{state} of {parameter} has {end} of {size} elements")
        if pieces:
            raise ValueError(f"{min(pieces)[1]!r} is not a parameter")
        return self

    def dumps(self) -> str:
        """The text of `manifest.json`."""
        record = json.loads(json.dumps(self.model_dump()))  # as a reader gets it
        return json.dumps({**record, "digest": _digest(record)})

    @classmethod
    def parse(cls, name: str, text: str) -> Self:
        """The manifest of the checkpoint in the folder `name`.

        Raises:
            ValueError: the text is not a manifest of this folder; the reason in one line.
        """
        try:
            record = dict(json.loads(text))
            digest = record.pop("digest", None)
            manifest = cls.model_validate(record)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"]))
            raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error
        except (TypeError, RecursionError) as error:
            raise ValueError("not a JSON object of a reasonable depth") from error
        if digest != _digest(record) and (manifest.format > 1 or digest is not None):
            raise ValueError("it does not match its own SHA-256")
        manifest._name = name
        if (found := _NAME.fullmatch(name)) and int(found[1]) != manifest.step:
            raise ValueError(f"it belongs to step {manifest.step}")
        return manifest


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def new_name(step: int, suffix: int) -> str:
    """A folder name for the checkpoint after `step` steps, with 32 random bits; sorts by step."""
    return f"step-{step:09d}-{suffix:08x}"


def complete_checkpoints(run_url: str, warn: Callable[[str], None] = log.warning) -> Iterator[Manifest]:
    """The complete checkpoints of a run, newest first: those with a valid manifest and files of the right sizes.

    `warn` receives a line for each checkpoint that was complete once and is damaged.

    Raises:
        OSError: the store cannot be read. An outage does not count as damage.
    """
    for name in sorted(_names(run_url), reverse=True):
        sizes = storage.contents(f"{run_url}/{name}")
        if MANIFEST not in sizes:
            continue  # unfinished
        try:
            if sizes[MANIFEST] > MOST_MANIFEST_BYTES:
                raise ValueError(f"{sizes[MANIFEST]} bytes are too many for a manifest")
            manifest = Manifest.parse(name, storage.read(f"{run_url}/{name}/{MANIFEST}").decode())
        except ValueError as error:  # includes a wrong text encoding
            warn(f"checkpoint {name}: unreadable manifest ({storage.describe(error)}); using the previous one")
            continue
        wrong = [file for file, entry in manifest.files.items() if sizes.get(file) != entry.bytes]
        if wrong:
            warn(f"checkpoint {name}: {wrong[0]} missing or truncated; using the previous one")
            continue
        yield manifest


def prune(run_url: str, keep: int) -> None:
    """Delete unfinished checkpoints, and all complete ones but the newest `keep`.

    No checkpoint of the run may be in progress. Ray Train's own pruning deletes only checkpoints that were registered
    with it, and a crash may prevent that.
    """
    kept = [manifest.name for manifest in itertools.islice(complete_checkpoints(run_url), keep)]
    for name in _names(run_url):
        if kept and name not in kept and name < max(kept):
            storage.remove(f"{run_url}/{name}/{MANIFEST}")  # first: if killed now, the rest is not a checkpoint
            storage.remove_folder(f"{run_url}/{name}")
    remove_unfinished(run_url)


def remove_unfinished(run_url: str) -> None:
    """Delete the checkpoints of a run that have no manifest. None may be in progress."""
    for name in _names(run_url):
        if MANIFEST not in storage.contents(f"{run_url}/{name}"):
            storage.remove_folder(f"{run_url}/{name}")


def _names(run_url: str) -> list[str]:
    return [name for name in storage.contents(run_url) if _NAME.fullmatch(name)]
