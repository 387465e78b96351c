"""The templates of the work pools: sound schemas, no loose ends, and what each worker makes of them."""

import asyncio
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from prefect.utilities.templating import apply_values, find_placeholders
from prefect.workers.base import BaseJobConfiguration
from prefect.workers.process import ProcessJobConfiguration

FOLDER = Path(__file__).resolve().parents[2] / "infra" / "work-pools"
PACKAGES = {"process": "prefect", "docker": "prefect-docker", "kubernetes": "prefect-kubernetes"}
# what our templates add to those that Prefect ships, with the version of the integration that has it
ADDED = {"process": set[str](), "docker": {"container_create_kwargs"}, "kubernetes": set[str]()}
QUIET = {"DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "RAY_USAGE_STATS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"}
KINDS = pytest.mark.parametrize("kind", PACKAGES)


def template(kind: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{kind}.json").read_text("utf-8"))


def shipped(kind: str) -> dict[str, Any]:
    """Return Prefect's own template of a worker type, from the list that it ships."""
    listed = importlib.resources.files("prefect.server.api") / "collections_data" / "views"
    workers = json.loads((listed / "aggregate-worker-metadata.json").read_text("utf-8"))
    return workers[PACKAGES[kind]][kind]["default_base_job_configuration"]


def variables(kind: str) -> dict[str, Any]:
    return template(kind)["variables"]["properties"]


def defaults(kind: str) -> dict[str, Any]:
    return {name: item["default"] for name, item in variables(kind).items() if "default" in item}


def resolved(kind: str, **values: Any) -> dict[str, Any]:
    """Return the job configuration as a worker fills it in, before it adds what belongs to one run."""
    return apply_values(template(kind)["job_configuration"], {**defaults(kind), **values})


def job(kind: str, configuration: type[BaseJobConfiguration], **values: Any) -> Any:
    """Return what a worker makes of the template: its own code, without a server."""
    return asyncio.run(configuration.from_template_and_values(template(kind), values, client=object()))


@KINDS
def test_the_variables_are_a_schema_that_holds_for_its_own_defaults(kind):
    schema = template(kind)["variables"]
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(defaults(kind), schema)


@KINDS
def test_every_variable_tells_what_it_is(kind):
    assert all(item["title"] and item["description"].endswith(".") for item in variables(kind).values())


@KINDS
def test_every_placeholder_is_a_variable_and_every_variable_has_a_use(kind):
    used = {placeholder.name for placeholder in find_placeholders(template(kind)["job_configuration"])}
    # a worker puts `env` over the variables of the template itself, where they are written out
    assert used | {"env"} == set(variables(kind))


@KINDS
def test_a_template_configures_what_the_worker_of_its_type_knows(kind):
    known = set(shipped(kind)["job_configuration"])
    assert set(template(kind)["job_configuration"]) <= known | ADDED[kind]


@KINDS
def test_with_the_defaults_nothing_is_left_open(kind):
    text = json.dumps(resolved(kind))
    assert "{{" not in text
    assert not re.search(r'": ?(null|"")', text)


@KINDS
def test_a_run_reports_to_nobody(kind):
    assert set(resolved(kind)["env"]) >= QUIET


def test_a_process_run_has_the_workers_variables_where_none_is_given():
    made = job("process", ProcessJobConfiguration)
    assert {"CLUSTERUCB_HOME", "MLFLOW_TRACKING_URI", "CUDA_VISIBLE_DEVICES"}.isdisjoint(made.env)


def test_a_process_run_gets_the_given_variables_and_those_of_the_deployment():
    given = {"storage_root": "/state", "visible_devices": "0,1", "threads": 4, "env": {"MORE": "x"}}
    made = job("process", ProcessJobConfiguration, **given)
    expected = {
        "CLUSTERUCB_HOME": "/state",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "OMP_NUM_THREADS": "4",
        "MORE": "x",
    }
    assert expected.items() <= made.env.items()


def test_a_deployments_variable_holds_over_that_of_the_template():
    assert job("process", ProcessJobConfiguration, env={"DO_NOT_TRACK": "0"}).env["DO_NOT_TRACK"] == "0"


def test_a_container_gets_all_gpus_and_the_volumes():
    made = resolved("docker", storage_root="/state")
    assert made["container_create_kwargs"]["device_requests"] == [{"Count": -1, "Capabilities": [["gpu"]]}]
    assert made["volumes"] == ["clusterucb-state:/state", "clusterucb-data:/data:ro"]


def test_dockers_client_takes_the_gpu_request():
    docker = pytest.importorskip("docker", reason="docker-py is not installed")
    request = resolved("docker")["container_create_kwargs"]["device_requests"]
    config = docker.types.HostConfig(version="1.44", device_requests=request, shm_size="8g", nano_cpus=4)
    assert config["DeviceRequests"] == [
        {"Driver": "", "Count": -1, "DeviceIDs": [], "Capabilities": [["gpu"]], "Options": {}}
    ]


def test_the_docker_worker_takes_the_template():
    worker = pytest.importorskip("prefect_docker.worker", reason="prefect-docker is not installed")
    made = job("docker", worker.DockerWorkerJobConfiguration, mem_limit="64g", env={"MORE": "x"})
    assert made.container_create_kwargs["shm_size"] == "8g"
    assert made.env["MORE"] == "x"
    assert made.env["HF_HOME"] == "/var/lib/clusterucb/huggingface"


def manifest(**values: Any) -> dict[str, Any]:
    return resolved("kubernetes", name="run", **values)["job_manifest"]


def test_a_kubernetes_job_has_the_fields_that_kubernetes_asks_for():
    made = manifest()
    pod = made["spec"]["template"]["spec"]
    assert (made["apiVersion"], made["kind"], pod["restartPolicy"]) == ("batch/v1", "Job", "Never")
    assert made["metadata"]["generateName"] == "run-"
    assert all({"name", "image"} <= set(container) for container in pod["containers"])


def test_a_kubernetes_job_mounts_only_volumes_that_it_has():
    pod = manifest()["spec"]["template"]["spec"]
    mounted = {mount["name"] for container in pod["containers"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


@pytest.mark.parametrize("gpus", [0, 1, 8])
def test_a_kubernetes_job_is_limited_to_its_gpus(gpus):
    container = manifest(gpus=gpus)["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"] == {"memory": "64Gi", "nvidia.com/gpu": gpus}


def test_a_kubernetes_job_runs_as_the_user_of_the_image_without_privileges():
    pod = manifest()["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsUser"] == 10001
    assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]


def test_the_kubernetes_worker_takes_the_template():
    worker = pytest.importorskip("prefect_kubernetes.worker", reason="prefect-kubernetes is not installed")
    made = job("kubernetes", worker.KubernetesWorkerJobConfiguration, name="run", env={"MORE": "x"})
    made._populate_env_in_manifest()
    container = made.job_manifest["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "MORE", "value": "x"} in container["env"]
    assert {"name": "CLUSTERUCB_HOME", "value": "/var/lib/clusterucb"} in container["env"]
