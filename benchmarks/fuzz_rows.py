"""A million hostile rows through the readers and the ingest: none may crash, hang or be unaccounted for.

Files are made by `hostile_rows.py` and read one after the other; what must hold is in `reader_oracle.py`. Of
every fourth batch the files are also ingested together as a pool. The log holds a line a batch, and a run
with the same seed goes on where it ends. A file that fails is kept in the folder with its bytes.

    python benchmarks/fuzz_rows.py --folder FOLDER [--rows 1000000] [--seed 0] [--out FILE]
    python benchmarks/fuzz_rows.py --replay FOLDER/found/NAME
"""

import argparse
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hostile_rows import HostileFile, hostile_file
from reader_oracle import Outcome, check_ingest, check_pool_file, watchdog

FILES_A_BATCH, ROWS_A_FILE = 10, 150
INGEST_EVERY = 4


def run_batch(folder: Path, seed: int, number: int) -> dict[str, Any]:
    """Make and read the files of one batch and return its line of the log.

    Args:
        folder: findings go to `found` below it.
        seed: of the run.
        number: of the batch.
    """
    began = time.perf_counter()
    total, findings, known = Outcome(), list[str](), 0
    damages, readable = Counter[str](), list[str]()
    slowest = 0.0
    scratch = Path(tempfile.mkdtemp(prefix="rows-", dir=_memory_folder()))
    try:
        for place in range(FILES_A_BATCH):
            made = hostile_file(
                f"{seed}/{number}/{place}", 1 + (number * 37 + place * 53) % (2 * ROWS_A_FILE)
            )
            damages[made.damage.split(",")[0]] += 1
            path = scratch / f"{place}{made.suffix}"
            path.write_bytes(made.content)
            began_file = time.process_time()
            outcome = _read(path, made, folder, findings)
            slowest = max(slowest, time.process_time() - began_file)
            known += made.rows is not None
            if outcome is not None:
                total.add(outcome)
                readable += [] if outcome.refused else [path.name]
        if number % INGEST_EVERY == 0 and readable and not findings:
            _ingest(scratch, readable, total, (folder, number, findings))
    finally:
        shutil.rmtree(scratch)
    return {
        "batch": number, "rows": total.rows, "files": FILES_A_BATCH, "counted_files": known,
        "refused_files": total.refused, "samples": total.samples, "rows_kept": total.rows_kept,
        "quarantined": dict(total.quarantined), "damage": dict(damages), "slowest_file_s": round(slowest, 3),
        "seconds": round(time.perf_counter() - began, 3), "findings": findings,
        "ingested": int(number % INGEST_EVERY == 0 and bool(readable)),
    }  # fmt: skip


def _read(path: Path, made: HostileFile, folder: Path, findings: list[str]) -> Outcome | None:
    try:
        with watchdog():
            return check_pool_file(path, written=made.rows)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        (folder / "found").mkdir(exist_ok=True)
        name = f"{len(list((folder / 'found').iterdir()))}{made.suffix}"
        shutil.copy(path, folder / "found" / name)
        findings.append(f"{name}: {type(error).__name__}: {str(error)[:300]}")
        print(findings[-1], file=sys.stderr, flush=True)
        return None


def _ingest(scratch: Path, names: list[str], total: Outcome, to: tuple[Path, int, list[str]]) -> None:
    folder, number, findings = to
    try:
        with watchdog(20):
            check_ingest(scratch, names, total, scratch / "state")
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what is looked for
        shutil.copytree(scratch, folder / "found" / f"pool-{number}")
        findings.append(f"pool-{number}: {type(error).__name__}: {str(error)[:300]}")
        print(findings[-1], file=sys.stderr, flush=True)


def run(folder: Path, rows: int, seed: int) -> None:
    """Run batches until the log has so many rows."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"rows-{seed}.jsonl"
    lines = _lines(log)
    done, told = sum(line["rows"] for line in lines), time.monotonic()
    number = len(lines)
    while done < rows:
        line = run_batch(folder, seed, number)
        line["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        with log.open("a") as file:
            file.write(json.dumps(line) + "\n")
        done += line["rows"]
        number += 1
        if time.monotonic() - told > 10:
            told = time.monotonic()
            print(f"{done:,} of {rows:,} rows in {number:,} batches", file=sys.stderr, flush=True)


def summary(folder: Path, seed: int) -> dict[str, Any]:
    """Return what the batches of a seed come to together."""
    lines = _lines(folder / f"rows-{seed}.jsonl")
    sums = {
        key: sum(line[key] for line in lines)
        for key in ("rows", "files", "counted_files", "refused_files", "samples", "rows_kept", "ingested", "seconds")  # noqa: E501
    }  # fmt: skip
    quarantined, damages = Counter[str](), Counter[str]()
    for line in lines:
        quarantined.update(line["quarantined"])
        damages.update(line["damage"])
    return {
        "seed": seed,
        "batches": len(lines),
        **sums,
        "seconds": round(sums["seconds"]),
        "quarantined": dict(quarantined.most_common()),
        "damaged_files": dict(damages.most_common()),
        "slowest_file_s": max(line["slowest_file_s"] for line in lines),
        "peak_memory_mib": max(line["peak_mib"] for line in lines),
        "findings": [finding for line in lines for finding in line["findings"]],
    }


def main(line: Sequence[str] | None = None) -> None:
    """Fuzz, or read one kept file again."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, help="log and findings; it is taken up again")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON of the sums; the key `rows` of it is replaced")
    parser.add_argument("--replay", type=Path, help="a file that was kept; its error is shown")
    options = parser.parse_args(line)
    if options.replay:
        with watchdog():
            print(check_pool_file(options.replay))
        return
    if options.folder is None:
        parser.error("--folder is missing; give a folder for log and findings, or --replay FILE")
    run(options.folder, options.rows, options.seed)
    result = summary(options.folder, options.seed)
    print(json.dumps(result, indent=2))
    if options.out:
        command = f"python benchmarks/fuzz_rows.py --rows {options.rows} --seed {options.seed}"
        keep(
            options.out, "rows", {"command": command, "date": datetime.now(UTC).date().isoformat(), **result}
        )
    if result["findings"]:
        sys.exit(1)


def keep(out: Path, name: str, result: dict[str, Any]) -> None:
    """Put a result under its name into a JSON file that may hold others."""
    held: dict[str, Any] = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    out.write_text(json.dumps(held | {name: result}, indent=2) + "\n", "utf-8")


def _lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.is_file() else []


def _memory_folder() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


if __name__ == "__main__":
    main()
