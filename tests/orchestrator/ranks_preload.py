"""Imported once in the fork server, so that every rank starts with the slow imports done."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
