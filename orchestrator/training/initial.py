"""A run's first weights: `model.init_from`, loaded once.

Rank 0 reads them and sends them to the others, before DeepSpeed shards the network: so every ZeRO stage begins with the
same weights, and a bucket is read once.
"""

import torch
import torch.distributed as dist

from model import VisionTransformer
from orchestrator.checkpoint.initial import Initial, InitialError, load_initial
from orchestrator.checkpoint.manifest import Manifest, survey
from orchestrator.checkpoint.notes import Owner
from orchestrator.checkpoint.outage import StoreRetry
from orchestrator.job.kinds import NetworkJob
from orchestrator.redact import redact_text
from orchestrator.run.folder import read_initial, write_initial


def begin_with(
    job: NetworkJob, network: VisionTransformer, run_url: str, owner: Owner, device: torch.device
) -> list[str]:
    """Load the weights of `model.init_from` into a new network, unless the run has a checkpoint. Collective.

    Args:
        job: with absolute URLs.
        network: new, and equal on all ranks.
        run_url: the run's folder, where a note of the weights is left.
        owner: the run.
        device: of this rank.

    Returns:
        Lines for the terminal; none if nothing was loaded.

    Raises:
        InitialError: on all ranks; there are no such weights, or they do not fit.
        Exception: the store's error, on rank 0.
    """
    if job.model.init_from is None:
        return []
    outcome: list[list[str] | InitialError] = [[]]
    if dist.get_rank() == 0:
        try:
            outcome = [_load(job, network, run_url, owner)]
        except InitialError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome)
    (lines,) = outcome
    if isinstance(lines, InitialError):
        raise lines
    if lines:
        _send(network, device)
    return lines


def _load(job: NetworkJob, network: VisionTransformer, run_url: str, owner: Owner) -> list[str]:
    lines: list[str] = []
    retry = StoreRetry(run_url, lines.append)
    if retry(lambda: has_own_checkpoint(run_url, owner)):
        return []
    url = redact_text(str(job.model.init_from))
    initial: Initial = retry(lambda: load_initial(network, job.model, lines.append))
    loaded, not_loaded = initial.placed.lines()
    known = read_initial(run_url)
    if known and known["sha256"] != initial.sha256:
        lines.append(f"{url} has changed since the run began; it begins again with what is there now")
    record = {"url": url, "sha256": initial.sha256, "loaded": loaded, "not_loaded": not_loaded}
    retry(lambda: write_initial(run_url, record))
    return [*lines, f"{url}: {loaded}", f"{url}: {not_loaded}"]


def has_own_checkpoint(run_url: str, owner: Owner) -> bool:
    """Whether a start would continue from a checkpoint of the run, or would stop because none is intact."""
    return any(isinstance(found, Manifest) or not found.foreign for found in survey(run_url, owner))


@torch.no_grad()
def _send(network: VisionTransformer, device: torch.device) -> None:
    for parameter in network.parameters():
        value = parameter.to(device)
        dist.broadcast(value, src=0)
        parameter.copy_(value)
