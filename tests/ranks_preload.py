"""What ranks of tests import besides the training itself, once for all of them, in the fork server of ranks.

Each of these takes a process longer than a small checkpoint or a step of the small run.
"""

import gc
from importlib import import_module

for name in (
    "gcsfs",
    "infra.local.stores",
    "pytest",
    "s3fs",
    "tests.orchestrator.checkpoint.saving",
    "tests.orchestrator.small_run",
    "torch.fx.experimental.symbolic_shapes",
):
    import_module(name)

gc.freeze()  # DeepSpeed collects garbage when it starts, which would look through all of these
