"""The manifest's module is light enough for commands that list checkpoints."""

import subprocess
import sys


def test_checkpoints_are_listed_without_torch() -> None:
    script = """
import sys, tempfile
from orchestrator.checkpoint.manifest import complete_checkpoints
list(complete_checkpoints(tempfile.mkdtemp()))
sys.exit("torch" in sys.modules or "ray" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
