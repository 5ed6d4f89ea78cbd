"""What the driver sends to the workers."""

import pickle
import subprocess
import sys

from orchestrator.kinds.work import Work
from tests.paths import ROOT


def test_it_is_sent_by_reference() -> None:
    sent = pickle.dumps(Work("orchestrator.training.classify.Classify"))
    assert pickle.loads(sent) == Work("orchestrator.training.classify.Classify")
    assert b"orchestrator.kinds.work" in sent
    assert len(sent) < 200, "names, and no code"


def test_the_driver_names_it_without_torch() -> None:
    script = "import sys, orchestrator.kinds.one_run; print(sorted({'torch', 'deepspeed', 'ray'} & sys.modules.keys()))"
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
