"""What the Ray manifests promise: GPUs for workers, one image and one state folder for all, no open door."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "infra" / "ray"
POSSIBLE = [path.name for path in sorted(FOLDER.glob("*.yaml"))]


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text("utf-8")))


def cluster() -> dict[str, Any]:
    return documents("cluster.yaml")[0]["spec"]


def pods() -> list[dict[str, Any]]:
    groups = [cluster()["headGroupSpec"], *cluster()["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


@pytest.mark.parametrize("name", POSSIBLE)
def test_every_document_has_what_kubernetes_asks_for(name):
    for document in documents(name):
        assert {"apiVersion", "kind", "metadata"} <= set(document)
        assert {"name", "generateName"} & set(document["metadata"])
        inside = document["metadata"].get("namespace", document["metadata"].get("name"))
        assert inside == "clusterucb"


def test_the_cluster_has_the_locked_version_of_ray():
    locked = re.search(r"^ray==(.+)$", (ROOT / "requirements.lock").read_text("utf-8"), re.MULTILINE)
    assert locked is not None
    assert cluster()["rayVersion"] == locked[1]


def test_workers_have_gpus_and_the_head_takes_no_tasks():
    head, *workers = pods()
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert cluster()["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert all(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1 for pod in workers)


def test_all_pods_run_one_image_as_its_user_and_share_the_state_folder():
    assert {pod["containers"][0]["image"] for pod in pods()} == {"clusterucb:cuda"}
    assert {pod["securityContext"]["runAsUser"] for pod in pods()} == {10001}
    for pod in pods():
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
        environment = {item["name"]: item["value"] for item in pod["containers"][0]["env"]}
        assert mounts["state"] == environment["CLUSTERUCB_HOME"]
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}


def test_the_claims_that_pods_name_are_made_and_can_be_shared():
    made = {
        item["metadata"]["name"]: item["spec"]["accessModes"]
        for item in documents("storage.yaml")
        if item["kind"] == "PersistentVolumeClaim"
    }
    named = {
        volume["persistentVolumeClaim"]["claimName"]
        for pod in pods()
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert named == set(made)
    assert made["clusterucb-state"] == ["ReadWriteMany"]


def test_rays_ports_are_closed_to_other_namespaces():
    name = documents("cluster.yaml")[0]["metadata"]["name"]
    policy = documents("cluster.yaml")[1]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"ray.io/cluster": name}
    inside, operator = policy["ingress"][0]["from"]
    assert inside == {"podSelector": {}}
    assert operator["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "kuberay-operator"}


def test_a_job_runs_on_the_cluster_with_ray_as_executor():
    (job,) = documents("job.yaml")
    name = documents("cluster.yaml")[0]["metadata"]["name"]
    assert job["spec"]["clusterSelector"] == {"ray.io/cluster": name}
    assert job["spec"]["entrypoint"].startswith("clusterucb run ")
    assert "execution.ray_address=auto" in job["spec"]["entrypoint"]
