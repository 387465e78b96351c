"""A run whose versions a restoration lost is repeated: it computes nothing, and chooses the same samples."""

import json
import os
import subprocess
import sys

import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.store import backup_catalog, open_catalog, selection_samples
from clusterucb_core.workspace import Workspace

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("pool.max_samples=200", "warmup.epochs=1", "finetune.epochs=1", "evaluate.baselines=[]")

pytestmark = pytest.mark.slow


def called(home, *line):
    """Run the command line and return what it printed as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "flows", *line, "--json"],
        env=os.environ | {"CLUSTERUCB_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def chosen(workspace, version):
    with open_catalog(workspace.catalog, read_only=True) as con:
        return selection_samples(con, version)["sample_id"].to_list()


def test_a_run_lost_to_a_restoration_is_published_again_without_computing(tmp_path):
    config, home = write_demo(tmp_path / "demo", recipe=RECIPE).config, tmp_path / "home"
    workspace = Workspace(home=str(home))
    overrides = [part for setting in SMALL for part in ("--set", setting)]

    def run(seed):
        return called(home, "run", str(config), *overrides, "--set", f"seed={seed}")

    assert run(0)["selection_version"] == 1
    backup_catalog(workspace)
    assert run(1)["selection_version"] == 2
    before = chosen(workspace, 2)
    assert called(home, "restore", "--yes")["lost"] == [2]
    again = run(1)
    assert (again["selection_version"], again["work"]["gradient_evaluations"]) == (3, 0)
    assert again["work"]["trainings"] == 0
    assert chosen(workspace, 3) == before
    assert run(0)["selection_version"] == 1
    assert run(1)["selection_version"] == 3
