"""What ranks of tests import besides the training itself, once for all of them, in the fork server of ranks.

Each of these takes a process longer than a small checkpoint or a step of the small run.
"""

import gc

import gcsfs  # noqa: F401
import pytest  # noqa: F401
import s3fs  # noqa: F401
import torch.fx.experimental.symbolic_shapes

import infra.local.stores
import tests.orchestrator.checkpoint.saving
import tests.orchestrator.small_run  # noqa: F401

gc.freeze()  # DeepSpeed collects garbage when it starts, which would look through all of these
