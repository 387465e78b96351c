"""What tests of several folders need: a Prefect server, a search for texts in files, a reader of reports."""

import gzip
import html
import importlib.util
import json
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import duckdb
import polars as pl
import pytest
import zstandard
from hypothesis import settings

# A commit passes or fails alike wherever it is tested; `--hypothesis-profile default` looks for new cases.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """A Prefect server on loopback with files of its own; its settings hold until the session ends."""
    import prefect.settings as names
    from prefect.testing.utilities import prefect_test_harness

    home = tmp_path_factory.mktemp("prefect")
    changed = {
        names.PREFECT_HOME: home,
        names.PREFECT_LOCAL_STORAGE_PATH: home / "results",
        names.PREFECT_LOGGING_LEVEL: "ERROR",
        names.PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with names.temporary_settings(changed), prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own with room for 2 MiB; the test is skipped where none may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a small disk (it takes CAP_SYS_ADMIN)")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def find_text():
    """Return a search for texts in all files below some folders, in raw bytes and in what they unpack to."""
    return _files_with


def _files_with(texts: list[str], *folders: Path) -> dict[str, list[str]]:
    """Return the texts found, by file: as they are, or as JSON and HTML write them."""
    forms = {
        text: {
            form.encode()
            for form in (
                text,
                json.dumps(text)[1:-1],
                json.dumps(text, ensure_ascii=False)[1:-1],
                html.escape(text),
            )
        }
        for text in texts
    }
    found: dict[str, list[str]] = {}
    for path in sorted(path for folder in folders for path in folder.rglob("*") if path.is_file()):
        contents = list(_unpacked(path))
        hits = [
            text
            for text, shapes in forms.items()
            if any(shape in content for shape in shapes for content in contents)
        ]
        if hits:
            found[str(path)] = hits
    return found


def _unpacked(path: Path) -> Iterator[bytes]:
    raw = path.read_bytes()
    yield raw
    if raw[:4] == b"PAR1":
        table = pl.read_parquet(path)
        yield "\n".join(
            json.dumps(row, ensure_ascii=False, default=str) for row in table.iter_rows()
        ).encode()
        yield "\n".join(str(value) for row in table.iter_rows() for value in row).encode()
    elif raw[:2] == b"\x1f\x8b":
        yield gzip.decompress(raw)
    elif raw[:4] == b"\x28\xb5\x2f\xfd":
        yield zstandard.ZstdDecompressor().decompressobj().decompress(raw)
    elif raw[8:12] == b"DUCK":
        with duckdb.connect(path, read_only=True) as con:
            names = [name for (name,) in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()]
            for name in names:
                values = (str(value) for row in con.execute(f"FROM {name}").fetchall() for value in row)
                yield "\n".join(values).encode()
    elif raw[:2] == b"PK":
        with zipfile.ZipFile(path) as archive:
            yield b"".join(archive.read(name) for name in archive.namelist())


@pytest.fixture(scope="session")
def load_module():
    """Return a function that loads a module of the tests by its path below their folder, without `.py`."""
    return _loaded


def _loaded(place: str) -> ModuleType:
    path = Path(__file__).parent / f"{place}.py"
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def report_page(load_module):
    """Return the module that reads reports and knows from the catalog what their numbers should be."""
    return load_module("report_page")


@pytest.fixture(scope="session")
def damage(load_module):
    """Return ways to damage a file by their names: flipped, truncated, extended, deleted."""
    return load_module("damage").WAYS
