"""`measured.json` in a run's folder: which held-out sets the run has measured.

A set that a run has not measured yet is owed, whenever it was added to the job: at the next evaluation, or at the next
start of a complete run. A set is known by its name and its index's digest.
"""

import json
from collections.abc import Iterable, Mapping

from data import storage
from orchestrator import names
from orchestrator.redact import print_warning

MEASURED = "measured.json"


def read_measured(url: str) -> dict[str, str] | None:
    """Digests of the sets that the run in the folder `url` has measured, by name.

    None if that is not known: the run is of an earlier version of this program, or the file is torn.
    """
    try:
        found = json.loads(storage.read(f"{url}/{MEASURED}"))
        if isinstance(found, dict) and all(isinstance(digest, str) for digest in found.values()):
            return found
        reason = "no digests by name"
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        reason = type(error).__name__
    print_warning(f"{url}/{MEASURED} is damaged ({reason}); the run writes it again")
    return None


def write_measured(url: str, digests: Mapping[str, str]) -> None:
    """Write which sets the run in the folder `url` has measured."""
    storage.write_atomic(f"{url}/{MEASURED}", json.dumps(dict(digests), indent=1).encode())


def owed(digests: Mapping[str, str], measured: Mapping[str, str] | None, metrics: Iterable[str]) -> list[str]:
    """Names of the sets that a run has not measured.

    Args:
        digests: of the sets of the job, by name.
        measured: as `read_measured` gives it.
        metrics: names of the run's metrics, which count if `measured` is not known.
    """
    if measured is not None:
        return [name for name, digest in digests.items() if measured.get(name) != digest]
    known = {place[0] for metric in metrics if (place := names.split_held_out(metric))}
    return [name for name in digests if name not in known]
