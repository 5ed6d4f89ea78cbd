"""Imported once in the fork server, so that every rank starts with the slow imports done."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed.runtime.zero.muon.original_muon  # noqa: F401
import torch._inductor.compile_fx  # noqa: F401

import data.loading.loader  # noqa: F401
import orchestrator.training.loop  # noqa: F401
