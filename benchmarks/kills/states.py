"""What a state folder holds after a kill, and what of it must not be.

Reads artifacts, the catalog (read-only) and the lock files of a state folder, and changes nothing.
"""

import fcntl
import hashlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from clusterucb_core.artifacts import MANIFEST
from clusterucb_core.lm.checkpoints import CHECKPOINT

# Made anew by a run that found an older one of no use: it holds what the run said, not what it computed.
RESULTS = "runs"
# What must be the same byte for byte whoever computed it, and however often it was interrupted.
EXACT = (".npy", ".safetensors", "selected.txt", "sample_ids.txt")
# By version: its rows, ranks and ids; each must be as many as the version says.
WHOLE_VERSIONS = """
SELECT selection_version, n_selected, count(rank), count(DISTINCT rank), count(DISTINCT sample_id), max(rank)
FROM selections LEFT JOIN selection_samples USING (selection_version) GROUP BY ALL
"""
WHOLE_POOLS = """
SELECT pool_version, n_samples, (SELECT count(*) FROM pool_samples m WHERE m.pool_version = p.pool_version),
    n_quarantined, (SELECT count(*) FROM quarantine q WHERE q.pool_version = p.pool_version)
FROM pools p
"""
# Rows that must not be: each query counts them.
NEVER = {
    "samples of a pool without a text": "FROM pool_samples ANTI JOIN samples USING (sample_id)",
    "selected samples outside of the pool": "FROM selection_samples JOIN selections "
    "USING (selection_version) ANTI JOIN pool_samples USING (pool_version, sample_id)",
    "rows of no version": "FROM selection_samples ANTI JOIN selections USING (selection_version)",
    "pulls of no version": "FROM pulls ANTI JOIN selections USING (selection_version)",
    "evaluations told twice": "FROM (FROM evaluations SELECT count(*) AS n GROUP BY "
    "selection_version, run_id, subject, task, metric, target HAVING n > 1)",
}  # fmt: skip
# What a run leaves in the catalog, apart from numbers, times and names of the call that wrote it.
FINAL = {
    "selection_samples": "FROM selection_samples ORDER BY ALL",
    "pulls": "FROM pulls ORDER BY ALL",
    "selections": "SELECT selection_version, selection_key, run_id, period, target, n_selected, "
    "budget_samples, gradient_evaluations, gradient_evaluations_reused, target_gradient_evaluations, "
    "config_digest FROM selections ORDER BY ALL",
    "pools": "SELECT pool_version, n_samples, n_added, n_removed, n_quarantined, digest FROM pools "
    "ORDER BY ALL",
    "samples": "SELECT sample_id, source, messages, first_pool_version FROM samples ORDER BY ALL",
    "pool_samples": "FROM pool_samples ORDER BY ALL",
    "quarantine": "FROM quarantine ORDER BY ALL",
    "exclusions": "FROM exclusions ORDER BY ALL",
    "feature_rows": "SELECT feature_space, sample_id FROM feature_rows ORDER BY ALL",
    "clusters": "FROM clusters ORDER BY ALL",
    "evaluations": "FROM evaluations ORDER BY ALL",
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """What lies in a state folder.

    Attributes:
        finished: inode and time of the manifest of every finished artifact, by stage and key.
        checkpoints: inode of every finished checkpoint, also of unfinished trainings, by key and name.
        drafts: unfinished artifacts, with their bytes.
        leftovers: other files and folders that only pass by, with their bytes.
    """

    finished: dict[str, tuple[int, int]]
    checkpoints: dict[str, int]
    drafts: dict[str, int]
    leftovers: dict[str, int]


def read_state(home: Path, scratch: Path) -> State:
    """Return what a state folder and the folder for temporary files hold."""
    root = home / "artifacts"
    passing = [*home.rglob("*.draft"), *(path for path in _files_below(home) if path.suffix == ".tmp")]
    passing += list(scratch.iterdir()) if scratch.is_dir() else []
    return State(
        finished={key: _identity(folder / MANIFEST) for key, folder in finished_artifacts(root)},
        checkpoints=dict(_checkpoints(root / "training")),
        drafts={str(path.relative_to(root)): _bytes(path) for path in _drafts(root)},
        leftovers={str(path): _bytes(path) for path in passing},
    )


def finished_artifacts(root: Path) -> list[tuple[str, Path]]:
    """Return stage and key, and folder, of every finished artifact."""
    found = [*root.glob(f"*/[!.]*/{MANIFEST}"), *root.glob(f"*/[!.]*/[!.]*/{MANIFEST}")]
    return [(str(path.parent.relative_to(root)), path.parent) for path in found]


def recomputed(before: State, after: State) -> list[str]:
    """Return what was finished at one look and is gone or made anew at a later one."""
    changed = [
        f"{key} was finished, and was made anew"
        for key, identity in before.finished.items()
        if not key.startswith(f"{RESULTS}/") and after.finished.get(key) != identity
    ]
    lost = [
        f"checkpoint {name} was finished, and was made anew"
        for name, inode in before.checkpoints.items()
        if after.checkpoints.get(name) != inode
    ]
    return changed + lost


def catalog_findings(home: Path) -> list[str]:
    """Return what is wrong with the catalog of a state folder that no process uses."""
    path = home / "catalog.duckdb"
    if not path.is_file():
        return []
    try:
        with duckdb.connect(str(path), read_only=True) as con:
            if not con.sql("SELECT 1 FROM duckdb_tables() WHERE table_name = 'selections'").fetchall():
                return []
            return [*_half_versions(con), *_unwanted_rows(con)]
    except duckdb.Error as error:
        return [f"the catalog cannot be opened: {error}"]


def lock_findings(home: Path) -> list[str]:
    """Return the locks of a state folder that are held although no process uses it."""
    held: list[str] = []
    if (lock := home / "run.lock").is_file():
        with lock.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.append(f"run.lock is held by {lock.read_text() or 'nobody who says so'}")
    if (database := home / "mlflow.db").is_file():
        try:
            with sqlite3.connect(database, timeout=5, isolation_level=None) as con:
                con.execute("BEGIN IMMEDIATE")
                con.execute("ROLLBACK")
            con.close()
        except sqlite3.Error as error:
            held.append(f"mlflow.db: {error}")
    return held


def final_state(home: Path) -> dict[str, Any]:
    """Return what a finished run must have left, whatever happened before: digests of tables and files."""
    with duckdb.connect(str(home / "catalog.duckdb"), read_only=True) as con:
        tables = {name: _digest(con.sql(query).fetchall()) for name, query in FINAL.items()}
        query = "SELECT selection_version, rank, sample_id FROM selection_samples ORDER BY ALL"
        selected = [list(row) for row in con.sql(query).fetchall()]
    return {"selected": selected, "tables": tables, "files": exact_files(home / "artifacts")}


def exact_files(root: Path) -> dict[str, str]:
    """Return the digest of every file of the finished artifacts that must be the same in every run."""
    return {
        f"{key}/{path.relative_to(folder)}": hashlib.sha256(path.read_bytes()).hexdigest()
        for key, folder in finished_artifacts(root)
        for path in sorted(folder.rglob("*"))
        if path.name.endswith(EXACT)
    }


def stray_files(expected: dict[str, Any], home: Path) -> list[str]:
    """Return the files of an unfinished run that an undisturbed one has not, or has otherwise."""
    found = exact_files(home / "artifacts")
    return [f"{name} is another" for name in found if expected["files"].get(name) != found[name]]


def differences(expected: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return in what a final state differs from that of an undisturbed run."""
    words = [] if expected["selected"] == found["selected"] else ["the selection is another"]
    for kind in ("tables", "files"):
        for name in sorted({*expected[kind], *found[kind]}):
            if expected[kind].get(name) != found[kind].get(name):
                words.append(f"{kind}: {name} differs")
    return words


def _half_versions(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    for version, *counts in con.sql(WHOLE_VERSIONS).fetchall():
        if len(set(counts)) > 1:
            yield f"version {version} is not whole: rows, ranks, ids and last rank are {counts}"
    for version, samples, members, refused, quarantined in con.sql(WHOLE_POOLS).fetchall():
        if (samples, refused) != (members, quarantined):
            counts = f"{members} of {samples} samples, {quarantined} of {refused} rows"
            yield f"pool {version} is not whole: {counts}"


def _unwanted_rows(con: duckdb.DuckDBPyConnection) -> Iterator[str]:
    for name, query in NEVER.items():
        ((count,),) = con.sql(f"SELECT count(*) FROM ({query})").fetchall()
        if count:
            yield f"{count} {name}"


def _checkpoints(folder: Path) -> Iterator[tuple[str, int]]:
    for path in folder.glob(f"*/checkpoint-*/{CHECKPOINT}"):
        owner = path.parent.parent.name
        key = owner.split(".")[1] if owner.startswith(".") else owner
        yield f"{key}/{path.parent.name}", path.stat().st_ino


def _drafts(root: Path) -> Iterator[Path]:
    yield from root.glob("*/.*")
    yield from root.glob("*/[!.]*/.*")


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns


def _files_below(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and "artifacts" not in path.parts)


def _bytes(path: Path) -> int:
    parts = [path] if path.is_file() else path.rglob("*")
    return sum(part.stat().st_size for part in parts if part.is_file())


def _digest(rows: list[tuple[Any, ...]]) -> str:
    return f"{len(rows)} rows {hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()}"
