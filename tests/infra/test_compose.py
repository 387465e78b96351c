"""What the container files promise: loopback only, no password in them, pinned images, files that exist."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.server.security_utils import is_allowed_host_header

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
COMPOSE = yaml.safe_load((INFRA / "compose.yaml").read_text("utf-8"))
CUDA = yaml.safe_load((INFRA / "compose.cuda.yaml").read_text("utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OF_THE_PROJECT = {"prefect", "mlflow", "worker"}
DOCKERFILES = ("Dockerfile", "Dockerfile.cuda")
PINNED = re.compile(r"^[a-z/]+:\d+\.\d+(\.\d+)?-[a-z]+(-[a-z]+)?$")
REQUIRED = re.compile(r"\$\{\w*PASSWORD:\?[^}]+\}")
EVERY_SERVICE = pytest.mark.parametrize("name", SERVICES)
EVERY_DOCKERFILE = pytest.mark.parametrize("dockerfile", DOCKERFILES)


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    text = (INFRA / dockerfile).read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split()[0], line.partition(" ")[2]) for line in lines]


def test_the_services_are_the_database_two_servers_and_a_worker():
    assert set(SERVICES) == {"postgres", *OF_THE_PROJECT}


@EVERY_SERVICE
def test_a_published_port_is_one_of_loopback(name):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))


@EVERY_SERVICE
def test_a_password_has_to_be_given(name):
    for variable, value in SERVICES[name]["environment"].items():
        if "PASSWORD" in variable or "postgresql" in value:
            assert REQUIRED.search(value), f"{variable} has a password or a default for one in the file"


@EVERY_SERVICE
def test_each_server_has_a_health_check_and_who_needs_it_waits(name):
    assert ("healthcheck" in SERVICES[name]) == (name != "worker")
    needed = SERVICES[name].get("depends_on", {})
    assert all(needed[other] == {"condition": "service_healthy"} for other in needed)


@EVERY_SERVICE
def test_images_are_pinned_or_built_from_the_project(name):
    service = SERVICES[name]
    assert "build" in service if name in OF_THE_PROJECT else PINNED.match(service["image"])


@EVERY_SERVICE
def test_every_mounted_volume_or_file_exists(name):
    for volume in SERVICES[name].get("volumes", []):
        source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
        assert (INFRA / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]


def test_the_worker_serves_the_pool_of_the_deployments():
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    pools = {deployment["work_pool"]["name"] for deployment in deployments}
    script, pool = SERVICES["worker"]["command"]
    assert pools == {pool}
    assert (ROOT / script).stat().st_mode & 0o111


@pytest.mark.parametrize("host", ["mlflow:5000", "127.0.0.1:5000", "localhost:8080"])
def test_mlflow_answers_to_the_names_that_it_is_called_by(host):
    allowed = SERVICES["mlflow"]["environment"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert is_allowed_host_header(allowed, host)
    assert not is_allowed_host_header(allowed, "example.org")


def test_each_server_gets_its_own_database_and_no_other_password():
    for name, other in (("prefect", "MLFLOW"), ("mlflow", "PREFECT")):
        text = str(SERVICES[name]["environment"])
        assert f"postgres:5432/{name}" in text
        assert f"{other}_PASSWORD" not in text
        assert "POSTGRES_PASSWORD" not in text


def test_the_gpu_file_changes_the_worker_only_and_reserves_devices():
    devices = CUDA["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert set(CUDA["services"]) == {"worker"}
    assert devices == [{"driver": "nvidia", "count": "all", "capabilities": ["gpu"]}]
    assert (ROOT / CUDA["services"]["worker"]["build"]["dockerfile"]).exists()


@EVERY_DOCKERFILE
def test_an_image_is_built_on_a_pinned_one_and_runs_as_another_user_than_root(dockerfile):
    found = dict(instructions(dockerfile))
    assert PINNED.match(found["FROM"])
    assert found["USER"] == "10001:10001"


@EVERY_DOCKERFILE
def test_what_an_image_copies_exists_and_the_build_may_see_it(dockerfile):
    seen = {
        line[1:]
        for line in (INFRA / f"{dockerfile}.dockerignore").read_text("utf-8").splitlines()
        if line.startswith("!")
    }
    copied = {
        source for word, rest in instructions(dockerfile) if word == "COPY" for source in rest.split()[:-1]
    }
    assert copied == seen
    assert all((ROOT / source).exists() for source in copied)


def test_the_cpu_image_installs_the_lock_with_torch_without_cuda():
    runs = " && ".join(rest for word, rest in instructions("Dockerfile") if word == "RUN")
    assert "--index-url https://download.pytorch.org/whl/cpu" in runs
    assert "-r requirements.lock" in runs


def test_the_cuda_image_installs_the_ranges_of_the_project_with_ray():
    words = [shlex.split(rest) for word, rest in instructions("Dockerfile.cuda") if word == "RUN"][-1]
    assert ".[ray]" in words
    assert "requirements.lock" not in words
