"""The manifests for KubeRay: rules of the operator and of Kubernetes, and ours."""

import json
import re
from typing import Any

import pytest

from jobs._parse import parse
from jobs._registry import JOBS
from tests.unit.cluster.files import (
    KUBERAY,
    PLACEHOLDER,
    README,
    RayPod,
    cluster_spec,
    constraint,
    documents,
    quantity,
    ray_pods,
    values_to_fill_in,
)

DOCUMENTS = documents(KUBERAY)
CLUSTERS = {name: each for name, each in DOCUMENTS.items() if each["kind"] in ("RayCluster", "RayJob")}
RAY_JOBS = {name: each for name, each in CLUSTERS.items() if each["kind"] == "RayJob"}
PODS = {f"{name} {pod.group}": pod for name, document in CLUSTERS.items() for pod in ray_pods(document)}
SUBMITTERS = {
    f"{name} submitter": document["spec"]["submitterPodTemplate"]["spec"]
    for name, document in RAY_JOBS.items()
}

API = {
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
    "ServiceAccount": "v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "PodMonitor": "monitoring.coreos.com/v1",
}
FIELDS = {
    "RayJob": (
        "entrypoint backoffLimit submitterConfig shutdownAfterJobFinishes ttlSecondsAfterFinished "
        "submitterPodTemplate rayClusterSpec"
    ),
    "cluster": (
        "rayVersion authOptions enableInTreeAutoscaling autoscalerOptions headGroupSpec workerGroupSpecs"
    ),
    "autoscaler": "version idleTimeoutSeconds imagePullPolicy securityContext resources",
    "group": "groupName replicas minReplicas maxReplicas rayStartParams template",
    "pod": (
        "restartPolicy terminationGracePeriodSeconds serviceAccountName automountServiceAccountToken "
        "securityContext tolerations affinity containers volumes"
    ),
    "container": (
        "name image imagePullPolicy securityContext env ports resources livenessProbe readinessProbe "
        "volumeMounts"
    ),
}
"""Fields of KubeRay 1.5.1 and of pods that are used here. The API server drops unknown ones in silence."""

SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD|CREDENTIAL")
SHELL = re.compile(r"[;&|<>$`*?'\"\\()]")
"""What a shell would take for its own: an entrypoint goes through two."""
DEFAULT_SUBMITTER_TRIES = 2
BYTES_OF_9B = 18.5e9
"""Weights of Gemma-2-9B in bf16."""


def unknown(fields: Any, kind: str) -> set[str]:
    return set(fields) - set(FIELDS[kind].split())


def every(name: str, where: Any) -> list[Any]:
    """All values of a key, at any depth."""
    if isinstance(where, list):
        return [found for item in where for found in every(name, item)]
    if not isinstance(where, dict):
        return []
    own = [where[name]] if name in where else []
    return own + [found for item in where.values() for found in every(name, item)]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_kind_and_version(name):
    document = DOCUMENTS[name]
    assert document["apiVersion"] == API[document["kind"]]
    assert re.fullmatch(r"[a-z][a-z0-9-]{0,39}", document["metadata"]["name"])
    assert document["metadata"]["labels"] == {"app.kubernetes.io/part-of": "wsdm-ray"}


def test_there_is_a_cluster_and_a_job_for_each_of_the_three():
    assert {document["metadata"]["name"] for document in CLUSTERS.values()} == {
        "wsdm-ray", "wsdm-ray-train", "wsdm-ray-score", "wsdm-ray-pseudolabel",
    }  # fmt: skip


@pytest.mark.parametrize("name", CLUSTERS)
def test_only_fields_that_the_operator_knows(name):
    document = CLUSTERS[name]
    spec = cluster_spec(document)
    if document["kind"] == "RayJob":
        assert not unknown(document["spec"], "RayJob")
    assert not unknown(spec, "cluster")
    assert not unknown(spec["autoscalerOptions"], "autoscaler")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert not unknown(group, "group")
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
    pods = [pod.spec for pod in ray_pods(document)]
    pods += [each for key, each in SUBMITTERS.items() if key.startswith(name)]
    for pod in pods:
        assert not unknown(pod, "pod")
        assert not unknown(pod["containers"][0], "container")


def test_clusters_differ_in_numbers_of_replicas_alone():
    def same(document: dict[str, Any]) -> str:
        spec = json.loads(json.dumps(cluster_spec(document)))
        for group in spec["workerGroupSpecs"]:
            del group["replicas"], group["minReplicas"], group["maxReplicas"]
        return json.dumps(spec)

    assert len({same(document) for document in CLUSTERS.values()}) == 1


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_cluster_asks_for_a_token_and_scales_by_version_2(name):
    spec = cluster_spec(CLUSTERS[name])
    assert spec["rayVersion"] == constraint("ray")
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["autoscalerOptions"]["version"] == "v2"
    assert [group["groupName"] for group in spec["workerGroupSpecs"]] == ["cpu", "gpu"]
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"] > 0
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize(
    "spec", [*(pod.spec for pod in PODS.values()), *SUBMITTERS.values()], ids=[*PODS, *SUBMITTERS]
)
def test_ray_does_not_start_without_a_token(spec):
    """By the environment also: an operator that does not know `authOptions` drops it."""
    assert {"name": "RAY_AUTH_MODE", "value": "token"} in spec["containers"][0]["env"]
    assert spec["restartPolicy"] == "Never", "autoscaler v2 takes no other"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_no_secret_is_in_the_open(name):
    assert DOCUMENTS[name]["kind"] != "Secret"
    variables = [entry for entries in every("env", DOCUMENTS[name]) for entry in entries]
    for variable in variables:
        if SECRET.search(variable["name"]):
            assert set(variable) == {"name", "valueFrom"}
            assert set(variable["valueFrom"]) == {"secretKeyRef"}
            assert variable["valueFrom"]["secretKeyRef"]["optional"] is True
    assert not variables or [v for v in variables if SECRET.search(v["name"])], "the pattern finds some"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_nothing_is_pinned_to_a_node_or_an_address(name):
    text = json.dumps(DOCUMENTS[name])
    assert not re.search(r"node:|nodeName|kubernetes\.io/hostname", text)
    assert not re.search(r"\b\d+\.\d+\.\d+\.\d+\b", text)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_requests_are_within_limits(name):
    found = every("resources", DOCUMENTS[name])
    assert bool(found) == (name in CLUSTERS)
    for resources in found:
        assert {"cpu", "memory"} <= resources["requests"].keys() == resources["limits"].keys()
        for kind, request in resources["requests"].items():
            assert 0 < quantity(request) <= quantity(resources["limits"][kind]), kind


def volume(pod: RayPod, path: str) -> dict[str, Any]:
    (mount,) = (mount for mount in pod.container["volumeMounts"] if mount["mountPath"] == path)
    (found,) = (each for each in pod.spec["volumes"] if each["name"] == mount["name"])
    return found["emptyDir"]


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_shared_memory_holds_the_object_store_and_memory_holds_both(pod):
    shared, limits = volume(pod, "/dev/shm"), pod.container["resources"]["limits"]
    assert shared["medium"] == "Memory"
    assert int(pod.start["object-store-memory"]) < 0.95 * quantity(shared["sizeLimit"])
    assert quantity(shared["sizeLimit"]) < quantity(limits["memory"]) / 2
    # A folder in it is the cache of models: of the pod's user alone, which the volume itself is not.
    assert quantity(volume(pod, "/home/ray/.cache")["sizeLimit"]) < quantity(limits["ephemeral-storage"])


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_gpu_worker_holds_a_replica_of_9b(name):
    (gpu,) = (pod for pod in ray_pods(CLUSTERS[name]) if pod.group == "gpu")
    requests = gpu.container["resources"]["requests"]
    assert requests["nvidia.com/gpu"] == "1"
    free = quantity(requests["memory"]) - quantity(volume(gpu, "/dev/shm")["sizeLimit"])
    assert free > 2 * BYTES_OF_9B
    assert quantity(volume(gpu, "/home/ray/.cache")["sizeLimit"]) > 2 * BYTES_OF_9B


@pytest.mark.parametrize("name", CLUSTERS)
def test_the_head_is_on_demand_and_gpu_workers_may_be_spot(name):
    pods = {pod.group: pod.spec for pod in ray_pods(CLUSTERS[name])}
    head, gpu = (pods[group]["affinity"]["nodeAffinity"] for group in ("head", "gpu"))
    (term,) = head["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    avoided = {(each["key"], *each["values"]) for each in term["matchExpressions"]}
    assert {each["operator"] for each in term["matchExpressions"]} == {"NotIn"}
    preferred = every("matchExpressions", gpu["preferredDuringSchedulingIgnoredDuringExecution"])
    assert {(each["key"], *each["values"]) for (each,) in preferred} == avoided
    assert len(avoided) == 3
    assert "tolerations" not in pods["head"]
    tolerated = {each["key"]: each["effect"] for each in pods["gpu"]["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} < tolerated.keys()
    assert set(tolerated.values()) == {"NoSchedule"}


@pytest.mark.parametrize("pod", PODS.values(), ids=PODS)
def test_probes_ask_ray_itself(pod):
    for probe in (pod.container["livenessProbe"], pod.container["readinessProbe"]):
        assert probe["httpGet"] == {"path": "/api/healthz", "port": 52365}
    assert (
        pod.container["livenessProbe"]["failureThreshold"]
        > pod.container["readinessProbe"]["failureThreshold"]
    )


@pytest.mark.parametrize(
    "spec", [*(pod.spec for pod in PODS.values()), *SUBMITTERS.values()], ids=[*PODS, *SUBMITTERS]
)
def test_no_pod_runs_as_root(spec):
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 1000
    context = spec["containers"][0]["securityContext"]
    assert context == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def test_buckets_need_no_keys():
    accounts = [each for each in DOCUMENTS.values() if each["kind"] == "ServiceAccount"]
    assert [list(each["metadata"]["annotations"]) for each in accounts] == [
        ["eks.amazonaws.com/role-arn"],
        ["iam.gke.io/gcp-service-account"],
    ]
    assert {each["metadata"]["name"] for each in accounts} == {"wsdm-ray"}
    for pod in PODS.values():
        assert pod.spec["serviceAccountName"] == "wsdm-ray"
        # The head's autoscaler asks Kubernetes for pods; nothing else does.
        assert pod.spec.get("automountServiceAccountToken", True) is (pod.group == "head")


def policies() -> dict[str, dict[str, Any]]:
    found = (each for each in DOCUMENTS.values() if each["kind"] == "NetworkPolicy")
    return {each["metadata"]["name"]: each["spec"] for each in found}


def test_the_dashboard_and_the_gcs_are_closed():
    spec = policies()["wsdm-ray"]
    assert spec["policyTypes"] == ["Ingress"]
    own = spec["podSelector"]
    assert all(pod.labels == own["matchLabels"] for pod in PODS.values())
    itself, control, monitoring = spec["ingress"]
    assert itself == {"from": [{"podSelector": own}]}
    assert [port["port"] for port in control["ports"]] == [8265]
    submitter, operator = control["from"]
    assert operator.keys() == {"namespaceSelector", "podSelector"}
    for document in RAY_JOBS.values():
        labels = document["spec"]["submitterPodTemplate"]["metadata"]["labels"]
        assert labels == submitter["podSelector"]["matchLabels"]
    ports = next(iter(PODS.values())).container["ports"]
    measured = {port["containerPort"] for port in ports if port["name"].endswith("metrics")}
    assert {port["port"] for port in monitoring["ports"]} == measured == {8080, 44217, 44227}
    assert list(monitoring["from"][0]) == ["namespaceSelector"]


def test_nobody_reaches_the_submitter():
    spec = policies()["wsdm-ray-submitter"]
    assert (spec["policyTypes"], spec["ingress"]) == (["Ingress"], [])
    for document in RAY_JOBS.values():
        assert (
            document["spec"]["submitterPodTemplate"]["metadata"]["labels"]
            == spec["podSelector"]["matchLabels"]
        )


def test_prometheus_finds_the_ports_by_their_names():
    (monitor,) = (each["spec"] for each in DOCUMENTS.values() if each["kind"] == "PodMonitor")
    wanted = {endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]}
    for pod in PODS.values():
        assert pod.labels == monitor["selector"]["matchLabels"]
        named = {port["name"]: port["containerPort"] for port in pod.container["ports"]}
        assert named["metrics"] == 8080
        assert pod.group != "head" or wanted <= named.keys()
    scraped = {"prometheus.io/scrape": "true", "prometheus.io/port": "8080"}
    for annotations in every("annotations", [cluster_spec(each) for each in CLUSTERS.values()]):
        assert scraped.items() <= annotations.items()


def test_nodes_are_not_emptied_under_a_job():
    for annotations in every("annotations", [cluster_spec(each) for each in CLUSTERS.values()]):
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert annotations["karpenter.sh/do-not-disrupt"] == "true"


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_gpu_worker_has_time_for_a_checkpoint(name):
    pods = {pod.group: pod for pod in ray_pods(CLUSTERS[name])}
    variables = {each["name"]: each.get("value") for each in pods["gpu"].container["env"]}
    seconds = int(variables.pop("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"))
    assert 60 < seconds < pods["gpu"].spec["terminationGracePeriodSeconds"]
    assert variables == {each["name"]: each.get("value") for each in pods["head"].container["env"]}


@pytest.mark.parametrize("name", RAY_JOBS)
def test_a_job_goes_on_by_itself_and_cleans_up(name):
    spec = RAY_JOBS[name]["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["submitterConfig"]["backoffLimit"] > DEFAULT_SUBMITTER_TRIES
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["ttlSecondsAfterFinished"] > 0


@pytest.mark.parametrize("name", RAY_JOBS)
def test_the_job_takes_the_options_that_it_is_given(name, capsys):
    document = RAY_JOBS[name]
    entrypoint = document["spec"]["entrypoint"]
    assert not SHELL.search(entrypoint)
    python, flag, module, *arguments = PLACEHOLDER.sub("s3://bucket/prefix", entrypoint).split()
    job = document["metadata"]["name"].removeprefix("wsdm-ray-")
    assert (python, flag, module) == ("python", "-m", f"jobs.{job}")
    config = parse(JOBS[job].config_type(), arguments)
    assert capsys.readouterr().err == ""  # a line for each old name
    assert not config.restart, "the same command goes on"
    assert all(path.startswith("s3://") for path in re.findall(r"\S*/\S*", " ".join(arguments)))
    gpus = cluster_spec(document)["workerGroupSpecs"][1]["replicas"]
    assert gpus == config.num_workers if job == "train" else gpus >= 1


def test_every_value_to_fill_in_is_listed_with_its_folder():
    table = re.findall(r"^\| `(FILL_IN_\w+)` \|.+\| (.+?) \|$", README.read_text("utf-8"), re.MULTILINE)
    listed = {name: set(re.findall(r"`(\w+)/`", folders)) for name, folders in table}
    used: dict[str, set[str]] = {}
    for path in README.parent.rglob("*"):
        if path.is_file() and path != README:
            for name in values_to_fill_in(path):
                used.setdefault(name, set()).add(path.parent.name)
    used["FILL_IN_IMAGE"] -= {"image"}  # where it is made
    assert listed == used
