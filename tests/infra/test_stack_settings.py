"""What the local stack reads before it starts: ports, variables, prefect.yaml, passwords, programs."""

import json
import stat
from pathlib import Path

import pytest
from stack import postgres
from stack.commands import down, up
from stack.errors import StackError
from stack.layout import DEFAULT_PORTS, Stack, clean_environment, port, state_folder
from stack.passwords import password, password_file
from stack.pools import TEMPLATE, declared_pools
from stack.postgres import database_url, find_programs
from stack.services import known_services

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = """
deployments:
  - {name: nightly, work_pool: {name: large}}
  - {name: manual, work_pool: {name: small}}
  - {name: weekly, work_pool: {name: large}}
"""


@pytest.fixture
def stack(tmp_path):
    return Stack(checkout=tmp_path, home=tmp_path / "home", ports=DEFAULT_PORTS)


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1", "8²"])
def test_what_is_no_port_is_bad_usage(text, capsys):
    with pytest.raises(SystemExit, match="2"):
        up([f"--mlflow-port={text}"])
    assert f"{text!r} is no port for mlflow; give a number from 1 to 65535" in capsys.readouterr().err


def test_two_services_cannot_share_a_port(capsys):
    with pytest.raises(SystemExit, match="2"):
        up(["--mlflow-port=4200", "--prefect-port=4200"])
    assert "a port of its own" in capsys.readouterr().err


def test_a_port_is_the_given_one_then_that_of_the_variable_then_the_usual(monkeypatch):
    assert port("mlflow") == 5000
    monkeypatch.setenv("CLUSTERUCB_MLFLOW_PORT", "5001")
    assert (port("mlflow"), port("mlflow", given="5002")) == (5001, 5002)


def test_the_state_folder_is_that_of_the_checkout_unless_it_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("CLUSTERUCB_HOME", raising=False)
    assert state_folder() == ROOT / ".clusterucb"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CLUSTERUCB_HOME", "state")
    assert state_folder() == tmp_path / "state"


def test_services_get_none_of_the_users_settings_and_report_to_nobody(monkeypatch):
    for name in ("PREFECT_API_KEY", "MLFLOW_TRACKING_TOKEN", "PGPASSWORD", "CLUSTERUCB_HOME"):
        monkeypatch.setenv(name, "mine")
    made = clean_environment(PREFECT_API_URL="http://127.0.0.1:4200/api")
    assert "mine" not in made.values()
    assert made["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"
    assert (made["DO_NOT_TRACK"], made["PREFECT_SERVER_ANALYTICS_ENABLED"]) == ("1", "false")


def test_the_pools_are_those_of_prefect_yaml_each_once(stack):
    (stack.checkout / "prefect.yaml").write_text(DEPLOYMENTS)
    assert declared_pools(stack) == ["large", "small"]


@pytest.mark.parametrize(
    "text", ["", "deployments:", "deployments: [{name: a}]", "deployments: {", "deployments: [1]"]
)
def test_a_prefect_yaml_without_pools_is_an_error(stack, text):
    (stack.checkout / "prefect.yaml").write_text(text)
    with pytest.raises(StackError, match=r"prefect\.yaml cannot be used .*give `deployments`"):
        declared_pools(stack)


def test_a_missing_prefect_yaml_is_an_error(stack):
    with pytest.raises(StackError, match=r"there is no .*prefect\.yaml"):
        declared_pools(stack)


def test_the_template_of_a_new_pool_is_in_the_checkout():
    assert {"job_configuration", "variables"} == set(json.loads((ROOT / TEMPLATE).read_text("utf-8")))


def test_a_password_is_made_once_and_only_its_owner_can_read_it(stack):
    first = password(stack, "prefect")
    path = password_file(stack, "prefect")
    assert password(stack, "prefect") == first
    assert (len(first), stat.S_IMODE(path.stat().st_mode)) == (64, 0o600)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert password(stack, "mlflow") != first


def test_a_damaged_password_file_is_an_error_that_names_it(stack):
    password_file(stack, "prefect").write_text("secret")
    with pytest.raises(StackError, match=r"passwords/prefect does not hold one line"):
        password(stack, "prefect")


def test_no_address_of_a_database_has_a_password(stack):
    assert (
        database_url(stack, "mlflow", driver="psycopg2")
        == "postgresql+psycopg2://mlflow@127.0.0.1:5433/mlflow"
    )


def test_missing_programs_of_postgresql_are_an_error_that_says_where_they_were_sought(monkeypatch):
    monkeypatch.setattr(postgres, "_candidates", lambda: iter([Path("/nowhere")]))
    with pytest.raises(
        StackError, match="initdb and postgres of PostgreSQL were not found with pg_config, on PATH"
    ):
        find_programs(None)


def test_data_of_another_postgresql_are_an_error_that_names_the_version(monkeypatch, tmp_path):
    for name in postgres.PROGRAMS:
        (tmp_path / name).write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 17.5'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(postgres, "_candidates", lambda: iter([tmp_path]))
    assert find_programs("17") == tmp_path
    with pytest.raises(StackError, match=r"the data are of PostgreSQL 15, but only .* is installed"):
        find_programs("15")


def test_services_are_stopped_before_what_they_need(stack):
    stack.private("pids")
    for name in ("postgres", "prefect", "worker-b", "mlflow", "worker-a"):
        stack.pid_file(name).touch()
    assert known_services(stack) == ["worker-a", "worker-b", "mlflow", "prefect", "postgres"]


def test_stopping_where_nothing_was_ever_started_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CLUSTERUCB_HOME", str(tmp_path / "none"))
    assert down([]) == 0
    assert "there is no stack in" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()
