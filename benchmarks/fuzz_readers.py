"""Coverage-guided fuzzing of the readers of pool files, target files and configurations.

The first byte chooses reader, container and compression, the second the shape that is asked for, the rest is
the file's content; the seeds of the corpus are made files of every kind. What must hold is in
`reader_oracle.py`. Needs atheris (`requirements-atheris.lock`); libFuzzer ends the process by itself, so a
log of one JSON object a line is kept while it runs, and a finding is written to the corpus folder as a file.

    python benchmarks/fuzz_readers.py --folder FOLDER [--seconds 3600] [--configs] [--replay FILE]
"""

import argparse
import gzip
import json
import os
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["clusterucb_core"]):
    import reader_oracle

    if "--configs" in sys.argv:
        import clusterucb_core.config  # noqa: F401 - to be measured as well

import zstandard
from hostile_rows import SHAPES, hostile_file

from clusterucb_core.pool.formats import FormatName

_POOL = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
_FORMATS: tuple[FormatName, ...] = ("auto", "auto", "auto", *SHAPES)  # type: ignore[assignment]
# The content is packed after it was made, so that what lies in a package is reached; or it is the package.
_PACKAGES = ("", "", "", ".gz", ".zst", "raw.gz", "raw.zst")
_KINDS = (
    *[("pool", suffix) for suffix in _POOL],
    ("target", ".jsonl"),
    ("target", ".json"),
    ("config", ".yaml"),
)
_CONFIG = b"""pool: {sources: [{path: pool.jsonl, format: auto}], min_chars: 1, dedupe: prompt}
target: &t {name: sums, validation: $HOME/target.jsonl, test: ~/a}
model: {base: model, max_length: 2048, lora: {r: 8, target_modules: [q_proj]}}
selection: {budget_fraction: 0.2, policy: ucb_beta}
seed: 1_000
finetune: {learning_rate: 2.0e-5, epochs: !!int "4"}
? [a, b]
: 2001-12-14t21:59:43.10-05:00
execution: {runner: threads, <<: {workers: auto}}
"""


@dataclass(frozen=True)
class Case:
    """One input of the fuzzer, taken apart."""

    kind: str
    suffix: str
    format_name: FormatName
    content: bytes


def case_of(data: bytes) -> Case | None:
    """Return what an input stands for; None where it is too short."""
    if len(data) < 2:
        return None
    kind, suffix = _KINDS[data[0] % len(_KINDS)]
    package = _PACKAGES[data[0] // len(_KINDS) % len(_PACKAGES)] if kind != "config" else ""
    content = data[2:]
    if package == ".gz":
        content = gzip.compress(content, 1)
    elif package == ".zst":
        content = zstandard.compress(content, 1)
    return Case(kind, suffix + package.removeprefix("raw"), _FORMATS[data[1] % len(_FORMATS)], content)


def data_of(kind: str, suffix: str, format_name: str, content: bytes) -> bytes:
    """Return the input that stands for a file, as `case_of` reads it."""
    container, _, package = suffix.partition(".gz") if suffix.endswith(".gz") else suffix.partition(".zst")
    first = _KINDS.index((kind, container))
    if package := suffix.removeprefix(container):
        first += len(_KINDS) * _PACKAGES.index("raw" + package)
    return bytes([first, _FORMATS.index(format_name)]) + content  # type: ignore[arg-type]


def check_case(case: Case, folder: Path) -> None:
    """Write a case to a file and read it.

    Raises:
        Violation: something that must hold does not; any other error is a finding too.
    """
    path = folder / f"case{case.suffix}"
    path.write_bytes(case.content)
    with reader_oracle.watchdog():
        if case.kind == "pool":
            written = _lines(case.content) if case.suffix == ".jsonl" else None
            reader_oracle.check_pool_file(path, written=written, format_name=case.format_name)
        elif case.kind == "target":
            reader_oracle.check_target_file(path)
        else:
            reader_oracle.check_config_file(path)


def write_seeds(folder: Path, count: int, *, configs: bool) -> None:
    """Write made files of every kind as inputs of the fuzzer."""
    folder.mkdir(parents=True, exist_ok=True)
    if configs:
        (folder / "config").write_bytes(data_of("config", ".yaml", "auto", _CONFIG))
        return
    for number in range(count):
        made = hostile_file(f"seed-{number}", 1 + number % 4)
        if len(made.content) < 20_000:
            (folder / f"pool-{number}").write_bytes(data_of("pool", made.suffix, "auto", made.content))
        if made.suffix in (".jsonl", ".json"):
            (folder / f"target-{number}").write_bytes(data_of("target", made.suffix, "auto", made.content))


class Log:
    """One line every few seconds: seconds, executions and edges seen; the last line of a run is its sum."""

    def __init__(self, path: Path, every_s: float = 5.0) -> None:
        self._path, self._every_s = path, every_s
        self._began = self._written = time.monotonic()
        self._cpu = time.process_time()
        self._run = f"{int(time.time())}-{os.getpid()}"
        self.executions = 0

    def count(self) -> None:
        """Count an execution, and write a line where the last one is old."""
        self.executions += 1
        if time.monotonic() - self._written > self._every_s:
            self.write()

    def write(self, **more: object) -> None:
        """Write a line."""
        self._written = time.monotonic()
        line = {
            "run": self._run,
            "seconds": round(self._written - self._began, 1),
            "cpu_seconds": round(time.process_time() - self._cpu, 1),
            "executions": self.executions,
        }
        with self._path.open("a") as file:
            file.write(json.dumps(line | more) + "\n")


def fuzz(folder: Path, seconds: int, *, configs: bool, extra: list[str]) -> None:
    """Fuzz for so many seconds; does not return, for libFuzzer ends the process."""
    corpus, found = folder / "corpus", folder / "found"
    if not corpus.is_dir():
        write_seeds(corpus, 400, configs=configs)
    found.mkdir(exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    log = Log(folder / "log.jsonl")

    def one(data: bytes) -> None:
        case = case_of(data)
        if case is None or (case.kind == "config") != configs:
            return
        try:
            check_case(case, scratch)
        except BaseException as error:
            log.write(finding=f"{type(error).__name__}: {str(error)[:200]}")
            raise
        log.count()

    arguments = [
        sys.argv[0], f"-max_total_time={seconds}", "-timeout=60", "-rss_limit_mb=3000", "-max_len=60000",
        "-print_final_stats=1", f"-artifact_prefix={found}/", *extra, str(corpus),
    ]  # fmt: skip
    atheris.Setup(arguments, one)
    atheris.Fuzz()


def summary(folder: Path) -> dict[str, Any]:
    """Return what the runs of a folder come to together."""
    last: dict[str, dict[str, Any]] = {}
    findings: list[str] = []
    for line in (folder / "log.jsonl").read_text("utf-8").splitlines():
        entry = json.loads(line)
        last[entry["run"]] = entry
        if "finding" in entry:
            findings.append(entry["finding"])
    edges = [int(cov) for path in folder.glob("*.out")
             for cov in re.findall(r"cov: (\d+)", path.read_text("utf-8", "replace"))]  # fmt: skip
    return {
        "runs": len(last),
        "seconds": round(sum(entry["seconds"] for entry in last.values())),
        "cpu_seconds": round(sum(entry["cpu_seconds"] for entry in last.values())),
        "executions": sum(entry["executions"] for entry in last.values()),
        "edges_covered": max(edges, default=None),
        "corpus": sum(1 for _ in (folder / "corpus").iterdir()),
        "findings": findings,
    }


def main(line: list[str] | None = None) -> None:
    """Fuzz, replay a finding, or sum up."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--folder", type=Path, required=True, help="corpus, findings and log; it is taken up again"
    )
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--replay", type=Path, help="an input that was found; its error is shown")
    parser.add_argument("--summary", action="store_true", help="print what the runs so far come to")
    parser.add_argument(
        "--configs", action="store_true", help="fuzz configurations instead of pool and target files"
    )
    options, extra = parser.parse_known_args(line)
    options.folder.mkdir(parents=True, exist_ok=True)
    if options.summary:
        print(json.dumps(summary(options.folder), indent=2))
    elif options.replay:
        case = case_of(options.replay.read_bytes())
        print(case)
        if case:
            with tempfile.TemporaryDirectory() as scratch:
                check_case(case, Path(scratch))
    else:
        fuzz(options.folder, options.seconds, configs=options.configs, extra=extra)


def _lines(content: bytes) -> int:
    """Count the lines that are not blank, which is how many rows a file of JSON lines has."""
    return sum(1 for line in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip())


if __name__ == "__main__":
    main()
