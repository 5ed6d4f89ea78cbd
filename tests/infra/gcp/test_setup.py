"""infra/gcp/setup.sh and teardown.sh: what they create and remove, which rights they grant, and who has access."""

import os
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.providers import _get_node_provider_cls
from ray.autoscaler._private.util import prepare_config, validate_config

from tests.infra import commands
from tests.paths import ROOT

GCP = ROOT / "infra" / "gcp"
PLACE = ["my-project", "us-central1", "us-central1-a", "my-bucket"]
IAP = "35.235.240.0/20"  # https://cloud.google.com/iap/docs/using-tcp-forwarding


class Gcloud:
    """A stand-in for Google: a `gcloud` that records every change, for scripts in a copy of the project."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir()
        (folder / "calls").touch()
        shutil.copytree(GCP, folder / "infra" / "gcp")
        script = folder / "bin" / "gcloud"
        script.parent.mkdir()
        # It can describe what was created, and read the token back.
        script.write_text(f"""#!/usr/bin/env bash
set -eu
cd {folder}
IFS=$'\\x1f'
line="${{*:3}}"  # without --project and --quiet
case "$line" in
  *versions$IFS*access*) cat secret ;;
  *versions$IFS*describe*) test -e secret ;;
  *$IFS*describe*)
    name=${{line#*describe$IFS}} && name=${{name%%[@$IFS]*}}
    grep --quiet --fixed-strings "${{line%%describe*}}create$IFS$name$IFS" calls
    ;;
  *data-file=-*) cat >secret ;;
  *) echo "$line$IFS" >>calls ;;
esac
""")
        script.chmod(0o755)

    def run(self, script: str, *words: str) -> list[list[str]]:
        """Runs a script of infra/gcp; returns the changes that it requested."""
        before = len(self.calls())
        path = os.pathsep.join([str(self.folder / "bin"), os.environ["PATH"]])
        command = ["bash", str(self.folder / "infra" / "gcp" / script), *words]
        environment = {"HOME": str(self.home), "PATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.calls()[before:]

    def calls(self) -> list[list[str]]:
        """All changes so far."""
        return [line.split("\x1f")[:-1] for line in (self.folder / "calls").read_text().splitlines()]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> tuple[Gcloud, list[list[str]], list[list[str]]]:
    """Google after setup.sh ran twice, and the calls of the first and of the second run."""
    gcloud = Gcloud(tmp_path_factory.mktemp("gcloud"))
    return gcloud, gcloud.run("setup.sh", *PLACE), gcloud.run("setup.sh", *PLACE)


def test_setup_creates_everything_once(cloud: tuple[Gcloud, list[list[str]], list[list[str]]]) -> None:
    gcloud, first, second = cloud
    created = [call for call in first if "create" in call]
    assert len(created) == 13
    assert not [call for call in second if "create" in call]
    token = gcloud.home / ".ray" / "auth_token"
    assert re.fullmatch(r"[0-9a-f]{64}", token.read_text())
    for secret in (token, gcloud.home / ".ssh" / "vit-ray"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_setup_writes_a_cluster_file_that_ray_accepts(cloud: tuple[Gcloud, list[list[str]], list[list[str]]]) -> None:
    gcloud = cloud[0]
    config = prepare_config(yaml.safe_load((gcloud.folder / "runs" / "gcp.yaml").read_text()))
    validate_config(config)
    _get_node_provider_cls(config["provider"]).bootstrap_config(config)
    key = (gcloud.home / ".ssh" / "vit-ray.pub").read_text().strip()
    items = config["available_node_types"]["l4"]["node_config"]["metadata"]["items"]
    assert {"key": "ssh-keys", "value": f"ray:{key}"} in items


def test_rights_are_minimal(cloud: tuple[Gcloud, list[list[str]], list[list[str]]]) -> None:
    granted = set()
    for call in cloud[1]:
        if "add-iam-policy-binding" in call:
            options = dict(word.split("=", 1) for word in call if word.startswith("--") and "=" in word)
            account = options["--member"].removeprefix("serviceAccount:").partition("@")[0]
            scope = call[call.index("add-iam-policy-binding") + 1].partition("@")[0]
            granted.add((account, options["--role"].rpartition("/")[2], scope))
    shared = {
        (account, role, scope)
        for account in ("vit-head", "vit-worker")
        for role, scope in (
            ("logging.logWriter", "my-project"),
            ("storage.objectUser", "gs://my-bucket"),
            ("artifactregistry.reader", "vit"),
            ("secretmanager.secretAccessor", "vit-ray-token"),
        )
    }
    assert granted == shared | {
        ("vit-head", "vitRayHead", "my-project"),
        ("vit-head", "iam.serviceAccountUser", "vit-worker"),
    }
    permissions = next(word for call in cloud[1] for word in call if word.startswith("--permissions="))
    kinds = {word.rpartition(".")[0] for word in permissions.partition("=")[2].split(",")}
    assert kinds == {f"compute.{kind}" for kind in ("disks", "instances", "subnetworks", "zoneOperations")}


def test_only_the_identity_aware_proxy_has_access(cloud: tuple[Gcloud, list[list[str]], list[list[str]]]) -> None:
    rules = [call for call in cloud[1] if "firewall-rules" in call]
    sources = [word for rule in rules for word in rule if word.startswith(("--source-ranges", "--source-tags"))]
    assert sorted(sources) == [f"--source-ranges={IAP}", "--source-tags=vit-ray"]
    assert len(rules) == 2
    bucket = next(call for call in cloud[1] if call[:3] == ["storage", "buckets", "create"])
    assert {"--public-access-prevention", "--uniform-bucket-level-access"} <= set(bucket)


def test_teardown_keeps_the_bucket_and_the_disk(cloud: tuple[Gcloud, list[list[str]], list[list[str]]]) -> None:
    gcloud, made, _ = cloud
    removed = gcloud.run("teardown.sh", *PLACE)

    def things(calls: list[list[str]], verb: str) -> set[tuple[str, str]]:
        found = set()
        for call in calls:
            if verb in call:
                at = call.index(verb)
                names = [word.partition("@")[0] for word in call[at + 1 :] if not word.startswith("--")]
                found |= {(call[at - 1], name) for name in names}
        return found

    kept = things(made, "create") - things(removed, "delete")
    # Google deletes the address translation together with its router.
    assert kept == {("buckets", "gs://my-bucket"), ("disks", "vit-mlflow"), ("nats", "vit")}
    assert things(removed, "delete") <= things(made, "create")


@pytest.mark.parametrize("script", ["setup.sh", "teardown.sh"])
def test_scripts_pass_the_linter_and_print_their_usage(script: str) -> None:
    path = GCP / script
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()
    done = subprocess.run([commands.tool("shellcheck"), path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout
    asked = subprocess.run(["bash", path], capture_output=True, text=True, timeout=60)
    assert asked.returncode == 2
    assert "usage: " in asked.stderr
