"""What a killed run loses: SIGKILL at random and at chosen points, then the same command again.

A chain kills one run of the demo ten times, each time starting it again, and then lets it end; what it left
is compared with what an undisturbed run left. After every kill the state folder is looked at: no half
version, no lock that is held, nothing finished that is computed again, no process that lives on.

    python benchmarks/crashes.py --folder FOLDER [--kills 200 --chain 10 --seed 0 --runner mixed]

Every kill is a line of `FOLDER/kills.jsonl`. Called again with the same folder it goes on after the last
whole chain; a chain that was cut off is begun anew.
"""

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kills.attempts import Forge, forge
from kills.chains import Chain, Place, fresh, run_chain, run_undisturbed, timeline_of
from kills.plans import draw_kills
from kills.servers import prefect_server
from kills.states import read_state
from measuring import RESULTS, hardware, today, versions, write_result

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import FULL_RECIPE, TinyModelRecipe
from clusterucb_core.seeds import child_rng

KILLS, REFERENCE = "kills.jsonl", "reference.json"
SHARD_SAMPLES = 128
# who computes the shards of which chains, in turn; processes and Ray take long to start
RUNNERS = ("threads", "threads", "threads", "processes", "threads", "threads", "threads", "ray")
WORKERS = {"threads": 1, "processes": 2, "ray": 2}


@dataclass(frozen=True)
class Setting:
    """What is killed: a configuration with overrides, a server, and a folder for all of it."""

    folder: Path
    config: Path
    overrides: tuple[str, ...]
    api: str
    seed: int

    def arguments(self, runner: str) -> list[str]:
        """Return the command line of a run."""
        own = (f"execution.runner={runner}", f"execution.workers={WORKERS[runner]}", "execution.device=cpu")
        sets = [part for override in (*self.overrides, *own) for part in ("--set", override)]
        return ["run", str(self.config), *sets, "--json"]


def demo_setting(
    folder: Path,
    api: str,
    *,
    seed: int,
    overrides: Sequence[str] = (),
    recipe: TinyModelRecipe = FULL_RECIPE,
) -> Setting:
    """Return the demo with small shards; its files are written where they are not there yet."""
    config = write_demo(folder / "demo", recipe=recipe).config
    return Setting(folder, config, (f"execution.shard_samples={SHARD_SAMPLES}", *overrides), api, seed)


def reference_of(setting: Setting) -> dict[str, Any]:
    """Return what an undisturbed run leaves: kept from an earlier call, or made now."""
    kept = setting.folder / REFERENCE
    if not kept.is_file():
        place = fresh(setting.folder / "reference")
        with _forge(setting, place) as starting:
            found = run_undisturbed(place, starting, setting.arguments("threads"))
        kept.write_text(json.dumps(found), "utf-8")
    return json.loads(kept.read_text("utf-8"))


def kill_chain(setting: Setting, number: int, *, runner: str, kills: int) -> dict[str, Any]:
    """Make one chain, write its lines, and return its record; its folder goes where all is well."""
    reference = reference_of(setting)
    rng = child_rng(setting.seed, "kills", str(number))
    drawn = draw_kills(rng, timeline_of(reference), count=kills, has_workers=runner != "threads")
    place = fresh(setting.folder / f"chain-{number}")
    named = {"chain": number, "seed": setting.seed, "runner": runner}
    with _forge(setting, place) as starting:
        state = read_state(place.home, place.scratch)
        chain = Chain(place, starting, setting.arguments(runner), WORKERS[runner], state)
        lines: list[dict[str, Any]] = []
        record = run_chain(chain, drawn, reference, note=lambda line: lines.append(named | line))
    record = named | {"whole": True} | record
    with (setting.folder / KILLS).open("a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in [*lines, record])
    if not record["findings"]:
        fresh(setting.folder / f"chain-{number}")
    return record


@contextmanager
def _forge(setting: Setting, place: Place) -> Iterator[Forge]:
    variables = {
        "PREFECT_API_URL": setting.api,
        "KILLS_ARMED": str(place.armed),
        "TMPDIR": str(place.scratch),
        "PYTHONPYCACHEPREFIX": str(setting.folder / "bytecode"),
    }
    with forge(place.home, place.home.parent / "run", variables) as starting:
        yield starting


def read_log(folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the whole chains of a folder's log, and the kills that belong to them."""
    path = folder / KILLS
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.is_file() else []
    return [line for line in lines if "whole" in line], [line for line in lines if "whole" not in line]


def summary(folder: Path) -> dict[str, Any]:
    """Return the figures of everything that a folder's log holds."""
    chains, kills = read_log(folder)
    findings = [finding for line in chains for finding in line["findings"]]
    return {
        "chains": len(chains),
        "kills": len(kills),
        "by_runner": dict(Counter(line["runner"] for line in kills)),
        "by_kind": dict(Counter(line["point"] or line["kind"] for line in kills)),
        "by_victim": dict(Counter(line["struck"] for line in kills)),
        "chains_with_findings": sum(bool(line["findings"]) for line in chains),
        "findings": dict(Counter(findings)),
        "lost_shards_at_most": max((line.get("lost_shards", 0) for line in kills), default=0),
        "lost_shards": sum(line.get("lost_shards", 0) for line in kills),
        "other_artifacts_begun_anew": dict(
            Counter(name for line in kills for name in line.get("lost_others", ()))
        ),
        "drafts_at_most": max((line.get("drafts", 0) for line in kills), default=0),
        "leftovers_at_most": max((len(line["leftovers"]) for line in chains), default=0),
    }


def report(found: dict[str, Any]) -> None:
    """Print the figures."""
    for name, value in found.items():
        print(f"{name.replace('_', ' '):28} {value}")


def main(arguments: list[str] | None = None) -> None:
    """Kill until there are as many as asked for, print, and keep the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--folder", type=Path, required=True, help="log, demo and state folders; goes on there"
    )
    for name, default in (("kills", 200), ("chain", 10), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--runner", choices=["mixed", *WORKERS], default="mixed", help="who computes shards")
    parser.add_argument("--out", type=Path, default=RESULTS / "crashes.json")
    given = parser.parse_args(arguments)
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with prefect_server(folder / "server") as api:
        setting = demo_setting(folder, api, seed=given.seed)
        while (done := read_log(folder)) and len(done[1]) < given.kills:
            number = len(done[0])
            runner = RUNNERS[number % len(RUNNERS)] if given.runner == "mixed" else given.runner
            record = kill_chain(setting, number, runner=runner, kills=given.chain)
            print(json.dumps(record), flush=True)
    found = summary(folder)
    report(found)
    facts = {
        "date": today(), "hardware": hardware(torch.device("cpu")), "cores": os.cpu_count(),
        "versions": versions("prefect", "mlflow", "duckdb", "ray", "torch", "clusterucb"),
    }  # fmt: skip
    write_result(given.out, facts | found)


if __name__ == "__main__":
    main()
