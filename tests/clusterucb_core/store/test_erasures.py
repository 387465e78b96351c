import pytest

from clusterucb_core.records import Exclusion
from clusterucb_core.store import ErasedRows, erase_rows, erased_ids, record_erasures, record_exclusions
from clusterucb_core.store.statements import rows, run, transaction


@pytest.fixture
def filled(con, add_pool):
    add_pool(con, ["a1", "a2"], bad_rows=2)
    run(con, "UPDATE quarantine SET raw = 'the secret' WHERE row_number = 1")
    record_exclusions(
        con, "selection", "1", [Exclusion(name, "leak", "words", f"words of {name}") for name in ("a1", "a2")]
    )
    run(con, "INSERT INTO feature_rows VALUES ('space', 'a1', 'shard', 0), ('space', 'a2', 'shard', 1)")
    return con


def erase(con, *ids: str) -> ErasedRows:
    with transaction(con):
        return erase_rows(con, ids, lambda text: "secret" in text)


def test_text_is_taken_out_of_every_table_and_ids_stay(filled):
    assert erase(filled, "a1") == ErasedRows(samples=1, quarantine=1, exclusions=1, feature_rows=1)
    assert rows(filled, "SELECT sample_id, messages IS NULL, row_number FROM samples ORDER BY sample_id") == [
        ("a1", True, 0),
        ("a2", False, 1),
    ]
    assert rows(filled, "SELECT detail FROM exclusions ORDER BY sample_id") == [("erased",), ("words of a2",)]
    assert rows(filled, "SELECT raw, detail FROM quarantine ORDER BY row_number") == [
        ("{", "no object"),
        (None, None),
    ]
    assert rows(filled, "SELECT sample_id FROM feature_rows") == [("a2",)]
    assert rows(filled, "SELECT count(*) FROM pool_samples") == [(2,)]


def test_a_repeat_finds_nothing_to_do(filled):
    erase(filled, "a1")
    assert erase(filled, "a1") == ErasedRows()


def test_an_erasure_is_recorded_once(filled):
    for reason in ("first", "second"):
        record_erasures(filled, ["a1"], reason=reason)
    assert rows(filled, "SELECT sample_id, reason FROM erasures") == [("a1", "first")]
    assert erased_ids(filled) == {"a1"}
