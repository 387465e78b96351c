"""The example in plain Python, on the demo's families and its tiny model, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clusterucb_core.demo.families import FAMILIES, TARGET_FAMILY, draw_different, generator_of
from clusterucb_core.demo.tiny_model import TinyModelRecipe, write_tiny_model
from clusterucb_core.seeds import child_rng

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "plain_python.py"
RECIPE = TinyModelRecipe(
    vocabulary=512, tokenizer_texts=500, hidden=32, layers=2, heads=4, steps=40, batch_samples=16
)
# Runs the example as its command does, and then tells on stderr what was imported.
RUN = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
print("\\nimported", *(name for name in sys.modules if name.split(".")[0] in {others}), file=sys.stderr)
"""
OTHERS = {"prefect", "mlflow", "duckdb", "flows", "tasks"}
OF_EACH, SELECTED = 20, 12


def conversations(family: str, count: int, seed: int) -> list[list[dict[str, str]]]:
    exchanges = draw_different(generator_of(family), count, rng=child_rng(seed, "example", family))
    return [
        [{"role": "user", "content": item.prompt}, {"role": "assistant", "content": item.completion}]
        for item in exchanges
    ]


def write_lines(path: Path, found: list[list[dict[str, str]]]) -> Path:
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in found), encoding="utf-8")
    return path


@pytest.mark.slow
def test_the_example_selects_the_family_of_the_target_and_needs_no_orchestrator(tmp_path):
    write_tiny_model(tmp_path / "model", seed=0, recipe=RECIPE)
    pool = {family: conversations(family, OF_EACH, seed=0) for family in FAMILIES}
    every = write_lines(tmp_path / "pool.jsonl", [turns for found in pool.values() for turns in found])
    target = write_lines(tmp_path / "target.jsonl", conversations(TARGET_FAMILY, 8, seed=1))
    script = RUN.format(others=OTHERS)
    line = [sys.executable, "-c", script, EXAMPLE, tmp_path / "model", every, target, SELECTED]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        list(map(str, line)), env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.splitlines()[-1] == "imported"
    rows = [json.loads(text) for text in done.stdout.splitlines()]
    influence = [row["influence"] for row in rows]
    assert len({json.dumps(row["messages"]) for row in rows}) == SELECTED
    assert influence == sorted(influence, reverse=True)
    share = sum(row["messages"] in pool[TARGET_FAMILY] for row in rows) / SELECTED
    assert share > 0.6, f"chance gives {1 / len(FAMILIES)}"


def test_the_example_is_of_the_size_of_a_notebook_cell():
    text = EXAMPLE.read_text(encoding="utf-8")
    body = text[text.index("def select(") : text.index("def main(")]
    code = [line for line in body.splitlines() if line.strip() and not line.strip().startswith("#")]
    assert len(code) <= 40
    assert "flows" not in text
    assert "prefect" not in text
