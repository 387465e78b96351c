"""The stage `training`: after a kill it goes on from the checkpoints that were finished."""

import subprocess
import sys
from types import SimpleNamespace

from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.stages import training
from clusterucb_core.stages.training import TrainingSpec, run_training
from clusterucb_core.workspace import Workspace

KILLED = """
import os, signal, sys
from pathlib import Path
from clusterucb_core.artifacts import new_artifact
with new_artifact(Path(sys.argv[1]), "training", "key", {}) as folder:
    (folder / "checkpoint-1").mkdir()
    (folder / ".checkpoint-2.half.tmp").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_training_is_given_the_checkpoints_that_a_killed_one_had_finished(tmp_path, monkeypatch):
    workspace = Workspace(home=str(tmp_path))
    killed = subprocess.run([sys.executable, "-c", KILLED, str(workspace.artifacts)], check=False)
    assert killed.returncode == -9
    seen: list[str] = []

    def train_on(*_, out, **__):
        seen.extend(path.name for path in out.iterdir() if path.is_dir())
        return ["first", "second"]

    monkeypatch.setattr(training, "train_on", train_on)
    monkeypatch.setattr(training, "_training_ids", lambda _: ["a"])
    monkeypatch.setattr(training, "open_tokens", lambda _: SimpleNamespace(take=list))
    facts = {"learning_rate": 1.0, "batch_size": 1, "total_steps": 2, "start_step": 0, "steps": None}
    model = SimpleNamespace(settings=None)
    spec = TrainingSpec.model_construct(
        stage="training",
        key="key",
        model=model,
        tokens=None,
        start=None,
        epochs=2,
        seed=0,
        run_id="r",
        **facts,
    )
    ref = run_training(spec, workspace, ExecutionSettings(device="cpu"))
    assert seen == ["checkpoint-1"]
    assert training.read_manifest(ref)["n_checkpoints"] == 2
    assert [path.name for path in (workspace.artifacts / "training").iterdir()] == ["key"]
