"""The promises of the project files: pins that must hold, locks that fit the ranges, nothing private."""

import gzip
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from itertools import islice
from os import environ
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from flows.events import POOL_RESOURCE, POOL_UPDATED

ROOT = Path(__file__).resolve().parent.parent
GROUPS = ("4bit", "atheris", "bergson", "docs", "moto", "trl")
IN_BASE_LOCK = ("ray", "s3", "dev")
DATA_SUFFIXES = {
    ".arrow", ".csv", ".db", ".duckdb", ".gz", ".jsonl", ".npy", ".npz",
    ".parquet", ".safetensors", ".sqlite", ".tsv", ".zst",
}  # fmt: skip
MACHINE_PATH = re.compile(r"(?<![\w.}])/(?:work|home|root|Users)/[\w.]")
RUN_WORDS = 13
FIRST_ROWS, ALL_ROWS = 400, 100_000


@cache
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@cache
def pins(name: str) -> dict[str, Version]:
    """Return the pinned version of each package of a lock file; any line that is no exact pin is an error."""
    lines = (ROOT / name).read_text("utf-8").splitlines()
    required = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(item.specifier)) for item in required), name
    return {canonicalize_name(item.name): Version(str(item.specifier)[2:]) for item in required}


@cache
def project_files() -> list[Path]:
    """Return the files of the repository: tracked, or new and not ignored."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout to tell the project's files from what was built")
    listing = [git, "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [ROOT / name for name in names.split("\0") if name and (ROOT / name).is_file()]


def unmet(requirements: list[str], locked: dict[str, Version]) -> list[str]:
    """Return the requirements that a lock does not pin, or pins outside their range."""
    wanted = [Requirement(text) for text in requirements]
    found = [(item, locked.get(canonicalize_name(item.name))) for item in wanted]
    return [f"{item} (locked: {pin})" for item, pin in found if pin is None or pin not in item.specifier]


@pytest.mark.parametrize(
    "pin", ["prefect==3.8.8", "fastapi<0.151,>=0.139", "sqlalchemy[asyncio]<2.1,>=2.0.40"]
)
def test_the_limits_that_keep_the_prefect_server_alive_are_declared(pin: str) -> None:
    assert pin in {str(Requirement(text)) for text in project()["dependencies"]}


def test_the_lock_satisfies_every_declared_range() -> None:
    optional = project()["optional-dependencies"]
    declared = [*project()["dependencies"], *(text for name in IN_BASE_LOCK for text in optional[name])]
    assert unmet(declared, pins("requirements.lock")) == []


@pytest.mark.parametrize("group", GROUPS)
def test_the_lock_of_a_group_satisfies_its_ranges_and_repeats_no_base_pin(group: str) -> None:
    locked = pins(f"requirements-{group}.lock")
    assert unmet(project()["optional-dependencies"][group], locked) == []
    assert not locked.keys() & pins("requirements.lock").keys()


def test_every_optional_group_has_a_lock() -> None:
    assert set(project()["optional-dependencies"]) == {*GROUPS, *IN_BASE_LOCK}


def test_the_lock_pins_torch_without_a_build_and_holds_what_the_editable_install_needs() -> None:
    assert str(pins("requirements.lock")["torch"]) == "2.13.0"
    build = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["build-system"]["requires"]
    assert unmet(build, pins("requirements.lock")) == []


def test_every_deployment_names_a_flow_and_lets_one_run_in_at_a_time() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    for deployment in deployments:
        path, function = deployment["entrypoint"].split(":")
        assert re.search(rf"^def {function}\(", (ROOT / path).read_text("utf-8"), re.MULTILINE)
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        assert deployment["description"]


def test_the_deployments_are_started_by_hand_by_the_clock_or_by_the_event_of_a_new_pool() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    found = {item["name"]: [key for key in ("schedules", "triggers") if key in item] for item in deployments}
    assert found == {
        "pipeline": [],
        "reselect-nightly": ["schedules"],
        "reselect-on-pool-change": ["triggers"],
        "compare": [],
        "maintenance": ["schedules"],
    }
    (trigger,) = next(item["triggers"] for item in deployments if "triggers" in item)
    assert trigger["expect"] == [POOL_UPDATED]
    assert trigger["match"] == {"prefect.resource.id": POOL_RESOURCE}


def test_no_file_names_a_path_of_one_machine() -> None:
    texts = {path: path.read_text("utf-8") for path in project_files() if path.suffix != ".png"}
    hits = {str(path.relative_to(ROOT)): MACHINE_PATH.findall(text) for path, text in texts.items()}
    assert {name: found for name, found in hits.items() if found} == {}


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("in /" + "work/main", True),
        ("'/" + "home/me'", True),
        ("../" + "work/x", False),
        ("a.b/" + "home/x", False),
    ],
)
def test_a_path_of_one_machine_is_told_from_a_relative_one(text: str, is_one: bool) -> None:
    assert bool(MACHINE_PATH.search(text)) is is_one


def test_no_data_or_model_file_is_kept_in_the_project() -> None:
    assert [str(path) for path in project_files() if path.suffix in DATA_SUFFIXES] == []


@pytest.mark.parametrize("count", [FIRST_ROWS, pytest.param(ALL_ROWS, marks=pytest.mark.slow)])
def test_no_file_repeats_a_row_of_the_real_data(count: int) -> None:
    folder = environ.get("CLUSTERUCB_DATA")
    if not folder:
        pytest.skip("CLUSTERUCB_DATA is not set: no real data to compare with")
    ours = {
        run: path
        for path in project_files()
        if path.suffix != ".png"
        for run in runs(path.read_text("utf-8"))
    }
    rows = [row for path in sorted(Path(folder).glob("*/*.gz")) for row in first_rows(path, count)]
    assert len(rows) > FIRST_ROWS
    assert {str(ours[run].relative_to(ROOT)): run for row in rows for run in runs(row) if run in ours} == {}


def runs(text: str) -> Iterator[str]:
    """Yield every run of 13 words of a text, lower-cased; an escape such as a backslash and n parts words."""
    words = re.findall(r"\w+", text.lower().replace("\\n", " "))
    return (" ".join(words[start : start + RUN_WORDS]) for start in range(len(words) - RUN_WORDS + 1))


def first_rows(path: Path, count: int) -> list[str]:
    """Return the first lines of a compressed file, a line past 200,000 characters as several."""
    with gzip.open(path, "rt", encoding="utf-8") as text:
        lines = iter(lambda: text.readline(200_000), "")
        return [line.rstrip("\n") for line in islice(lines, count)]
