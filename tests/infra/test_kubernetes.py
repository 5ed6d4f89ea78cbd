"""infra/kubernetes: against the published schemas, as Ray reads the cluster, and which pods may reach each other."""

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import ray
import yaml
from mlflow.server.security_utils import is_allowed_host_header
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr

from infra import preemption
from orchestrator import load_job
from tests.infra import commands
from tests.infra.demand import started
from tests.infra.machines import MACHINES
from tests.paths import ROOT

FOLDER = ROOT / "infra" / "kubernetes"
SCHEMAS = Path(__file__).parent / "schemas"  # KubeRay's published v1 definitions as JSON Schema, without descriptions
KUBERNETES = "1.32"

FILES = {path.name: list(yaml.safe_load_all(path.read_text())) for path in sorted(FOLDER.glob("*.yaml"))}
KUSTOMIZATION = FILES.pop("kustomization.yaml")[0]
THINGS = [thing for things in FILES.values() for thing in things]


def named(kind: str, name: str) -> dict[str, Any]:
    """The one resource of that kind and name."""
    (found,) = [thing for thing in THINGS if thing["kind"] == kind and thing["metadata"].get("name") == name]
    return found


CLUSTER = named("RayCluster", "vit")
(JOB,) = FILES["rayjob.yaml"]
GROUPS = {group["groupName"]: group for group in CLUSTER["spec"]["workerGroupSpecs"]}
PODS = {
    "head": CLUSTER["spec"]["headGroupSpec"]["template"],
    **{name: group["template"] for name, group in GROUPS.items()},
    "mlflow": named("Deployment", "mlflow")["spec"]["template"],
    "mlflow-postgres": named("StatefulSet", "mlflow-postgres")["spec"]["template"],
}


def closed(schema: Any) -> Any:
    """The schema without additional fields, which Kubernetes would drop silently."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: closed(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "x-kubernetes-preserve-unknown-fields" not in schema:
        result.setdefault("additionalProperties", False)
    return result


def test_every_field_is_in_kuberays_schema() -> None:
    for thing, name in ((CLUSTER, "raycluster"), (JOB, "rayjob")):
        schema = closed(json.loads((SCHEMAS / f"kuberay-{name}-v1.json").read_text()))
        jsonschema.Draft7Validator(schema).validate(thing)
        wrong = {**thing, "spec": {**thing["spec"], "autoscaling": True}}
        assert not jsonschema.Draft7Validator(schema).is_valid(wrong)


@pytest.mark.parametrize("thing", [t for t in THINGS if "ray.io" not in t["apiVersion"]], ids=lambda t: t["kind"])
def test_every_field_is_in_kubernetes_schema(thing: dict[str, Any]) -> None:
    kubernetes_validate.validate(thing, KUBERNETES, strict=True)


def test_kustomization_applies_everything_but_the_job() -> None:
    assert set(KUSTOMIZATION["resources"]) == set(FILES) - {"rayjob.yaml"}
    ours = {container["image"] for pod in PODS.values() for container in pod["spec"]["containers"]} - {"postgres:17.6"}
    assert ours == {image["name"] for image in KUSTOMIZATION["images"]} == {"vit"}


@pytest.mark.skipif(not shutil.which("kubectl"), reason="kubectl is not installed")
def test_kubectl_renders_it_with_the_image_everywhere() -> None:
    done = subprocess.run(["kubectl", "kustomize", FOLDER], capture_output=True, text=True, timeout=60, check=True)
    rendered = list(yaml.safe_load_all(done.stdout))
    assert len(rendered) == len(THINGS) - 1
    assert not re.search(r"image: vit\b", done.stdout)
    (cluster,) = [thing for thing in rendered if thing["kind"] == "RayCluster"]
    assert cluster["metadata"]["namespace"] == "vit"
    assert len(cluster["spec"]["workerGroupSpecs"]) == len(GROUPS)


def autoscaling_config() -> dict[str, Any]:
    """What Ray's autoscaler reads from the cluster, checked against its own schema."""
    return _derive_autoscaling_config_from_ray_cr(
        {**CLUSTER, "metadata": {**CLUSTER["metadata"], "namespace": KUSTOMIZATION["namespace"]}}
    )


def test_groups_fit_googles_machine_types() -> None:
    by_gpu = {machine.gke: machine for machine in MACHINES.values()}
    types = autoscaling_config()["available_node_types"]
    forms = set()
    for name, group in GROUPS.items():
        selector = group["template"]["spec"]["nodeSelector"]
        machine = by_gpu[selector["cloud.google.com/gke-accelerator"]]
        resources = types[name]["resources"]
        assert resources["GPU"] == machine.gpus
        assert resources[f"accelerator_type:{machine.gpu}"] == 1
        assert 0.75 * machine.cpus < resources["CPU"] < machine.cpus  # the rest is for the machine's own services
        assert 0.7 * machine.memory < resources["memory"] / 2**30 < machine.memory
        market = group["labels"]["ray.io/market-type"]
        tolerated = {toleration["key"] for toleration in group["template"]["spec"]["tolerations"]}
        spot = "cloud.google.com/gke-spot"
        assert (market == "spot") == (spot in selector) == (spot in tolerated)
        assert (market == "reserved") == ("cloud.google.com/reservation-name" in selector)
        assert group["minReplicas"] == 0
        forms.add((machine.gpu, market))
    wanted = {(machine.gpu, "on-demand" if machine.on_demand else "reserved") for machine in MACHINES.values()}
    assert forms == wanted | {(machine.gpu, "spot") for machine in MACHINES.values()}


def test_cluster_grows_with_the_job_and_shrinks_when_idle() -> None:
    config = autoscaling_config()
    assert CLUSTER["spec"]["enableInTreeAutoscaling"]
    assert 1 <= config["idle_timeout_minutes"] <= 15
    assert CLUSTER["spec"]["rayVersion"] == ray.__version__
    assert started(config, "pretrain_h14.yaml", ["cluster.workers=10"]) == {"l4-spot": 8, "l4": 2}
    config["available_node_types"]["h200-spot"]["max_workers"] = 8
    config["max_workers"] += 8
    named = 'cluster.resources_per_worker={CPU: 8, GPU: 1, "accelerator_type:H200": 0.001}'
    assert started(config, "pretrain_h14.yaml", [named]) == {"h200-spot": 8}


def test_submitted_job_is_valid_and_fits_the_cluster() -> None:
    assert JOB["spec"]["clusterSelector"] == {"ray.io/cluster": CLUSTER["metadata"]["name"]}
    words = shlex.split(JOB["spec"]["entrypoint"])
    assert words[:5] == ["python", "-m", "orchestrator", "run", "jobs/pretrain_h14.yaml"]
    assert set(words[5::2]) == {"--set"}
    job = load_job(ROOT / words[4], words[6::2])
    assert started(autoscaling_config(), "pretrain_h14.yaml", [f"cluster.workers={job.cluster.min_workers}"])
    service = named("Service", "mlflow")
    assert job.tracking.uri == f"http://{service['metadata']['name']}:{service['spec']['ports'][0]['port']}"


@pytest.mark.parametrize("name", PODS)
def test_pods_have_no_privileges(name: str) -> None:
    """The namespace's standard `restricted` refuses pods without these settings."""
    assert FILES["namespace.yaml"][0]["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    spec = PODS[name]["spec"]
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    assert spec["securityContext"]["runAsUser"] > 0
    assert not [volume for volume in spec.get("volumes", []) if "hostPath" in volume]
    contexts = [container["securityContext"] for container in spec["containers"]]
    for context in [*contexts, CLUSTER["spec"]["autoscalerOptions"]["securityContext"]]:
        assert context["allowPrivilegeEscalation"] is False
        assert context["runAsNonRoot"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in spec["containers"]:
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "memory" in container["resources"]["limits"]


def test_tokens_are_on_and_no_file_holds_a_secret() -> None:
    assert CLUSTER["spec"]["authOptions"] == {"mode": "token"}
    assert not [thing for thing in THINGS if thing["kind"] == "Secret"]
    for pod in PODS.values():
        for container in pod["spec"]["containers"]:
            for variable in container.get("env", []):
                secret = re.search("PASSWORD|TOKEN|SECRET|KEY", variable["name"])
                assert bool(secret) == ("secretKeyRef" in variable.get("valueFrom", {})), variable


def test_no_service_is_public() -> None:
    services = [thing for thing in THINGS if thing["kind"] == "Service"]
    assert {service["spec"].get("type", "ClusterIP") for service in services} == {"ClusterIP"}
    assert CLUSTER["spec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert not [thing for thing in THINGS if thing["kind"] in ("Ingress", "Gateway", "HTTPRoute")]


def test_workers_are_drained_before_they_are_stopped() -> None:
    for group in GROUPS.values():
        spec = group["template"]["spec"]
        (container,) = spec["containers"]
        command = container["lifecycle"]["preStop"]["exec"]["command"]
        assert command[:4] == ["python", "-m", preemption.__name__, "drain"]
        assert int(command[command.index("--grace") + 1]) < spec["terminationGracePeriodSeconds"]


def test_server_answers_to_its_name_only() -> None:
    (container,) = PODS["mlflow"]["spec"]["containers"]
    commands.parse(container["command"])
    (hosts,) = [word.partition("=")[2] for word in container["command"] if word.startswith("--allowed-hosts")]
    head = CLUSTER["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    (uri,) = [variable["value"] for variable in head["env"] if variable["name"] == "MLFLOW_TRACKING_URI"]
    allowed = hosts.split(",")
    for host in (uri.removeprefix("http://"), "localhost:5000"):  # localhost through `kubectl port-forward`
        assert is_allowed_host_header(allowed, host)
    assert not is_allowed_host_header(allowed, "evil.example:5000")


HEAD = {"ray.io/cluster": "vit", "ray.io/node-type": "head"}
WORKER = {"ray.io/cluster": "vit", "ray.io/node-type": "worker"}
MLFLOW = PODS["mlflow"]["metadata"]["labels"]
POSTGRES = PODS["mlflow-postgres"]["metadata"]["labels"]
STRANGER = {"app": "stranger"}


def matches(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    return selector is not None and selector.get("matchLabels", {}).items() <= labels.items()


def allowed(direction: str, pod: dict[str, str], peer: dict[str, str], namespace: str, port: int) -> bool:
    """Whether the network policies let `pod` of our namespace send to (Egress) or receive from (Ingress) a peer pod."""
    side, word = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[direction]
    policies = [thing["spec"] for thing in FILES["networkpolicy.yaml"]]
    applying = [spec for spec in policies if matches(spec["podSelector"], pod) and direction in spec["policyTypes"]]
    if not applying:
        return True
    for rule in (rule for spec in applying for rule in spec.get(side, [])):
        if "ports" in rule and port not in [entry["port"] for entry in rule["ports"]]:
            continue
        for entry in rule.get(word, [{"podSelector": {}, "namespaceSelector": {}}]):
            space = {"kubernetes.io/metadata.name": namespace}
            if "namespaceSelector" in entry:
                if matches(entry["namespaceSelector"], space) and matches(entry.get("podSelector", {}), peer):
                    return True
            elif namespace == "vit" and matches(entry.get("podSelector"), peer):
                return True
    return False


def reaches(source: dict[str, str], target: dict[str, str], port: int) -> bool:
    """Whether `source` reaches `target`, both in our namespace."""
    return allowed("Egress", source, target, "vit", port) and allowed("Ingress", target, source, "vit", port)


def test_pods_reach_only_what_they_need() -> None:
    for source in (HEAD, WORKER):
        for target in (HEAD, WORKER):
            assert reaches(source, target, 6379)
            assert reaches(source, target, 31234)  # Ray and NCCL choose ports
        assert reaches(source, MLFLOW, 5000)
        assert not reaches(source, MLFLOW, 22)
        assert not reaches(source, POSTGRES, 5432)
        assert not reaches(MLFLOW, source, 8265)
        assert not reaches(STRANGER, source, 8265)
        assert not reaches(STRANGER, source, 443)
        assert allowed("Egress", source, {}, "elsewhere", 443)  # the bucket
        assert not allowed("Egress", source, {}, "elsewhere", 25)
    assert reaches(MLFLOW, POSTGRES, 5432)
    assert not allowed("Ingress", POSTGRES, HEAD, "vit", 5432)
    assert not allowed("Ingress", MLFLOW, STRANGER, "vit", 5000)
    assert not allowed("Egress", MLFLOW, HEAD, "vit", 5432)
    assert not allowed("Ingress", STRANGER, HEAD, "vit", 80)  # without a rule, access is denied
    for target in (MLFLOW, POSTGRES):
        assert not reaches(STRANGER, target, 5000)
        assert not allowed("Egress", target, {}, "elsewhere", 443)
        assert not allowed("Ingress", target, HEAD, "elsewhere", 5000)
    assert allowed("Ingress", HEAD, {}, "kuberay-system", 8265)
    assert not allowed("Ingress", HEAD, {}, "elsewhere", 8265)
    assert not allowed("Ingress", WORKER, {}, "kuberay-system", 8265)
    for pod in (HEAD, WORKER, MLFLOW, STRANGER):
        assert allowed("Egress", pod, {}, "kube-system", 53)
