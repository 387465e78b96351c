"""Runs that get a secret wherever one can come from leave no trace of any, whether they succeed or fail.

Looked through: every file that a run, its Prefect server and MLflow write, unpacked, and what the command
prints.
"""

import base64
import subprocess
import sys
from urllib.parse import quote

import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = (
    "pool.max_samples=200", "warmup.epochs=1", "finetune.epochs=1", "evaluate.baselines=[zero_shot]",
    "execution.shard_samples=1000", "selection.audit_fraction=0",
)  # fmt: skip
# No word of these stands anywhere else, not even by chance.
NOWHERE = "127.0.0.1:9"
SECRETS = {
    "MLFLOW_TRACKING_USERNAME": "marked-mlflow-user-q7x",
    "MLFLOW_TRACKING_PASSWORD": "marked-mlflow-password-q7x",
    "MLFLOW_TRACKING_TOKEN": "marked-mlflow-token-q7x",
    "PREFECT_API_KEY": "marked-prefect-key-q7x",
    "HF_TOKEN": "marked-hub-token-q7x",
    "AWS_ACCESS_KEY_ID": "marked-aws-id-q7x",
    "AWS_SECRET_ACCESS_KEY": "marked-aws-secret-q7x",
    "AZURE_STORAGE_CONNECTION_STRING": "marked-azure-q7x",
    "WANDB_API_KEY": "marked-wandb-q7x",
    "OPENAI_API_KEY": "marked-openai-q7x",
    "PGPASSWORD": "marked-postgres-q7x",
    "RAY_AUTH_TOKEN": "marked-ray-token-q7x",
    "DATA_PASSWORD": "marked-data-password-q7x",
}
SERVER_PASSWORD = "marked-server-password-q7x"
LOGIN = f"admin:{SERVER_PASSWORD}"
ADDRESS_PASSWORD = "marked-address/password@q7x"
QUERY = "password=marked-query-q7x"

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(services, tmp_path_factory):
    """A Prefect server that wants a password; what it keeps is looked through as well."""
    folder = tmp_path_factory.mktemp("server")
    with services.prefect_server(folder, PREFECT_SERVER_API_AUTH_STRING=LOGIN) as running:
        yield running


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE).config


@pytest.fixture(scope="module")
def run(services, server, config):
    """Run a command in a state folder with every secret set, and give what it printed."""

    def started(home, *flags, settings=SMALL, **variables):
        home.mkdir(exist_ok=True)
        overrides = [part for setting in settings for part in ("--set", setting)]
        line = [sys.executable, "-m", "flows", "run", str(config), *overrides, *flags, "--verbose"]
        here = {"CLUSTERUCB_HOME": str(home), "PREFECT_API_URL": server.api, "PREFECT_API_AUTH_STRING": LOGIN}
        environment = services.clean_environment(**{**SECRETS, **here, **variables})
        return subprocess.run(
            line, env=environment, cwd=home, capture_output=True, text=True, timeout=400, check=False
        )

    return started


@pytest.fixture(scope="module")
def traces(find_text, server):
    """Find secrets in files and in what a command printed, in any form that a program gives them."""

    def found(done, *folders):
        texts = [form for secret in every_secret() for form in forms_of(secret)]
        printed = [text for text in texts if text in done.stdout + done.stderr]
        return find_text(texts, *folders, server.home), printed

    return found


def every_secret():
    return [*SECRETS.values(), SERVER_PASSWORD, ADDRESS_PASSWORD, QUERY]


def forms_of(secret: str) -> list[str]:
    encoded = [base64.b64encode(text.encode()).decode().rstrip("=") for text in (secret, f"admin:{secret}")]
    return [secret, quote(secret, safe=""), *encoded]


def address(scheme: str, host: str) -> str:
    return f"{scheme}://me:{quote(ADDRESS_PASSWORD, safe='')}@{host}"


def settled(done, *, code: int, message: str = "") -> None:
    """Require that a command ended as it should have, so that nothing is looked for in vain."""
    assert done.returncode == code, done.stderr[-3000:]
    assert message in " ".join(done.stderr.split())


def test_a_run_on_a_server_that_wants_a_password_leaves_no_trace(run, server, traces, tmp_path):
    done = run(tmp_path / "home")
    settled(done, code=0)
    assert (server.home / "server.db").stat().st_size > 100_000
    assert (tmp_path / "home" / "mlflow.db").is_file()
    assert traces(done, tmp_path) == ({}, [])


def test_a_secret_that_is_there_is_found(find_text, tmp_path):
    for number, form in enumerate(forms_of(ADDRESS_PASSWORD)):
        (tmp_path / str(number)).write_text(f"Basic {form}==", encoding="utf-8")
    assert len(find_text(forms_of(ADDRESS_PASSWORD), tmp_path)) == len(forms_of(ADDRESS_PASSWORD)) == 4


def test_a_run_whose_tracking_is_down_keeps_no_secret_for_later(run, traces, tmp_path):
    done = run(tmp_path / "home", MLFLOW_TRACKING_URI=f"{address('http', NOWHERE)}/mlflow")
    settled(done, code=0, message="MLflow at http://***@127.0.0.1:9/mlflow did not take this run")
    assert list((tmp_path / "home" / "tracking-buffer").iterdir())
    assert traces(done, tmp_path) == ({}, [])


FAILURES = {
    "tracking": (
        {"MLFLOW_TRACKING_URI": f"{address('http', NOWHERE)}/mlflow"},
        ["execution.when_tracking_is_down=fail"],
        1,
        "MLflow at http://***@127.0.0.1:9/mlflow did not take this run",
    ),
    "a database": (
        {"MLFLOW_TRACKING_URI": address("postgresql", f"{NOWHERE}/mlflow?{QUERY}")},
        ["execution.when_tracking_is_down=fail"],
        1,
        "MLflow at postgresql://***@127.0.0.1:9/mlflow?*** did not take this run",
    ),
    "the orchestrator": (
        {"PREFECT_API_URL": f"{address('http', NOWHERE)}/api"},
        [],
        2,
        "the Prefect server at http://***@127.0.0.1:9/api does not answer ([Errno 111] Connection refused)",
    ),
    "the hub": (
        {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": f"http://{NOWHERE}"},
        ["model.base=owner/no-such-model"],
        2,
        "the hub gave no such model",
    ),
    "a bucket": (
        {"AWS_ENDPOINT_URL": f"http://{NOWHERE}", "AWS_MAX_ATTEMPTS": "1"},
        ["execution.storage_root=s3://bucket/folder"],
        2,
        "execution.storage_root=s3://bucket/folder: ",
    ),
}


@pytest.mark.parametrize("what", FAILURES)
def test_a_run_that_fails_for_want_of_a_service_leaves_no_trace(run, traces, tmp_path, what):
    variables, settings, code, message = FAILURES[what]
    done = run(tmp_path / "home", "--debug", settings=(*SMALL, *settings), **variables)
    settled(done, code=code, message=message)
    assert "Traceback" in done.stderr
    assert traces(done, tmp_path) == ({}, [])


@pytest.mark.parametrize(
    "setting", [f"execution.storage_root={address('s3', 'bucket')}", "target.validation=${DATA_PASSWORD}"]
)
def test_a_configuration_with_a_secret_is_refused_and_not_repeated(run, traces, tmp_path, setting):
    done = run(tmp_path / "home", settings=(setting,))
    settled(done, code=2, message="secret" if "$" in setting else "holds a user, a password")
    assert traces(done, tmp_path) == ({}, [])
