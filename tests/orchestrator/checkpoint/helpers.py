"""The contents of a checkpoint, read without the code that restores it."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from orchestrator.checkpoint.manifest import complete_checkpoints


def weights(run: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    """The tensors of the checkpoint at a step (None: the newest), assembled from the fragments in its manifest."""
    manifest = next(m for m in complete_checkpoints(str(run)) if step in (None, m.step))
    files = {name: load_file(run / manifest.name / name) for name in manifest.files}
    whole: dict[str, torch.Tensor] = {}
    for state, name, start, numel, file in manifest.fragments:
        target = whole.setdefault(f"{state}/{name}", torch.full((manifest.parameters[name],), torch.nan))
        assert torch.isnan(target[start : start + numel]).all(), "an element is in two fragments"
        target[start : start + numel] = files[file][f"{state}/{name}@{start}"]
    assert not any(torch.isnan(tensor).any() for tensor in whole.values()), "an element is in no fragment"
    return whole
