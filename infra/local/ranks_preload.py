"""The slow imports of a rank, done once in the fork server of `ranks.py`.

A file of its own, because a fork server takes names of modules to import: in `ranks.py`, the process that calls
`run_ranks` would import them as well.
"""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import data.loading.loader  # noqa: F401
import orchestrator.training.loop  # noqa: F401
from orchestrator.engine.lean_imports import import_deepspeed

import_deepspeed()
