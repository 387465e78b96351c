"""The service as a data team lives with it: the form in a browser, a schedule, an event, a quiet night.

Takes some minutes: everything runs on a local stack, and runs are executed by its worker.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from local_stack import ROOT, LocalStack, running_stack

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

pytestmark = pytest.mark.slow
RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
# as root Chromium has no sandbox of its own, and it is to reach nothing but the stack
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking")
PROPERTY = (
    "xpath=.//div[contains(@class, 'schema-form-property') and contains(@class, 'p-label')]"
    "[./div[contains(@class, 'p-label__header')]"
    "//span[contains(@class, 'schema-form-property__label')][normalize-space()='{title}']]"
)


@pytest.fixture(scope="module")
def stack():
    with running_stack() as made:
        yield made


@pytest.fixture(scope="module")
def demo():
    """The demo, where a worker finds it; its pool has one file that later ingests change."""
    folder = Path(os.environ.get("TMPDIR", "/tmp")) / f"clusterucb-demo-{os.getpid()}"
    write_demo(folder, recipe=RECIPE)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def page():
    """A page of a headless Chromium; skipped where there is none."""
    from playwright.sync_api import sync_playwright

    if CHROMIUM is None:
        pytest.skip("needs Chromium (apt-get install chromium)")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        opened = browser.new_page(viewport={"width": 1400, "height": 1000})
        opened.set_default_timeout(60_000)
        yield opened
        browser.close()


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """Where screenshots go: a folder of the test, or the one that `CLUSTERUCB_SCREENSHOTS` names."""
    named = os.environ.get("CLUSTERUCB_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def named(scope: Any, title: str) -> Any:
    """Return the field of a form that has a title."""
    return scope.locator(PROPERTY.format(title=title)).first


def write(scope: Any, title: str, text: str) -> None:
    named(scope, title).locator("textarea, input").first.fill(text)


def switch(scope: Any, title: str, kind: str) -> None:
    """Give an optional field a value of a kind."""
    named(scope, title).get_by_role("button", name=kind, exact=True).first.click()


def fill_form(form: Any, demo: Path) -> None:
    pool, model = named(form, "Pool"), named(form, "Model")
    named(pool, "Sources").get_by_role("button", name="Add item").click()
    write(named(pool, "Sources"), "Path", f"{demo}/pool/*")
    switch(pool, "Most samples (Optional)", "int")
    write(pool, "Most samples (Optional)", "300")
    write(model, "Base model", f"{demo}/model")
    write(model, "Longest sample (Optional)", "256")
    switch(form, "Target (Optional)", "TargetSettings")
    target = named(form, "Target (Optional)")
    write(target, "Name", "unit_conversion")
    for title in ("Validation file (Optional)", "Test file (Optional)"):
        switch(target, title, "str")
        write(target, title, f"{demo}/target.jsonl")
    warmup = named(form, "Warmup (Optional)")
    write(warmup, "Steps (Optional)", "3")
    write(warmup, "Batch (Optional)", "16")
    write(named(form, "Fine-tuning (Optional)"), "Epochs (Optional)", "2")


def runs(stack: LocalStack, deployment: str) -> list[dict[str, Any]]:
    """Return the runs of a deployment, those that are only planned for later left out."""
    flow, name = deployment.split("/")
    wanted = {
        "deployments": {"name": {"any_": [name]}},
        "flows": {"name": {"any_": [flow]}},
        "sort": "EXPECTED_START_TIME_ASC",
    }
    found = stack.api("POST", "flow_runs/filter", wanted)
    return [run for run in found if run["state_type"] != "SCHEDULED" or run["state_name"] != "Scheduled"]


def wait(found: Any, *, seconds: float, what: str) -> Any:
    end = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < end, f"{what}: not within {seconds:.0f} s"
        time.sleep(1)
    return value


def completed(stack: LocalStack, run: dict[str, Any]) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        found = stack.api("GET", f"flow_runs/{run['id']}")
        return found if found["state_type"] in ENDED else None

    done = wait(ended, seconds=400, what=f"the end of run {run['name']}")
    assert done["state_type"] == "COMPLETED", done["state"]["message"]
    return done


def artifacts_of(stack: LocalStack, run: dict[str, Any]) -> dict[str, Any]:
    found = stack.api("POST", "artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [run["id"]]}}})
    return {artifact["key"]: artifact["data"] for artifact in found}


def keys_of_artifacts(stack: LocalStack, run: dict[str, Any]) -> set[str]:
    return set(artifacts_of(stack, run))


def command(stack: LocalStack, *words: str) -> dict[str, Any]:
    """Run the command line beside the stack, in the state folder of its worker."""
    done = subprocess.run(
        [sys.executable, "-m", "flows", *words, "--json"],
        cwd=ROOT, env=stack.environment(), capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def edit_pool(demo: Path) -> None:
    """Change the answer of so many rows that some of the samples that count are among them."""
    path = demo / "pool" / "arithmetic_stories.json"
    rows = json.loads(path.read_text())
    for row in rows[:150]:
        row["output"] = f"{row['output']} Indeed."
    path.write_text(json.dumps(rows))


@pytest.fixture(scope="module")
def from_the_form(stack, demo, page, shots):
    """A run that was filled in and submitted in the browser, and its page."""
    deployment = stack.api("GET", "deployments/name/clusterucb/pipeline")
    base = stack.environment()["PREFECT_API_URL"].removesuffix("/api")
    page.goto(f"{base}/deployments/deployment/{deployment['id']}/run", wait_until="domcontentloaded")
    page.get_by_text("Base model").first.wait_for()
    fill_form(page.locator("form").first, demo)
    page.screenshot(path=shots / "form.png")
    page.get_by_role("button", name="Submit").click()
    (run,) = wait(lambda: runs(stack, "clusterucb/pipeline"), seconds=60, what="the submitted run")
    done = completed(stack, run)
    page.goto(f"{base}/runs/flow-run/{run['id']}", wait_until="domcontentloaded")
    page.get_by_text("Artifacts", exact=True).last.click()
    return done


def test_the_form_starts_a_run_whose_artifacts_are_seen_in_the_browser(from_the_form, stack, page, shots):
    # the page lists the artifacts of the flow run itself; that of a task is on the page of the task
    for key in ("selection-result", "progress-features-adam", "report"):
        page.get_by_text(key).first.wait_for()
    page.screenshot(path=shots / "artifacts.png")
    assert {"selection-result", "progress-features-adam", "mlflow-run"} <= keys_of_artifacts(
        stack, from_the_form
    )
    versions = command(stack, "list")
    assert [item["period"] for item in versions] == [1, 2]
    assert {item["flow_run_id"] for item in versions} == {from_the_form["id"]}


def test_the_report_is_linked_from_the_run_and_opens_in_mlflow(from_the_form, stack, page, shots):
    told = artifacts_of(stack, from_the_form)["report"]
    (address,) = re.findall(r"\[report\.html\]\((\S+)\)", told)
    page.goto(address, wait_until="domcontentloaded")
    frame = page.frame_locator("iframe").first
    frame.get_by_role("heading", name="How good it is").wait_for()
    page.screenshot(path=shots / "report-in-mlflow.png")
    assert "The texts of samples are left out" in frame.locator("header").inner_text()


def test_a_wrong_value_is_refused_before_a_run_starts(from_the_form, stack):
    deployment = stack.api("GET", "deployments/name/clusterucb/pipeline")
    config = from_the_form["parameters"]["config"]
    parameters = {"config": {**config, "selection": {"budget_fraction": 3}}}
    before = len(runs(stack, "clusterucb/pipeline"))
    answer = httpx.post(
        f"{stack.environment()['PREFECT_API_URL']}/deployments/{deployment['id']}/create_flow_run",
        json={"parameters": parameters}, timeout=60,
    )  # fmt: skip
    assert answer.status_code == 409
    assert "3 is greater than the maximum of 1" in answer.text
    assert len(runs(stack, "clusterucb/pipeline")) == before


def test_an_ingest_that_changed_the_pool_starts_a_re_selection_and_one_that_did_not_starts_none(
    from_the_form, stack, demo, tmp_path
):
    deployment = "clusterucb-reselect/reselect-on-pool-change"
    config = tmp_path / "run.json"
    config.write_text(json.dumps(from_the_form["parameters"]["config"]))
    # the run of the form made the first pool version: what that started found nothing to do
    own = wait(lambda: runs(stack, deployment), seconds=120, what="the run of the first pool version")[0]
    assert keys_of_artifacts(stack, completed(stack, own)) == set()
    assert command(stack, "ingest", str(config))["created"] is False
    edit_pool(demo)
    ingested = command(stack, "ingest", str(config))
    assert ingested["created"] is True
    assert min(ingested["n_added"], ingested["n_removed"]) > 100
    (run,) = wait(
        lambda: [found for found in runs(stack, deployment) if found["id"] != own["id"]],
        seconds=120,
        what="the run of the event",
    )
    assert "selection-difference" in keys_of_artifacts(stack, completed(stack, run))
    versions = command(stack, "list")
    assert [item["period"] for item in versions] == [1, 2, 1, 2]
    assert {item["flow_run_id"] for item in versions[2:]} == {run["id"]}
    # an event of the ingest that changed nothing would have started a third run by now
    assert command(stack, "ingest", str(config))["created"] is False
    assert [found["id"] for found in runs(stack, deployment)] == [own["id"], run["id"]]


def test_a_schedule_fires_and_an_unchanged_pool_gives_no_version(from_the_form, stack):
    deployment = stack.api("GET", "deployments/name/clusterucb-reselect/reselect-nightly")
    assert [item["schedule"]["cron"] for item in deployment["schedules"]] == ["0 2 * * *"]
    every_minute = [{"active": True, "schedule": {"cron": "* * * * *", "timezone": "UTC"}}]
    added = stack.api("POST", f"deployments/{deployment['id']}/schedules", every_minute)
    before = command(stack, "list")
    try:
        found = wait(
            lambda: runs(stack, "clusterucb-reselect/reselect-nightly"), seconds=240, what="a scheduled run"
        )
        completed(stack, found[0])
    finally:
        address = f"{stack.environment()['PREFECT_API_URL']}/deployments/{deployment['id']}"
        httpx.delete(f"{address}/schedules/{added[0]['id']}", timeout=60).raise_for_status()
    assert found[0]["auto_scheduled"] is True
    assert command(stack, "list") == before


def test_maintenance_keeps_what_the_newest_runs_need_and_makes_a_backup(from_the_form, stack):
    deployment = stack.api("GET", "deployments/name/clusterucb-maintenance/maintenance")
    run = stack.api(
        "POST", f"deployments/{deployment['id']}/create_flow_run", {"parameters": {"grace_hours": 0}}
    )
    done = completed(stack, run)
    assert "maintenance" in keys_of_artifacts(stack, done)
    assert list((stack.home / "backups").glob("*.duckdb"))
    assert command(stack, "list")[-1]["selection_version"] >= 2
