"""Imported once in the fork server, so that every rank starts with the slow imports done."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import data.loading.loader  # noqa: F401
import orchestrator.training.loop  # noqa: F401
from orchestrator.engine.lean_imports import import_deepspeed

import_deepspeed()
