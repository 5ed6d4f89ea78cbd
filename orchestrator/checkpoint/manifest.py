"""The manifest of a checkpoint. It is written last and makes a folder a checkpoint; its digests cover every byte.

    {run}/step-000001200-5f3a90c1/
        rank-00000-of-00002.000.safetensors    fragments of rank 0, in files of about half a gigabyte
        rank-00001-of-00002.000.safetensors
        manifest.json                          step, totals, size and SHA-256 of each file and of itself, each fragment
        owner.json, passed_over.json           `checkpoint/notes.py`

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
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data import storage
from orchestrator.checkpoint.notes import MARK, OWNER, Origin, Owner, is_link, pass_over, read_origin
from orchestrator.names import CAUSES, IN_A_ROW, SKIPPED, WENT_BACK, bad_samples

MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 512 * 2**20  # a thousand ranks at ZeRO 3 need a fifth of this
COUNTS = (SKIPPED, IN_A_ROW, WENT_BACK, *map(bad_samples, CAUSES))  # metrics from which a run goes on counting
USING_PREVIOUS = "using the previous one"
WEIGHT = "weight"  # state of the float32 weights; the others are the optimizer's keys: exp_avg, momentum_buffer, ...
_NAME = re.compile(r"step-(\d{9})-[0-9a-f]{8}")

FileName = Annotated[str, Field(pattern=r"^rank-\d{5}-of-\d{5}\.\d{3}\.safetensors$")]
Size = Annotated[int, Field(ge=0, lt=2**63)]
Total = Annotated[int | float, Field(ge=0, allow_inf_nan=False)]
Fragment = tuple[str, str, Size, Size, FileName]  # state, parameter, start, numel, file

T = TypeVar("T")

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
    totals: dict[str, Total]
    metrics: dict[str, float]
    _name: str = ""

    @property
    def name(self) -> str:
        """The checkpoint's folder in its run."""
        return self._name

    @property
    def sha256(self) -> str:
        """Hex digest of everything that it says, which covers every byte of the checkpoint."""
        return _digest(json.loads(json.dumps(self.model_dump())))

    @property
    def states(self) -> list[str]:
        """The optimizer's keys, such as exp_avg."""
        return sorted({state for state, *_ in self.fragments} - {WEIGHT})

    @property
    def updates(self) -> int:
        """Number of updates of the weights: steps without the skipped ones."""
        return self.step - int(self.metrics.get(SKIPPED, 0))

    def missing_from(self, sizes: dict[str, int]) -> str | None:
        """A file of the checkpoint that is missing from a folder with files of these sizes, or has another size."""
        return next((name for name, entry in self.files.items() if sizes.get(name) != entry.bytes), None)

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
        if (named := _NAME.fullmatch(name)) and int(named[1]) != manifest.step:
            raise ValueError(f"it belongs to step {manifest.step}")
        if (steps := manifest.totals.get("steps", manifest.step)) != manifest.step:
            raise ValueError(f"it belongs to step {manifest.step}, and its totals to step {steps}")
        for count in COUNTS:
            most = manifest.step if count == SKIPPED else 2**62
            if not 0 <= (found := manifest.metrics.get(count, 0)) <= most:
                raise ValueError(f"{count} = {found} at step {manifest.step}")
        return manifest


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def new_name(step: int, suffix: int) -> str:
    """A folder name for the checkpoint after `step` steps, with 32 random bits; sorts by step."""
    return f"step-{step:09d}-{suffix:08x}"


@dataclass(frozen=True)
class Unfit:
    """A complete checkpoint that cannot be used.

    Attributes:
        name: its folder in the run.
        reason: why, in one line that names the file.
        foreign: whether it is of another run, and otherwise perhaps intact.
    """

    name: str
    reason: str
    foreign: bool = False

    def __str__(self) -> str:
        """The line for the terminal."""
        return f"checkpoint {self.name}: {self.reason}; {'it is passed over' if self.foreign else USING_PREVIOUS}"


def complete_checkpoints(
    run_url: str, warn: Callable[[str], None] = log.warning, owner: Owner | None = None
) -> Iterator[Manifest]:
    """The complete checkpoints of a run, newest first: those with a valid manifest and files of the right sizes.

    Args:
        warn: receives a line for each checkpoint that was complete once and cannot be used.
        owner: the run that they must be of. None: any.

    Raises:
        OSError: the store cannot be read. An outage does not count as damage.
    """
    for found in survey(run_url, owner):
        if isinstance(found, Manifest):
            yield found
        else:
            warn(str(found))


def survey(run_url: str, owner: Owner | None) -> Iterator[Manifest | Unfit]:
    """The complete checkpoints of a run, newest first, fit or not. A file that cannot be read is read again.

    Of two at one step, the one that was written later is newer. Those that an earlier start has passed over are left
    out.

    Raises:
        OSError: the store cannot be read.
    """
    for _, names in itertools.groupby(sorted(_names(run_url), reverse=True), key=_step):
        judged = [found for name in names if (found := _judge(run_url, name, owner))]
        yield from (each for _, each in sorted(judged, key=lambda found: found[0], reverse=True))


def passed_over(run_url: str) -> list[str]:
    """The complete checkpoints of a run that an earlier start has passed over."""
    return [name for name in _names(run_url) if {MANIFEST, MARK} <= storage.contents(f"{run_url}/{name}").keys()]


def prune(
    run_url: str,
    keep: int,
    newest: str | None = None,
    owner: Owner | None = None,
    best: Callable[[Iterable[Manifest]], Manifest | None] | None = None,
) -> None:
    """Delete unfinished checkpoints, and all complete ones but the newest `keep` and the best one.

    No checkpoint of the run may be in progress. Ray Train's own pruning deletes only checkpoints that were registered
    with it, and a crash may prevent that.

    Args:
        newest: the checkpoint that was just written. What has a later step was left behind by a start that went back,
            and is marked: it does not count as kept. Unless this one is fit, nothing is deleted or marked. None: the
            first one that is fit.
        owner: the run. Checkpoints of other runs are neither counted nor deleted.
        best: chooses the checkpoint to keep besides the newest, of all that are fit, newest first. None: no other.
    """
    fit: list[Manifest] = []
    later: list[Manifest | Unfit] = []
    for found in survey(run_url, owner):
        if isinstance(found, Manifest) and (fit or newest in (None, found.name)):
            fit.append(found)
        elif not fit:
            later.append(found)
        if len(fit) == keep and best is None:
            break
    if fit:
        if newest is not None:
            for found in later:
                _leave_behind(run_url, found, newest)
        stay = {found.name for found in [*fit[:keep], *later]}
        if best is not None and (chosen := best(fit)) is not None:
            stay.add(chosen.name)
        for name in _names(run_url):
            older = _step(name) <= _step(fit[0].name) and name not in stay
            if older and not _is_foreign(f"{run_url}/{name}", owner):
                delete(f"{run_url}/{name}")
    remove_unfinished(run_url)


def remove_unfinished(run_url: str) -> None:
    """Delete the checkpoints of a run that have no manifest. None may be in progress."""
    for name in _names(run_url):
        if MANIFEST not in storage.contents(f"{run_url}/{name}"):
            delete(f"{run_url}/{name}")


def delete(folder: str) -> None:
    """Delete a checkpoint; of a link, the link alone."""
    if not is_link(folder):
        with suppress(IsADirectoryError, NotADirectoryError):
            storage.remove(f"{folder}/{MANIFEST}")  # first: if killed now, the rest is not a checkpoint
    try:
        storage.remove_folder(folder)
    except NotADirectoryError:  # a file with the name of a checkpoint
        storage.remove(folder)


def _judge(run_url: str, name: str, owner: Owner | None) -> tuple[int, Manifest | Unfit] | None:
    """When a checkpoint was written, and its manifest or why it is unfit. None: unfinished, or passed over before."""
    folder, origin = f"{run_url}/{name}", Origin()
    try:
        file = "its folder"
        sizes = _twice(lambda: storage.contents(folder))
        if MANIFEST not in sizes or MARK in sizes:
            return None
        file = OWNER
        origin = _twice(lambda: read_origin(folder, sizes))
        if owner is not None and origin.run not in (None, owner.run):
            reason = f"{OWNER}: it belongs to the run {origin.run}, and this is {owner.run}"
            return origin.written, Unfit(name, reason, foreign=True)
        file = MANIFEST
        manifest = _twice(lambda: _read_manifest(run_url, name, sizes[MANIFEST]))
        if wrong := manifest.missing_from(sizes):
            wrong = manifest.missing_from(storage.contents(folder))
    except Exception as error:  # of any file system; a ValueError includes a wrong text encoding
        if storage.is_outage(error, folder):
            raise
        if file == MANIFEST:
            why = f"unreadable manifest ({MANIFEST}: {storage.describe(error)})"
        else:
            why = str(error) if isinstance(error, ValueError) else f"{file}: {storage.describe(error)}"
        return origin.written, Unfit(name, why)

    misfit = f"{wrong} missing or truncated" if wrong else _misfit(manifest, owner)
    return origin.written, manifest if misfit is None else Unfit(name, misfit)


def _misfit(manifest: Manifest, owner: Owner | None) -> str | None:
    """Why an intact checkpoint cannot be of this run; None if it can."""
    if owner is None:
        return None
    if manifest.step > owner.total_steps:
        return f"{MANIFEST}: it belongs to step {manifest.step:,}, and the run has {owner.total_steps:,} steps"
    if "steps" not in manifest.totals:
        return f"{MANIFEST}: its totals have no number of steps"
    if owner.totals is not None and (unknown := manifest.totals.keys() - owner.totals):
        return f"{MANIFEST}: its totals have {min(unknown)[:40]!r}, which this version does not count"
    return None


def _read_manifest(run_url: str, name: str, size: int) -> Manifest:
    if size > MOST_MANIFEST_BYTES:
        raise ValueError(f"{size} bytes are too many for a manifest")
    return Manifest.parse(name, storage.read(f"{run_url}/{name}/{MANIFEST}").decode())


def _twice(read: Callable[[], T]) -> T:
    """The result of `read()`, which is called again if it fails: one failure proves nothing about a file."""
    try:
        return read()
    except Exception:  # of any file system
        return read()


def _leave_behind(run_url: str, found: Manifest | Unfit, newest: str) -> None:
    reason = found.reason if isinstance(found, Unfit) else "the run went back, and has written another one since"
    try:
        pass_over(f"{run_url}/{found.name}", reason, newest)
    except Exception as error:  # of any file system; the next complete checkpoint tries again
        log.warning("checkpoint %s: it cannot be marked as passed over (%s)", found.name, storage.describe(error))


def _is_foreign(folder: str, owner: Owner | None) -> bool:
    try:
        return owner is not None and read_origin(folder, storage.contents(folder)).run not in (None, owner.run)
    except Exception as error:  # of any file system
        if storage.is_outage(error, folder):
            raise
        return False


def _names(run_url: str) -> list[str]:
    return [name for name in storage.contents(run_url) if _NAME.fullmatch(name)]


def _step(name: str) -> str:
    """The part of a folder's name that sorts by step."""
    return name.rpartition("-")[0]
