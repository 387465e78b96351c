"""Who waits for the catalog keeps those out who come later."""

import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from clusterucb_core.store import gate as gates
from clusterucb_core.store import open_catalog
from clusterucb_core.store.gate import gate
from clusterucb_core.store.statements import run

# Reads without a pause; three of them leave the file free for hardly a moment.
READER = """
import sys, time
from pathlib import Path
from clusterucb_core.store import open_catalog
while True:
    with open_catalog(Path(sys.argv[1]), read_only=True):
        print("inside", flush=True)
        time.sleep(0.3)
"""


def test_the_gate_lets_one_pass_at_a_time(tmp_path):
    inside, most = [0], [0]

    def passes(_: int) -> None:
        with gate(tmp_path / "catalog.duckdb"):
            inside[0] += 1
            most[0] = max(most[0], inside[0])
            time.sleep(0.005)
            inside[0] -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(passes, range(8)))
    assert most == [1]


def test_who_has_waited_long_enough_passes_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(gates, "PATIENCE_S", 0.1)
    passed = threading.Event()
    with gate(tmp_path / "catalog.duckdb"), gate(tmp_path / "catalog.duckdb"):
        passed.set()
    assert passed.is_set()


def test_a_gate_leaves_nothing_and_needs_no_folder(tmp_path):
    with gate(tmp_path / "catalog.duckdb"), gate(tmp_path / "gone" / "catalog.duckdb"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_writer_comes_in_where_one_of_several_readers_is_always_inside(catalog_path):
    with open_catalog(catalog_path):
        pass
    line = [sys.executable, "-c", READER, str(catalog_path)]
    readers = [subprocess.Popen(line, stdout=subprocess.PIPE) for _ in range(4)]
    try:
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == b"inside\n"
        for _ in range(5):
            with open_catalog(catalog_path, timeout_s=20) as con:
                run(con, "INSERT INTO erasures (sample_id, reason) VALUES (uuid()::VARCHAR, 'asked for')")
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()
    assert all(reader.returncode == -signal.SIGKILL for reader in readers)
