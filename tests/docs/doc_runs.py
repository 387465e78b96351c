"""Runs what a page shows, in its order and in a folder: writes its files, runs its commands and scripts."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from doc_pages import ROOT, Block, Command, blocks, commands

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe

PACKAGES = ("clusterucb_core", "flows", "tasks")
RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
ROWS_A_FILE = 80
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")
TIMEOUT_S = 900


def write_project(folder: Path) -> None:
    """Write what the pages take for granted: `data/`, `target.jsonl` and `model/`, small."""
    demo = write_demo(folder / "demo", recipe=RECIPE)
    (folder / "data").mkdir()
    for source in demo.pool:
        if source.suffix == ".jsonl":
            lines = source.read_bytes().splitlines(keepends=True)[:ROWS_A_FILE]
            (folder / "data" / f"{source.name}.gz").write_bytes(gzip.compress(b"".join(lines)))
        elif source.name.endswith(".jsonl.gz"):
            lines = gzip.decompress(source.read_bytes()).splitlines(keepends=True)[:ROWS_A_FILE]
            (folder / "data" / source.name).write_bytes(gzip.compress(b"".join(lines)))
    (folder / "target.jsonl").write_bytes(demo.target.read_bytes())
    demo.model.rename(folder / "model")
    shutil.rmtree(folder / "demo")
    # of the usual context length, which the pages take for granted too
    config = folder / "model" / "config.json"
    settings = json.loads(config.read_text("utf-8")) | {"max_position_embeddings": 2048}
    config.write_text(json.dumps(settings), "utf-8")


@dataclass
class PageRun:
    """One page in its folder; `tree` is where the packages are imported from, ours or a changed copy."""

    folder: Path
    environment: dict[str, str]
    tree: Path = ROOT
    scripts: list[str] = field(default_factory=list)

    def run(self, arguments: list[str], place: str) -> str:
        """Run Python with some arguments and return what it printed."""
        done = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.folder,
            env=self.environment | {"PYTHONPATH": str(self.tree)},
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, f"{place}\n{done.stdout[-1000:]}\n{done.stderr[-2000:]}"
        return done.stdout


def play(page: str, run: PageRun, *, elsewhere: Callable[[Command], bool]) -> None:
    """Do what a page shows, block by block; `elsewhere` tells which commands are not run here."""
    for block in blocks(page):
        match block.language:
            case "diff":
                apply_change(block, run)
            case "console":
                for command in commands(block):
                    if not elsewhere(command):
                        run_command(command, run)
            case "python":
                run.scripts.append(block.text)
                run.run(["-c", "\n".join(run.scripts)], f"{page}:{block.line}")
            case _ if block.title:
                write_file(block, run)


def run_command(command: Command, run: PageRun) -> None:
    """Run a command and compare its output with what the page shows of it."""
    words = shlex.split(command.text)
    assert Path(words[0]).name == "clusterucb", (
        f"{command.page}:{command.line}: how is {command.text!r} tested?"
    )
    place = f"{command.page}:{command.line}: {command.text}"
    printed = run.run(["-m", "flows", *words[1:]], place)
    lines = [line.rstrip() for line in printed.splitlines()]
    for wanted in command.shown:
        assert any(is_alike(wanted, line) for line in lines), f"{place} does not print {wanted!r}:\n{printed}"


def is_alike(wanted: str, line: str) -> bool:
    """Tell whether two lines have the same words, and numbers that differ by a tenth or 0.05 at most."""
    # a wider number takes a blank beside it
    if " ".join(NUMBER.sub("#", wanted).split()) != " ".join(NUMBER.sub("#", line).split()):
        return False
    pairs = zip(NUMBER.findall(wanted), NUMBER.findall(line), strict=True)
    values = [[float(text.replace(",", "")) for text in pair] for pair in pairs]
    return all(abs(a - b) <= max(0.05, 0.1 * abs(a)) for a, b in values)


def write_file(block: Block, run: PageRun) -> None:
    """Write the file that a block shows; one of our own packages goes into the changed copy."""
    path = Path(block.title or "")
    if path.parts[0] in PACKAGES:
        copy_tree(run)
    base = run.tree if path.parts[0] in PACKAGES else run.folder
    (base / path).parent.mkdir(parents=True, exist_ok=True)
    (base / path).write_text(block.text, "utf-8")


def apply_change(block: Block, run: PageRun) -> None:
    """Apply a change to the copy: the new lines of each part replace its old ones, which are there once."""
    copy_tree(run)
    path = run.tree / (block.title or "")
    text = path.read_text("utf-8")
    for part in re.split(r"^@@.*\n", block.text, flags=re.MULTILINE)[1:]:
        lines = part.splitlines()
        old = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
        new = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
        assert text.count(old) == 1, (
            f"{block.page}:{block.line}: {text.count(old)} times in {block.title}:\n{old}"
        )
        text = text.replace(old, new)
    path.write_text(text, "utf-8")


def copy_tree(run: PageRun) -> None:
    if run.tree == ROOT:
        run.tree = run.folder / "checkout"
        for package in PACKAGES:
            shutil.copytree(ROOT / package, run.tree / package, ignore=shutil.ignore_patterns("__pycache__"))


def environment_in(folder: Path) -> dict[str, str]:
    """Return the environment of commands: what configures a run is left out, and byte code is kept.

    Each of many processes would compile the libraries anew where their folders have no byte code. On a busy
    machine a Prefect server takes minutes to start.
    """
    ours = ("CLUSTERUCB_", "PREFECT_", "MLFLOW_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    patience = {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600"}
    return {"PYTHONPYCACHEPREFIX": str(folder / "byte code"), **kept, **patience, "HF_HUB_OFFLINE": "1"}
