"""The ingest benchmark on a small pool: the pool is what it says, and the figures fit together."""

import gzip
import json

import pytest
from ingest import main, measure, report
from pool_workload import SHAPES, change_pool, pool_paths, write_pool

ROWS = 2400


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("scale"), ROWS, seed=3)


def content(path):
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path):
    written = [write_pool(tmp_path / name, 1200, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    first, again, other = ([path.read_bytes() for path in paths] for paths in written)
    assert first == again
    assert all(one != two for one, two in zip(first, other, strict=True))


def test_the_rows_are_spread_over_plain_and_packed_files_of_every_shape(tmp_path):
    paths = write_pool(tmp_path, ROWS)
    assert paths == pool_paths(tmp_path)
    assert {path.parent.name for path in paths} == set(SHAPES)
    assert [content(path).count(b"\n") for path in paths] == [ROWS // len(paths)] * len(paths)
    assert 500 < sum(len(content(path)) for path in paths) / ROWS < 1000


def test_a_changed_pool_has_lost_gained_and_edited_rows(tmp_path):
    path = write_pool(tmp_path, ROWS)[0]
    before = set(path.read_bytes().splitlines())
    changes = change_pool(path)
    after = set(path.read_bytes().splitlines())
    assert changes == {"removed": 2, "edited": 2, "added": 2}
    assert (len(before - after), len(after - before)) == (4, 4)


@pytest.mark.slow
def test_every_ingest_is_that_of_the_pool(result):
    first, again, changed = (result["ingests"][name] for name in ("first", "again", "after a change"))
    assert (first["pool_version"], first["created"], again["created"]) == (1, True, False)
    assert (again["pool_version"], changed["pool_version"]) == (1, 2)
    assert first["n_samples"] + first["duplicates"] + first["n_quarantined"] == ROWS
    assert 0.01 * ROWS < first["duplicates"] < 0.05 * ROWS
    assert 0 < changed["n_removed"] <= 4
    assert 0 < changed["n_added"] <= 4


@pytest.mark.slow
def test_every_figure_is_there_and_above_nothing(result):
    for part in ("ingests", "commands"):
        for found in result[part].values():
            assert found["seconds"] > 0
            assert found["cpu_seconds"] > 0
            assert 50 < found["peak_memory_mib"] < 2000
    assert all(0 < found["seconds"] <= found["slowest"] for found in result["queries"].values())
    assert set(result["commands"]) == {"list", "show", "diff"}
    assert result["publication"]["selected"] == ROWS * 0.05
    assert result["publication"]["pulls"] == ROWS * 0.2
    assert "selection_diff" in report(result)


@pytest.mark.slow
def test_the_command_writes_a_result_that_names_no_folder(tmp_path, capsys):
    main(["--rows", "1200", "--folder", str(tmp_path / "new"), "--out", str(tmp_path / "result.json")])
    text = (tmp_path / "result.json").read_text("utf-8")
    assert json.loads(text)["command"] == "python benchmarks/ingest.py --rows 1200 --seed 0"
    assert str(tmp_path) not in text
    assert "1,200 rows in 12 files" in capsys.readouterr().out


def test_a_folder_that_is_not_empty_and_too_few_rows_are_refused(tmp_path, capsys):
    (tmp_path / "something").touch()
    with pytest.raises(SystemExit):
        main(["--folder", str(tmp_path)])
    assert "is not empty; give an empty one" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--rows", "12"])
    assert "--rows 12 is too few" in capsys.readouterr().err
