"""What a killed run loses: SIGKILL at random and at chosen points, then the same command again.

A chain kills one run of the demo ten times, each time starting it again, and then lets it end; what it left
is compared with what an undisturbed run left. After every kill the state folder is looked at: no half
version, no lock that is held, nothing finished that is computed again, no process that lives on.

    python benchmarks/crashes.py --folder FOLDER [--kills 200 --chain 10 --seed 0 --runner mixed]
    python benchmarks/crashes.py --folder FOLDER --runner services --kills 30
    python benchmarks/crashes.py --folder FOLDER --data --kills 20 --set pool.max_samples=2000

`--runner services` kills PostgreSQL, the Prefect server and MLflow instead, in a local stack of its own.
`--data` kills the run on real data (it needs `CLUSTERUCB_DATA` and `CLUSTERUCB_MODELS`), each time from one
of eight saved states, and goes on to the next one only.

Every kill is a line of `FOLDER/kills.jsonl`. Called again with the same folder it goes on after the last
whole chain; a chain that was cut off is begun anew.
"""

import argparse
import fcntl
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from kills.attempts import Forge, forge
from kills.chains import Chain, Place, fresh, run_chain, run_undisturbed, timeline_of
from kills.plans import Kill, draw_kills, draw_service_kills
from kills.saved import copied_place, kill_in_stretch, save_states, saved_states, stretches
from kills.servers import LocalStack, local_stack, prefect_server
from kills.states import read_state
from measuring import RESULTS, hardware, today, versions, write_result

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import FULL_RECIPE, TinyModelRecipe
from clusterucb_core.seeds import child_rng

KILLS, REFERENCE = "kills.jsonl", "reference.json"
SHARD_SAMPLES = 128
# of the run on real data: it is saved at the beginning of each
STRETCHES = 8
# who computes the shards of which chains, in turn; processes and Ray take long to start
SERVICES = "services"
RUNNERS = ("threads", "threads", "threads", "processes", "threads", "threads", "threads", "ray")
WORKERS = {"threads": 1, "processes": 2, "ray": 2, SERVICES: 1}


@dataclass(frozen=True)
class Setting:
    """What is killed: a configuration with overrides, where its services are, a folder for all of it."""

    folder: Path
    config: Path
    overrides: tuple[str, ...]
    addresses: dict[str, str]
    seed: int
    stack: LocalStack | None = None

    def arguments(self, runner: str) -> list[str]:
        """Return the command line of a run."""
        kind = "threads" if runner == SERVICES else runner
        own = (f"execution.runner={kind}", f"execution.workers={WORKERS[runner]}", "execution.device=cpu")
        sets = [part for override in (*self.overrides, *own) for part in ("--set", override)]
        return ["run", str(self.config), *sets, "--json"]


def demo_setting(
    folder: Path,
    addresses: dict[str, str],
    *,
    seed: int,
    overrides: Sequence[str] = (),
    recipe: TinyModelRecipe = FULL_RECIPE,
) -> Setting:
    """Return the demo with small shards; its files are written where they are not there yet."""
    config = write_demo(folder / "demo", recipe=recipe).config
    return Setting(folder, config, (f"execution.shard_samples={SHARD_SAMPLES}", *overrides), addresses, seed)


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
    timeline = timeline_of(reference)
    if setting.stack is not None:
        drawn = draw_service_kills(rng, timeline, count=kills, services=setting.stack.SERVICES)
    else:
        drawn = draw_kills(rng, timeline, count=kills, has_workers=runner != "threads")
    place = fresh(setting.folder / f"chain-{number}")
    named = {"chain": number, "seed": setting.seed, "runner": runner}
    with _forge(setting, place) as starting:
        state = read_state(place.home, place.scratch)
        chain = Chain(place, starting, setting.arguments(runner), WORKERS[runner], state, setting.stack)
        lines: list[dict[str, Any]] = []
        record = run_chain(chain, drawn, reference, note=lambda line: _note(lines, named | line))
    record = named | {"whole": True} | record
    with (setting.folder / KILLS).open("a", encoding="utf-8") as file:
        file.writelines(f"{json.dumps(line)}\n" for line in [*lines, record])
    if not record["findings"]:
        fresh(setting.folder / f"chain-{number}")
    return record


@contextmanager
def served_setting(folder: Path, given: argparse.Namespace, *, services: bool) -> Iterator[Setting]:
    """Yield the demo beside a running Prefect server, or beside a local stack whose services are victims."""
    own = {"seed": given.seed, "overrides": given.overrides}
    if services:
        with local_stack(folder / "services") as stack:
            yield replace(demo_setting(folder, stack.addresses, **own), stack=stack)
        return
    with prefect_server(folder / "server") as api:
        yield demo_setting(folder, {"PREFECT_API_URL": api}, **own)


@contextmanager
def _forge(setting: Setting, place: Place) -> Iterator[Forge]:
    variables = {
        "KILLS_ARMED": str(place.armed),
        "TMPDIR": str(place.scratch),
        "PYTHONPYCACHEPREFIX": str(setting.folder / "bytecode"),
        **setting.addresses,
    }
    with forge(place.home, place.home.parent / "run", variables) as starting:
        yield starting


def _note(lines: list[dict[str, Any]], line: dict[str, Any]) -> None:
    print(json.dumps(line), file=sys.stderr, flush=True)
    lines.append(line)


def data_setting(folder: Path, api: str, *, seed: int, overrides: Sequence[str] = ()) -> Setting:
    """Return the run on real data of the examples."""
    config = Path(__file__).resolve().parents[1] / "examples" / "gsm8k_tiny_llama.yaml"
    overrides = (f"execution.shard_samples={SHARD_SAMPLES}", *overrides)
    return Setting(folder, config, overrides, {"PREFECT_API_URL": api}, seed)


def kill_on_data(setting: Setting, number: int) -> dict[str, Any]:
    """Kill the run on real data once, from a saved state that is drawn; return the record."""
    reference = reference_of(setting)
    timeline, saved = timeline_of(reference), _saved(setting, reference)
    rng = child_rng(setting.seed, "kills on data", str(number))
    stretch = int(rng.integers(STRETCHES))
    begin, length = stretches(timeline, STRETCHES)[stretch], timeline.total_s / STRETCHES
    kill = Kill("time", "flow", *timeline.place(begin + float(rng.uniform(0, length))))
    place = copied_place(setting.folder / f"chain-{number}", saved[stretch])
    end = saved[stretch + 1] if stretch + 1 < STRETCHES else None
    with _forge(setting, place) as starting:
        state = read_state(place.home, place.scratch)
        chain = Chain(place, starting, setting.arguments("threads"), WORKERS["threads"], state)
        record = kill_in_stretch(chain, kill, reference, end=end)
    named = {"chain": number, "seed": setting.seed, "runner": "threads", "stretch": stretch}
    return named | asdict(kill) | {"leftovers": {}} | record


def _saved(setting: Setting, reference: dict[str, Any]) -> Sequence[Path]:
    """Return the saved states of the run, made where they are not all there."""
    folder = setting.folder / "saved"
    if (found := saved_states(folder, STRETCHES)) is not None:
        return found
    place = fresh(setting.folder / "saving")
    with _forge(setting, place) as starting:
        state = read_state(place.home, place.scratch)
        chain = Chain(place, starting, setting.arguments("threads"), WORKERS["threads"], state)
        save_states(chain, timeline_of(reference), count=STRETCHES, folder=folder)
    if chain.findings:
        raise RuntimeError(f"the states could not be saved: {chain.findings}")
    return [folder / str(number) for number in range(STRETCHES)]


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
        "by_kind": dict(Counter(_moment(line) for line in kills)),
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


def _moment(line: dict[str, Any]) -> str:
    return line["point"] if line.get("at_point") else "starting" if line["kind"] == "starting" else "any time"


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
    parser.add_argument("--data", action="store_true", help="kill the run on real data, from saved states")
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="of the run"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "crashes.json")
    given = parser.parse_args(arguments)
    folder = given.folder.absolute()
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            parser.error(f"another call kills runs in {folder}; wait for its end, or name another folder")
        signal.signal(
            signal.SIGTERM, lambda *_: sys.exit(1)
        )  # what was started ends with the blocks that did
        if given.data:
            _kill_all_on_data(folder, given)
        else:
            _kill_all(folder, given)
    found = summary(folder)
    report(found)
    facts = {
        "date": today(), "hardware": hardware(torch.device("cpu")), "cores": os.cpu_count(),
        "overrides": given.overrides,
        "versions": versions("prefect", "mlflow", "duckdb", "ray", "torch", "clusterucb"),
    }  # fmt: skip
    write_result(given.out, facts | found)


def _kill_all(folder: Path, given: argparse.Namespace) -> None:
    with served_setting(folder, given, services=given.runner == SERVICES) as setting:
        while len((done := read_log(folder))[1]) < given.kills:
            number = _next_number(done)
            runner = RUNNERS[number % len(RUNNERS)] if given.runner == "mixed" else given.runner
            record = kill_chain(setting, number, runner=runner, kills=given.chain)
            print(json.dumps(record), flush=True)


def _kill_all_on_data(folder: Path, given: argparse.Namespace) -> None:
    with prefect_server(folder / "server") as api, (folder / KILLS).open("a", encoding="utf-8") as file:
        setting = data_setting(folder, api, seed=given.seed, overrides=given.overrides)
        while len((done := read_log(folder))[1]) < given.kills:
            line = kill_on_data(setting, _next_number(done))
            whole = {"chain": line["chain"], "runner": "threads", "whole": True, "leftovers": {}}
            lines = [line, whole | {"findings": line.get("findings", [])}]
            file.writelines(f"{json.dumps(one)}\n" for one in (lines[1:] if "missed" in line else lines))
            file.flush()
            print(json.dumps(line), flush=True)


def _next_number(done: tuple[list[dict[str, Any]], list[dict[str, Any]]]) -> int:
    return 1 + max((int(line["chain"]) for line in done[0]), default=-1)


if __name__ == "__main__":
    main()
