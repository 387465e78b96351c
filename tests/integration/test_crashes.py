"""A run of the demo that is killed four times and started again each time: nothing lost, nothing done twice.

The long form, with hundreds of kills, is `python benchmarks/crashes.py`.
"""

import sys
from pathlib import Path

import pytest

from clusterucb_core.demo.tiny_model import TinyModelRecipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc"),
]
RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("pool.max_samples=300", "warmup.epochs=2", "finetune.epochs=2", "evaluate.random_seeds=1")
KILLS = 4


@pytest.fixture(scope="module")
def crashes():
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
    import crashes

    return crashes


def test_a_run_killed_four_times_ends_as_one_that_nobody_touched(crashes, tmp_path):
    with crashes.prefect_server(tmp_path / "server") as api:
        setting = crashes.demo_setting(
            tmp_path, {"PREFECT_API_URL": api}, seed=0, overrides=SMALL, recipe=RECIPE
        )
        record = crashes.kill_chain(setting, 0, runner="threads", kills=KILLS)
    assert record["findings"] == []
    # the last kill may come too late where a run is faster than the one that set the times
    assert record["kills"] >= KILLS - 1
    chains, kills = crashes.read_log(tmp_path)
    assert [chain["kills"] for chain in chains] == [len(kills)]
    assert {line["struck"] for line in kills} == {"flow"}
