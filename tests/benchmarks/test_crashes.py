"""The harness that kills runs: it kills where it says, and sees what it looks for."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pytest
from crashes import KILLS, main, read_log, summary
from kills.attempts import HOOK
from kills.plans import LATE_POINTS, Timeline, draw_kills, draw_service_kills
from kills.saved import copy_state, stretches
from kills.states import catalog_findings, differences, lock_findings, read_state, recomputed

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.store import open_catalog
from flows.turns import turn

WRITES = """
import sys
from pathlib import Path
from clusterucb_core.artifacts import new_artifact
with new_artifact(Path(sys.argv[1]), "stage", "key", {}) as folder:
    (folder / "content.npy").write_text("whole")
"""


def write(home: Path, armed: Path) -> int:
    """Write an artifact in a process of its own, and return its exit code."""
    root = Path(__file__).resolve().parents[2]
    variables = {"KILLS_ARMED": str(armed), "PYTHONPATH": os.pathsep.join([str(HOOK), str(root)])}
    line = [sys.executable, "-c", WRITES, str(home / "artifacts")]
    return subprocess.run(line, env=os.environ | variables, check=False).returncode


@pytest.mark.parametrize(
    ("point", "finished", "drafts"), [("draft made", 0, 1), ("before rename", 0, 1), ("after rename", 1, 0)]
)
def test_a_run_dies_at_the_armed_point_and_the_next_one_leaves_nothing(tmp_path, point, finished, drafts):
    armed = tmp_path / "armed"
    armed.write_text(point)
    assert write(tmp_path, armed) == -9
    assert json.loads((tmp_path / "armed.hit").read_text())["point"] == point
    killed = read_state(tmp_path, tmp_path / "none")
    assert (len(killed.finished), len(killed.drafts)) == (finished, drafts)
    # nothing is armed any more
    assert write(tmp_path, armed) == 0
    state = read_state(tmp_path, tmp_path / "none")
    assert (list(state.finished), state.drafts) == (["stage/key"], {})


def test_what_is_made_anew_or_lost_is_seen(tmp_path):
    root = tmp_path / "artifacts"
    for key in ("kept", "anew", "lost"):
        with new_artifact(root, "draws", key, {}):
            pass
    before = read_state(tmp_path, tmp_path / "none")
    for key in ("anew", "lost"):
        (root / "draws" / key / "manifest.json").unlink()
    with new_artifact(root, "draws", "anew", {}):
        pass
    found = recomputed(before, read_state(tmp_path, tmp_path / "none"))
    assert sorted(word.split()[0] for word in found) == ["draws/anew", "draws/lost"]


def test_a_version_without_its_rows_is_seen(tmp_path):
    path = tmp_path / "catalog.duckdb"
    with open_catalog(path):
        pass
    assert catalog_findings(tmp_path) == []
    with duckdb.connect(path) as con:
        con.execute(
            "INSERT INTO selections (selection_version, selection_key, run_id, run_complete, period, "
            "pool_version, target, mode, policy, n_selected, budget_samples, gradient_evaluations, "
            "gradient_evaluations_reused, target_gradient_evaluations, cost, config, config_digest, "
            "code_version) VALUES (1, 'k', 'r', true, 1, 1, 't', 'm', 'p', 3, 0, 0, 0, 0, '{}', '{}', '', '')"
        )
        con.execute("INSERT INTO selection_samples VALUES (1, 1, 'a', 0.5, 0), (1, 2, 'a', 0.4, 0)")
    half, outside = catalog_findings(tmp_path)
    assert half == "version 1 is not whole: rows, ranks, ids and last rank are [3, 2, 2, 1, 2]"
    assert outside == "2 selected samples outside of the pool"


def test_a_held_lock_is_seen(tmp_path):
    with turn(tmp_path):
        (found,) = lock_findings(tmp_path)
    assert "run.lock is held" in found
    assert lock_findings(tmp_path) == []


def test_another_selection_is_a_difference():
    state = {"selected": [[1, 1, "a"]], "tables": {"pulls": "2"}, "files": {"draws/k/selected.txt": "x"}}
    assert differences(state, state) == []
    other = state | {"selected": [[1, 1, "b"]], "files": {}}
    assert differences(state, other) == [
        "the selection is another",
        "files: draws/k/selected.txt differs",
    ]


def test_kills_go_on_along_the_run_and_often_end_where_it_reports():
    timeline = Timeline(tuple(range(1, 100)), 100.0)
    ends = []
    for seed in range(20):
        kills = draw_kills(np.random.default_rng(seed), timeline, count=10, has_workers=False)
        progress = [kill.finished for kill in kills if kill.kind != "starting"]
        assert progress == sorted(progress)
        assert all(0 <= kill.rest_s <= 4 for kill in kills)
        assert {kill.victim for kill in kills} == {"flow"}
        ends.append(kills[-1].point in LATE_POINTS)
    assert 8 <= sum(ends) <= 19


def test_a_place_counts_what_was_finished_and_the_time_since():
    assert Timeline((1.0, 4.0), 10.0).place(5.5) == (2, 1.5)
    assert Timeline((1.0, 4.0), 10.0).place(0.5) == (0, 0.5)


def test_kills_of_services_take_turns_and_go_on_along_the_run():
    timeline = Timeline(tuple(range(1, 100)), 100.0)
    names = ("prefect", "mlflow", "postgres")
    kills = draw_service_kills(np.random.default_rng(0), timeline, count=6, services=names)
    assert [kill.victim for kill in kills] == [*names, *names]
    assert [kill.finished for kill in kills] == sorted(kill.finished for kill in kills)
    assert all(0 <= kill.away_s <= 20 for kill in kills)


def test_a_copied_state_shares_the_files_of_artifacts_and_no_others(tmp_path):
    source, home = tmp_path / "source", tmp_path / "home"
    with new_artifact(source / "artifacts", "draws", "key", {}):
        pass
    (source / "logs").mkdir()
    (source / "logs" / "run.jsonl").write_text("line")
    (source / "catalog.duckdb").write_text("catalog")
    home.mkdir()
    copy_state(source, home)
    before, after = read_state(source, tmp_path / "none"), read_state(home, tmp_path / "none")
    assert before.finished == after.finished
    for name in ("logs/run.jsonl", "catalog.duckdb"):
        assert (home / name).read_text() == (source / name).read_text()
        assert (home / name).stat().st_ino != (source / name).stat().st_ino


def test_stretches_are_of_equal_length():
    assert stretches(Timeline((), 80.0), 4) == [0.0, 20.0, 40.0, 60.0]


def test_a_second_call_does_not_kill_in_the_same_folder(tmp_path, capsys):
    with (tmp_path / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            main(["--folder", str(tmp_path)])
    assert "wait for its end" in capsys.readouterr().err


def test_the_log_is_summed_up(tmp_path):
    kill = {"chain": 0, "runner": "threads", "kind": "time", "point": "", "struck": "flow", "lost_shards": 1}
    chain = {"chain": 0, "whole": True, "findings": ["a lock"], "leftovers": {}}
    (tmp_path / KILLS).write_text("".join(f"{json.dumps(line)}\n" for line in (kill, kill, chain)))
    assert [len(part) for part in read_log(tmp_path)] == [1, 2]
    found = summary(tmp_path)
    assert (found["kills"], found["lost_shards"], found["findings"]) == (2, 2, {"a lock": 1})


def test_a_folder_must_be_named(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--folder" in capsys.readouterr().err
