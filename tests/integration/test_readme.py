"""The commands of README.md do what it says, in its order."""

import gzip
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [
    line.removeprefix("$ ").split("#")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.startswith("$ ")
]
RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder as the README's run.yaml expects it, with a model of the usual context length."""
    folder = tmp_path_factory.mktemp("readme")
    demo = write_demo(folder / "demo", recipe=RECIPE)
    (folder / "data").mkdir()
    for source in demo.pool:
        if source.suffix == ".jsonl":
            (folder / "data" / f"{source.name}.gz").write_bytes(gzip.compress(source.read_bytes()))
    (folder / "gsm8k.jsonl").write_bytes(demo.target.read_bytes())
    model = json.loads((demo.model / "config.json").read_text(encoding="utf-8"))
    (demo.model / "config.json").write_text(
        json.dumps(model | {"max_position_embeddings": 2048}), encoding="utf-8"
    )
    config = yaml.safe_load(re.search(r"```yaml\n(.*?)```", README, re.DOTALL).group(1))
    config["model"]["base"] = "demo/model"
    (folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return folder


def test_every_make_target_of_the_readme_exists():
    targets = re.findall(r"make ([a-z-]+)", README)
    assert {"setup", "demo", "check", "test-slow"} <= set(targets)
    for target in targets:
        found = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stderr


@pytest.mark.slow
def test_the_commands_of_the_readme_run_in_its_order(project):
    environment = os.environ | {"CLUSTERUCB_HOME": str(project / "state")}
    ours = [command for command in COMMANDS if command.startswith("clusterucb ")]
    order = ["check", "run", "compare", "list", "show", "diff", "report", "export", "reselect"]
    assert [command.split()[1] for command in ours] == order
    for command in ours:
        line = [sys.executable, "-m", "flows", *command.split()[1:]]
        done = subprocess.run(
            line, cwd=project, env=environment, capture_output=True, text=True, timeout=500, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"
        assert done.stdout or command.startswith("clusterucb export"), command
    exported = (project / "selected.jsonl").read_text(encoding="utf-8").splitlines()
    assert exported
    assert all(json.loads(line)["messages"][-1]["role"] == "assistant" for line in exported)


def test_the_files_that_the_readme_names_exist():
    for name in re.findall(r"`((?:clusterucb_core|flows)/[a-z_/]+\.py)`", README):
        assert (ROOT / name).is_file(), name
