"""infra/gcp/cluster.yaml: how Ray reads it, which machines it would start, and which requests Google would get."""

import json
import os
import re
from functools import cache
from pathlib import Path
from typing import Any

import googleapiclient.discovery_cache
import httplib2
import jsonschema
import pytest
import yaml
from ray.autoscaler._private.providers import _get_node_provider_cls
from ray.autoscaler._private.util import prepare_config, validate_config

from infra import mlflow_server, preemption
from tests.infra import commands
from tests.infra.demand import started
from tests.infra.machines import MACHINES
from tests.paths import ROOT

GCP = ROOT / "infra" / "gcp"
TEXT = (GCP / "cluster.yaml").read_text()
TYPES = [name for name in yaml.safe_load(TEXT)["available_node_types"] if name != "head"]


@pytest.fixture
def config() -> dict[str, Any]:
    """The cluster file with all values filled in, completed by Ray."""
    filled = TEXT
    for name, value in {"PROJECT": "my-project", "REGION": "us-central1", "ZONE": "us-central1-a"}.items():
        filled = filled.replace(f"YOUR-{name}", value)
    filled = filled.replace("YOUR-SSH-PUBLIC-KEY", "ssh-ed25519 AAAA ray").replace("YOUR-RESERVATION", "mine")
    return prepare_config(yaml.safe_load(filled))


def test_ray_accepts_the_file_and_changes_nothing(config: dict[str, Any]) -> None:
    validate_config(config)
    assert _get_node_provider_cls(config["provider"]).bootstrap_config(config) == config
    assert config["provider"]["use_internal_ips"]
    assert config["max_workers"] <= 16
    assert config["idle_timeout_minutes"] <= 15


def test_placeholders_are_named_in_the_error() -> None:
    raw = prepare_config(yaml.safe_load(TEXT))
    bootstrap = _get_node_provider_cls(raw["provider"]).bootstrap_config
    with pytest.raises(ValueError, match=r"replace YOUR-PROJECT, .*YOUR-ZONE in the cluster file") as error:
        bootstrap(raw)
    assert "YOUR-RESERVATION" not in str(error.value)  # only types that are switched off use it
    raw["available_node_types"]["b200_reserved"]["max_workers"] = 1
    with pytest.raises(ValueError, match="YOUR-RESERVATION"):
        bootstrap(raw)


@pytest.mark.parametrize("name", TYPES)
def test_worker_types_match_googles_machine_types(name: str, config: dict[str, Any]) -> None:
    node = config["available_node_types"][name]
    machine = MACHINES[node["node_config"]["machineType"]]
    assert node["resources"] == {"CPU": machine.cpus, "GPU": machine.gpus, f"accelerator_type:{machine.gpu}": 1}
    assert node["min_workers"] == 0
    disk = node["node_config"]["disks"][0]["initializeParams"]["diskType"].rpartition("/")[2]
    assert disk == ("hyperdisk-balanced" if machine.hyperdisk else "pd-balanced")
    scheduling = node["node_config"]["scheduling"]
    assert scheduling["onHostMaintenance"] == "TERMINATE"  # machines with GPUs cannot be moved
    assert not scheduling["automaticRestart"]
    market = {"SPOT": "spot", "STANDARD": "on-demand", "RESERVATION_BOUND": "reserved"}[scheduling["provisioningModel"]]
    assert node["labels"] == {"ray.io/market-type": market}
    assert market != "on-demand" or machine.on_demand
    assert (market == "on-demand") == ("instanceTerminationAction" not in scheduling)
    assert (market == "reserved") == ("reservationAffinity" in node["node_config"])


def test_every_machine_is_offered_as_spot_and_on_demand_or_reserved() -> None:
    nodes = yaml.safe_load(TEXT)["available_node_types"]
    forms = {(nodes[name]["node_config"]["machineType"], nodes[name]["labels"]["ray.io/market-type"]) for name in TYPES}
    wanted = {(name, "on-demand" if machine.on_demand else "reserved") for name, machine in MACHINES.items()}
    assert forms == wanted | {(name, "spot") for name in MACHINES}


@pytest.mark.parametrize("name", ["head", *TYPES])
def test_request_for_a_machine_fits_the_schema_of_the_api(
    name: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's provider and Google's client are real; only the connection is replaced."""
    requests: list[tuple[str, str, dict[str, Any]]] = []

    def answer(self: Any, uri: str, method: str = "GET", body: str | None = None, **more: Any) -> tuple[Any, bytes]:
        requests.append((method, uri.partition("?")[0], json.loads(body) if body else {}))
        return httplib2.Response({"status": 200}), json.dumps({"name": "operation-1", "status": "DONE"}).encode()

    monkeypatch.setattr(httplib2.Http, "request", answer)
    settings = {**config["provider"], "gcp_credentials": {"type": "credentials_token", "credentials": "none"}}
    provider = _get_node_provider_cls(settings)(settings, config["cluster_name"])
    tags = {"ray-node-name": "ray-vit-worker", "ray-node-type": "worker", "ray-user-node-type": name}
    provider.create_node(config["available_node_types"][name]["node_config"], tags, 1)

    zone = "https://compute.googleapis.com/compute/v1/projects/my-project/zones/us-central1-a"
    assert [(method, uri) for method, uri, _ in requests] == [
        ("POST", f"{zone}/instances"),
        ("GET", f"{zone}/operations/operation-1"),
    ]
    body = requests[0][2]
    jsonschema.Draft7Validator(compute_schema("Instance")).validate(body)
    assert all("accessConfigs" not in interface for interface in body["networkInterfaces"])  # no public address
    assert body["tags"] == {"items": ["vit-ray"]}
    account = "vit-head" if name == "head" else "vit-worker"
    assert [entry["email"] for entry in body["serviceAccounts"]] == [f"{account}@my-project.iam.gserviceaccount.com"]


@cache
def compute_schema(name: str) -> dict[str, Any]:
    """A type of the Compute Engine API as JSON Schema without additional fields, from Google's own client."""
    folder = Path(googleapiclient.discovery_cache.__file__).parent / "documents"
    schemas = json.loads((folder / "compute.v1.json").read_text())["schemas"]

    def converted(node: Any) -> Any:
        if isinstance(node, list):
            return [converted(entry) for entry in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return {"$ref": f"#/definitions/{node['$ref']}"}
        kept = {
            key: converted(value) for key, value in node.items() if key in ("enum", "items", "additionalProperties")
        }
        if node.get("format") in ("int64", "uint64"):
            return {"type": ["string", "integer"]}
        if "properties" in node:
            properties = {key: converted(value) for key, value in node["properties"].items()}
            return {"type": "object", "properties": properties, "additionalProperties": False}
        return {**kept, **({"type": node["type"]} if node.get("type") != "any" and "type" in node else {})}

    return {"$ref": f"#/definitions/{name}", "definitions": {key: converted(value) for key, value in schemas.items()}}


def test_schema_of_the_api_refuses_unknown_fields_and_values() -> None:
    validator = jsonschema.Draft7Validator(compute_schema("Instance"))
    for wrong in ({"scheduling": {"provisioningModel": "CHEAP"}}, {"machinetype": "g2"}, {"disks": [{"size": 1}]}):
        assert not validator.is_valid(wrong)


def test_as_shipped_a_job_gets_l4s_up_to_the_limit(config: dict[str, Any]) -> None:
    assert started(config, "pretrain_h14.yaml", ["cluster.workers=8"]) == {"l4_spot": 8}
    assert started(config, "pretrain_h14.yaml", ["cluster.workers=10"]) == {"l4_spot": 8, "l4": 2}
    assert started(config, "pretrain_h14.yaml", ["cluster.workers=11"]) == {}


def test_job_gets_the_gpu_that_it_names_spot_first(config: dict[str, Any]) -> None:
    config["available_node_types"]["h100_spot"]["max_workers"] = 6
    config["available_node_types"]["h100"]["max_workers"] = 4
    named = 'cluster.resources_per_worker={CPU: 8, GPU: 1, "accelerator_type:H100": 0.001}'
    assert started(config, "pretrain_h14.yaml", [named]) == {"h100_spot": 6, "h100": 2}


def test_commands_on_the_nodes_parse(config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line runs in a shell in which stand-ins replace the programs that change something."""
    programs = ("blkid", "docker", "gcloud", "mkfs.ext4", "mountpoint", "ray", "setsid", "sudo")
    folder = commands.stand_ins(tmp_path / "bin", programs)
    (tmp_path / "disk").touch()
    lines = config["initialization_commands"] + config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    calls = []
    for line in lines:
        line = line.replace("/tmp/", f"{tmp_path}/").replace("/dev/disk/by-id/google-mlflow", f"{tmp_path}/disk")
        calls += commands.run_line(line, folder, RAY_HEAD_IP="10.10.0.2")
    ray = [call for call in calls if call[0] == "ray"]
    assert [call[1] for call in ray] == ["stop", "start", "stop", "start"]
    assert "--address=10.10.0.2:6379" in ray[-1]
    for call in ray:
        commands.parse(call)
    container = next(call for call in calls if call[:2] == ["docker", "run"])
    _, *words = container[container.index(config["docker"]["image"]) :]
    assert words[:3] == ["python", "-m", mlflow_server.__name__]
    monkeypatch.setattr(os, "execv", lambda program, command: commands.parse(command[2:]))
    mlflow_server.main(words[3:])
    watch = next(call for call in calls if call[0] == "setsid")
    assert watch[watch.index("-m") + 1 :] == [preemption.__name__, "watch", "--grace", "25"]


def test_ports_are_private_and_tokens_are_required(config: dict[str, Any]) -> None:
    assert "0.0.0.0" not in TEXT
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]
    assert "--env=RAY_AUTH_TOKEN_PATH=/run/vit/auth_token" in config["docker"]["run_options"]
    assert "RAY_AUTH_MODE=token" in (ROOT / "infra" / "Dockerfile").read_text()
    assert not re.search(r"(?i)(password|secret|token) *[:=] *[\"']?[a-z0-9+/]{16,}", TEXT)
