"""The oracle of the fuzzers finds what it is there to find, and nothing in what is right."""

import json
import time
from pathlib import Path

import pytest
import reader_oracle
from hostile_rows import hostile_file
from hypothesis import given, settings
from hypothesis import strategies as st
from reader_oracle import Hang, Outcome, Violation, check_ingest, check_pool_file, check_target_file, watchdog

from clusterucb_core.errors import InvalidPool
from clusterucb_core.pool.formats import ReadRow, read_file
from clusterucb_core.pool.quarantine import Reason, bad_row

GOOD = json.dumps({"prompt": "Q", "completion": "A"}) + "\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "a.jsonl").write_text(GOOD * 2 + "{\n")
    return tmp_path / "a.jsonl"


def give(monkeypatch, rows):
    monkeypatch.setattr(reader_oracle, "read_file", lambda *_, **__: iter(rows))


def test_rows_samples_and_records_are_counted(path):
    found = check_pool_file(path, written=3)
    assert (found.rows, found.samples, dict(found.quarantined)) == (3, 2, {"invalid_json": 1})


def test_a_row_that_was_written_and_not_read_is_found(path):
    with pytest.raises(Violation, match="3 rows were read of 4"):
        check_pool_file(path, written=4)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ReadRow(1, (), ())], "neither a sample nor a record"),
        (
            [ReadRow(n, (), (bad_row(n, Reason.NO_ANSWER, "x", raw=b""),)) for n in (2, 1)],
            "row 1 came after row 2",
        ),
        ([ReadRow(1, (), (bad_row(1, Reason.NO_ANSWER, "", raw=b""),))], "0 characters of detail"),
        (
            [ReadRow(n, (), (bad_row(n, Reason.BROKEN_CONTAINER, "x", raw=b""),)) for n in (1, 2)],
            "after the container had broken off",
        ),
    ],
)
def test_rows_that_no_reader_may_give_are_found(path, monkeypatch, rows, message):
    give(monkeypatch, rows)
    with pytest.raises(Violation, match=message):
        check_pool_file(path)


def test_a_message_without_advice_is_found(path, monkeypatch):
    def refuse(*_, **__):
        raise InvalidPool("no")
        yield

    monkeypatch.setattr(reader_oracle, "read_file", refuse)
    with pytest.raises(Violation, match="without the file or without advice"):
        check_pool_file(path)


def _busy(seconds: float, *, watched_s: float) -> None:
    with watchdog(watched_s):
        began = time.process_time()
        while time.process_time() - began < seconds:
            pass


def test_a_hang_is_found_and_the_watch_ends_with_its_block():
    with pytest.raises(Hang):
        _busy(0.05, watched_s=0.02)
    with watchdog(0.02):
        pass
    _busy(0.05, watched_s=10)


def test_a_pool_whose_counts_differ_is_found(path):
    right = check_pool_file(path)
    assert check_ingest(path.parent, [path.name], right, path.parent / "state")["n_samples"] == 1
    with pytest.raises(Violation, match="ingest counted"):
        check_ingest(path.parent, [path.name], Outcome(rows=4, samples=2), path.parent / "state")


def test_a_target_is_refused_or_every_row_can_be_used(path):
    assert check_target_file(path).refused == 1
    path.write_text(GOOD * 2)
    assert check_target_file(path).rows == 2


@settings(deadline=None, max_examples=25)
@given(seeds=st.lists(st.integers(0, 2**32), min_size=1, max_size=3), rows=st.integers(1, 30))
def test_whatever_files_a_pool_is_made_of_its_counts_add_up(tmp_path_factory, seeds, rows):
    folder = tmp_path_factory.mktemp("pool")
    total, names = Outcome(), []
    for place, seed in enumerate(seeds):
        made = hostile_file(str(seed), rows)
        path = folder / f"{place}{made.suffix}"
        path.write_bytes(made.content)
        found = check_pool_file(path, written=made.rows)
        total.add(found)
        names += [] if found.refused else [path.name]
    if names:
        check_ingest(folder, names, total, folder / "state")


def test_the_oracle_reads_with_the_readers_of_the_project():
    assert reader_oracle.read_file is read_file
