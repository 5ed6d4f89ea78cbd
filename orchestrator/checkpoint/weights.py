"""Any model's URL, read: the one function that init_from, predict, features and export use.

URL                                      an exported model (`as_model/export.py`)
URL[@STEP | @last | @best][#live | #ema]   a run (`as_model/trained.py`)
"""

from collections.abc import Callable

from data import storage
from orchestrator.checkpoint.as_model.export import is_export, read_export
from orchestrator.checkpoint.as_model.trained import ModelError, Trained, read_trained, run_address


def read_model(url: str, warn: Callable[[str], None], *, values: bool = True) -> Trained:
    """Read any model.

    Args:
        url: of an exported model or of a run.
        warn: receives a line for each newer checkpoint of a run that cannot be used.
        values: read the weights. Else the tensors are of the meta device: names and shapes, for a check that is cheap.

    Raises:
        ModelError: there is no such model, or it is damaged; the text is one line.
        Exception: the store's error.
    """
    if (address := run_address(url)) is not None:
        return read_trained(address, warn, values=values)
    if is_export(url):
        return read_export(url, values=values)
    if not storage.exists(url):
        raise ModelError(f"{url}: does not exist")
    raise ModelError(f"{url}: neither the folder of a run (no job.yaml) nor an exported model (no model.json)")
