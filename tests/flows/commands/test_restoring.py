"""`restore`, and what every other command says of a damaged catalog."""

import fcntl
import json
import re
from types import SimpleNamespace

import pytest

from clusterucb_core.store import backup_catalog, catalog_backups, list_selections, open_catalog
from clusterucb_core.store.statements import run
from clusterucb_core.workspace import Workspace

READING = {
    "list": ["list"],
    "show": ["show"],
    "diff": ["diff", "1", "2"],
    "export": ["export", "2", "OUT"],
    "report": ["report", "2", "--out", "OUT"],
    "withdraw": ["withdraw", "s01", "--reason", "a test"],
    "run": ["run", "CONFIG"],
    "ingest": ["ingest", "CONFIG"],
    "check": ["check", "CONFIG"],
}
TOLD = r"the catalog \S+catalog\.duckdb is damaged \(.*checksum.*\); "


@pytest.fixture
def backed_up(catalog, home):
    """A catalog with a backup, and a third version that came after it."""
    workspace = Workspace(home=str(home))
    backup_catalog(workspace)
    with open_catalog(catalog) as con:
        run(
            con,
            "UPDATE selections SET selection_version = 3, selection_key = 'k' WHERE selection_version = 2",
        )
    return workspace


def damage(path) -> None:
    image = bytearray(path.read_bytes())
    for place in range(12288 + 1000, len(image), 262144):
        image[place] ^= 1
    path.write_bytes(image)


def held(path) -> list[int]:
    with open_catalog(path, read_only=True) as con:
        return [item.selection_version for item in list_selections(con)]


@pytest.mark.parametrize("command", READING)
def test_a_damaged_catalog_is_told_in_one_sentence(call, catalog, config_file, tmp_path, command):
    damage(catalog)
    places = {"OUT": tmp_path / "out.file", "CONFIG": config_file}
    done = call(*(places.get(word, word) for word in READING[command]))
    assert done.code in (1, 2)
    assert done.out == ""
    assert re.search(rf"error: {TOLD}there is no backup of it", done.err), done.err
    assert "Traceback" not in done.err


def test_the_sentence_names_the_newest_backup(call, backed_up):
    damage(backed_up.catalog)
    done = call("list")
    assert (done.code, done.out) == (1, "")
    time = catalog_backups(backed_up)[0].name[8:16]
    day = f"{time[:4]}-{time[4:6]}-{time[6:]}"
    assert re.search(rf"{TOLD}`clusterucb restore` brings back the backup of {day}", done.err)


def test_doctor_finds_a_damaged_catalog(call, backed_up):
    damage(backed_up.catalog)
    done = call("doctor", "--json")
    assert done.code == 1
    (found,) = [item for item in json.loads(done.out)["findings"] if item["name"] == "catalog"]
    assert (found["status"], "`clusterucb restore`" in found["detail"]) == ("unusable", True)


def test_restore_brings_back_the_newest_backup_and_says_what_is_lost(call, backed_up):
    damage_after = held(backed_up.catalog)
    done = call("restore", "--yes")
    assert (done.code, damage_after, held(backed_up.catalog)) == (0, [1, 3], [1, 2])
    assert "lost: 1 selection version, 3; repeat their `clusterucb run`" in done.out
    assert "back: 1 selection version, 2" in done.out
    assert "-replaced.duckdb" in done.out


def test_restore_mends_a_damaged_catalog(call, backed_up):
    damage(backed_up.catalog)
    done = call("restore", "--yes", "--json")
    assert done.code == 0
    assert json.loads(done.out)["lost"] is None
    assert call("show", "2").code == 0


def test_the_list_tells_each_backup_and_changes_nothing(call, backed_up):
    damage(backup_catalog(backed_up))
    before = sorted(path.name for path in catalog_backups(backed_up))
    done = call("restore", "--list", "--json")
    first, second = json.loads(done.out)
    assert (first["selections"], first["kind"], first["schema_version"]) == ([1, 2], "maintenance", 6)
    assert (first["fault"], "is damaged" in second["fault"]) == (None, True)
    assert "whole" in call("restore", "--list").out
    assert (held(backed_up.catalog), sorted(p.name for p in catalog_backups(backed_up))) == ([1, 3], before)


def test_without_backups_there_is_nothing_to_list_or_restore(call, catalog):
    assert "no backups yet" in call("restore", "--list").out
    done = call("restore", "--yes")
    assert (done.code, "there is no backup of the catalog in" in done.err) == (1, True)


def test_nobody_to_ask_is_bad_usage(call, backed_up, monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    done = call("restore")
    assert (done.code, "repeat the command with --yes" in done.err) == (2, True)
    assert held(backed_up.catalog) == [1, 3]


def test_a_run_that_is_under_way_is_not_disturbed(call, backed_up, home):
    with (home / "run.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write(json.dumps({"pid": 4711, "name": "brave-cat"}))
        lock.flush()
        done = call("restore", "--yes")
    assert done.code == 1
    assert "another run works in this state folder (brave-cat, process 4711)" in done.err
    assert held(backed_up.catalog) == [1, 3]
