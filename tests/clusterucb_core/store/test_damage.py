"""A catalog whose bytes were changed is refused with a sentence, or read as it was written."""

import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from clusterucb_core.errors import DamagedCatalog, MissingArtifact
from clusterucb_core.store import backup_catalog, open_catalog, withdraw_samples
from clusterucb_core.store.damage import damage_in
from clusterucb_core.store.statements import frame, rows, run, transaction
from clusterucb_core.workspace import Workspace

HEADERS, BLOCK = 12288, 262144
SENTENCE = "the catalog .* is damaged .*; there is no backup of it"
# Four transactions in a write-ahead log that no checkpoint has moved into the file.
LEAVE_LOG = """
import os, sys
import duckdb
con = duckdb.connect(sys.argv[1])
for number in range(4):
    con.begin()
    for row in range(3):
        con.execute("INSERT INTO erasures (sample_id, reason) VALUES (?, 'test')", [f"{number} {row}"])
    con.execute("INSERT INTO pool_samples SELECT ?, 's' || i FROM range(5) AS t(i)", [number])
    con.commit()
os._exit(0)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a catalog of about forty blocks, and what stands in it."""
    path = tmp_path_factory.mktemp("whole") / "catalog.duckdb"
    with open_catalog(path) as con, transaction(con):
        run(
            con,
            "INSERT INTO samples SELECT 's' || i, 'made up', "
            "json_object('text', list_transform(range(40), lambda x: hash(i * 40 + x))), 20, 1, 'p', i "
            "FROM range(20000) AS t(i)",
        )
        run(con, "INSERT INTO pool_samples SELECT 1, sample_id FROM samples")
        run(con, "INSERT INTO selection_samples SELECT 1, i + 1, 's' || i, i, 0 FROM range(4000) AS t(i)")
    return path.read_bytes(), content(path)


def content(path: Path) -> dict[str, str]:
    with open_catalog(path, read_only=True) as con:
        tables = rows(con, "SELECT table_name FROM duckdb_tables() ORDER BY ALL")
        found = {table: str(frame(con, f"FROM {table}").hash_rows().to_list()) for (table,) in tables}
        found["by key"] = repr(rows(con, "FROM samples WHERE sample_id = 's777'"))
    return found


def read(path: Path, image: bytes) -> str | dict[str, str]:
    """Return what is told of a file, or what stands in it."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(image)
    try:
        return content(path)
    except DamagedCatalog as error:
        return str(error)


def test_a_bit_flipped_in_any_block_is_found_or_changes_nothing(catalog_path, whole):
    image, true = whole
    places = [HEADERS // 3 * part + 100 for part in range(3)] + list(range(HEADERS + 1000, len(image), BLOCK))
    assert len(places) >= 43
    refused = 0
    for bit, place in enumerate(places):
        changed = bytearray(image)
        changed[place] ^= 1 << bit % 8
        found = read(catalog_path, changed)
        assert found == true or ("checksum" in found and "\n" not in found), place
        refused += found != true
    assert refused > len(places) / 2, "blocks that hold something"


@pytest.mark.slow
def test_zeroed_pages_and_missing_ends_are_found_or_change_nothing(catalog_path, whole):
    image, true = whole
    zeroed = [image[:at] + bytes(4096) + image[at + 4096 :] for at in range(0, len(image), 37 * 4096)]
    cut = [image[:length] for length in range(1, len(image), len(image) // 30)]
    found = [read(catalog_path, changed) for changed in (*zeroed, *cut, bytes(len(image)))]
    assert all(result == true or "is damaged" in result for result in found)
    assert sum(result != true for result in found) > 40


def test_a_log_of_which_a_bit_was_flipped_is_found_or_ends_with_a_whole_transaction(
    catalog_path, empty_catalog
):
    catalog_path.parent.mkdir()
    shutil.copy(empty_catalog, catalog_path)
    subprocess.run([sys.executable, "-c", LEAVE_LOG, str(catalog_path)], check=True)
    image, log = catalog_path.read_bytes(), catalog_path.with_name("catalog.duckdb.wal")
    whole_log, refused = log.read_bytes(), 0
    for place in range(0, len(whole_log), 23):
        changed = bytearray(whole_log)
        changed[place] ^= 4
        catalog_path.write_bytes(image)
        log.write_bytes(changed)
        found = counted(catalog_path)
        assert found in [(3 * number, 5 * number) for number in range(5)] or "WAL" in found, place
        refused += "WAL" in found
    assert refused > 40


def counted(path: Path) -> tuple[int, int] | str:
    try:
        with open_catalog(path, read_only=True) as con:
            return rows(con, "SELECT (SELECT count(*) FROM erasures), (SELECT count(*) FROM pool_samples)")[0]
    except DamagedCatalog as error:
        return str(error)


def damaged(path: Path, image: bytes) -> None:
    """Flip a bit in every block but the first, which tells the tables."""
    changed = bytearray(image)
    for place in range(HEADERS + 1000, len(image), BLOCK):
        changed[place] ^= 1
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(changed)


WRITES = {
    "a withdrawal": lambda con: withdraw_samples(con, ["s1"], reason="test"),
    "an insert": lambda con: run(con, "INSERT INTO samples VALUES ('s1', 's', NULL, 1, 1, NULL, NULL)"),
    "an update": lambda con: run(con, "UPDATE samples SET messages = NULL WHERE sample_id = 's5'"),
}


@pytest.mark.parametrize("write", WRITES)
def test_whoever_writes_to_a_damaged_catalog_is_told(catalog_path, whole, write):
    damaged(catalog_path, whole[0])
    with pytest.raises(DamagedCatalog, match=SENTENCE), open_catalog(catalog_path) as con, transaction(con):
        WRITES[write](con)


def test_a_commit_that_meets_the_damage_is_no_busy_catalog(catalog_path, empty_catalog):
    catalog_path.parent.mkdir()
    shutil.copy(empty_catalog, catalog_path)

    def write():
        with open_catalog(catalog_path) as con, transaction(con):
            raise duckdb.TransactionException("Failed to commit: Corrupt database file: computed checksum 1")

    with pytest.raises(DamagedCatalog, match=SENTENCE):
        write()


def test_no_copy_is_made_of_a_damaged_catalog_and_the_earlier_backups_stay(catalog_path, whole):
    workspace = Workspace(home=str(catalog_path.parent))
    catalog_path.parent.mkdir()
    catalog_path.write_bytes(whole[0])
    kept = backup_catalog(workspace)
    damaged(catalog_path, whole[0])
    with pytest.raises(
        DamagedCatalog, match=r"`clusterucb restore` brings back the backup of \d{4}-\d\d-\d\d"
    ):
        backup_catalog(workspace, keep=1)
    assert list(kept.parent.iterdir()) == [kept]


def test_a_catalog_that_is_gone_is_told_with_its_backup(catalog_path, empty_catalog, caplog):
    catalog_path.parent.mkdir()
    shutil.copy(empty_catalog, catalog_path)
    backup_catalog(Workspace(home=str(catalog_path.parent)))
    catalog_path.unlink()
    with (
        pytest.raises(MissingArtifact, match="restore` brings back"),
        open_catalog(catalog_path, read_only=True),
    ):
        pass
    assert caplog.messages == []
    with open_catalog(catalog_path):
        pass
    (told,) = caplog.messages
    assert "a new one is made" in told
    assert "`clusterucb restore` brings back the backup of" in told


def test_an_empty_file_is_a_catalog_that_a_killed_process_was_about_to_make(catalog_path):
    catalog_path.parent.mkdir()
    catalog_path.touch()
    with pytest.raises(MissingArtifact, match="no catalog"), open_catalog(catalog_path, read_only=True):
        pass
    with open_catalog(catalog_path) as con:
        assert rows(con, "FROM selections") == []
    backup_catalog(Workspace(home=str(catalog_path.parent)))
    catalog_path.write_bytes(b"")
    for read_only in (True, False):
        with (
            pytest.raises(DamagedCatalog, match="restore` brings back"),
            open_catalog(catalog_path, read_only=read_only),
        ):
            pass


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("INTERNAL Error: x\nCorrupt database file: computed checksum 1\ny", True),
        ("Failure while replaying WAL file a: No space left on device", False),
        ("IO Error: Could not set lock on file", False),
        ("Constraint Error: Duplicate key", False),
    ],
)
def test_only_what_speaks_of_damage_is_taken_for_it(text, found):
    assert (damage_in(duckdb.Error(text)) is not None) == found
