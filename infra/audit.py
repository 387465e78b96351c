"""Ask for known vulnerabilities of every package of the lock files; exit 1 where one has no valid exception.

Runs pip-audit, which asks PyPI, and reads `requirements*.lock` and `infra/audit_exceptions.toml`. First it
asks about a version that is known to be vulnerable. Where the answer does not say so, as that of a mirror,
which has no page of a version, it asks for the page of each package, which tells of its newest release: the
packages that are locked at that one are audited. The others are named, unless the file of exceptions tells
what holds them and what somebody read of their newer releases. Where nobody can tell anything, this says so
in one line and exits 0: a change can be tested without a network. With `--required` it fails unless
everything was audited or read.
"""

import argparse
import json
import subprocess
import sys
import tomllib
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import httpx
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
EXCEPTIONS = ROOT / "infra" / "audit_exceptions.toml"
# Any answer that can be relied on names GHSA-q2x7-8rv6-6q7h, a way out of Jinja's sandbox.
KNOWN = "jinja2==3.1.4"
# And of every release of this one GHSA-wj6h-64fc-37mp: its timing tells signing keys, and will not be mended.
KNOWN_NEWEST = "ecdsa"
PAGE = "https://pypi.org/pypi/{name}/json"
# An index that answers slowly is asked about some hundred packages.
TIMEOUT_S = 1200
PAGE_TIMEOUT_S, PAGES_AT_ONCE = 60.0, 4


@dataclass(frozen=True)
class Allowed:
    """An exception: a vulnerability of a package, or with id `unknown` a package that PyPI does not know."""

    id: str
    package: str
    reason: str
    until: date


@dataclass(frozen=True)
class Held:
    """A package that is not locked at its newest release: what holds it, and what was read of newer ones."""

    package: str
    version: str
    by: str
    read: str
    until: date


def read_exceptions(text: str) -> list[Allowed]:
    """Return the exceptions of a TOML file; each has `id`, `package`, `reason` and `until`."""
    return [Allowed(**entry) for entry in tomllib.loads(text).get("exception", [])]


def read_held(text: str) -> list[Held]:
    """Return the held packages of a TOML file; each has `package`, `version`, `by`, `read` and `until`."""
    return [Held(**entry) for entry in tomllib.loads(text).get("held", [])]


def unread(
    untold: Collection[str], locked: Iterable[tuple[str, str]], held: Iterable[Held], today: date
) -> list[str]:
    """Return which of these packages no entry speaks of at the version that is locked, until today."""
    read = {(one.package, one.version) for one in held if one.until >= today}
    return [name for name, version in sorted(locked) if name in untold and (name, version) not in read]


def problems_of(report: dict[str, Any], allowed: Iterable[Allowed], today: date) -> list[str]:
    """Return what is wrong: findings without a valid exception, and exceptions without a finding.

    Args:
        report: what pip-audit writes as JSON.
        allowed: the exceptions.
        today: an exception holds up to and including its last day.
    """
    found = findings_of(report)
    valid = {(one.id, one.package.lower()) for one in allowed if one.until >= today}
    named = {alias: place for place, aliases in found.items() for alias in aliases}
    excused = {named[key] for key in valid if key in named}
    problems = [
        f"{package} {version}: {identifier}; raise its version, or explain it in {EXCEPTIONS.name}"
        for (identifier, package, version) in found
        if (identifier, package, version) not in excused
    ]
    for one in allowed:
        if (one.id, one.package.lower()) not in named:
            problems.append(f"the exception {one.id} for {one.package} is needed no more")
        elif one.until < today:
            problems.append(f"the exception {one.id} for {one.package} ended on {one.until}")
    return problems


def findings_of(report: dict[str, Any]) -> dict[tuple[str, str, str], set[tuple[str, str]]]:
    """Return each finding as id, package and version, with the pairs of id and package that may name it."""
    found: dict[tuple[str, str, str], set[tuple[str, str]]] = {}
    for package in report["dependencies"]:
        name = package["name"].lower()
        if "skip_reason" in package:
            found["unknown", name, ""] = {("unknown", name)}
        for flaw in package.get("vulns", ()):
            found[flaw["id"], name, package["version"]] = {
                (one, name) for one in (flaw["id"], *flaw["aliases"])
            }
    return found


def ask(requirements: Sequence[Path]) -> dict[str, Any] | None:
    """Return pip-audit's report on requirement files, or None where it could not make one."""
    line = [
        sys.executable,
        "-m",
        "pip_audit",
        "--no-deps",
        "--disable-pip",
        "--progress-spinner=off",
        "--format=json",
    ]
    files = [part for path in requirements for part in ("--requirement", str(path))]
    done = subprocess.run([*line, *files], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)  # noqa: S603 - our own line
    try:
        return json.loads(done.stdout)
    except ValueError:
        print(*done.stderr.strip().splitlines()[-1:], sep="\n", file=sys.stderr)
        return None


def can_tell(folder: Path) -> bool:
    """Tell whether pip-audit finds what is known of a version; its requirement is written to a folder."""
    path = folder / "known-to-be-vulnerable.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{KNOWN}\n", encoding="utf-8")
    report = ask([path])
    return report is not None and any(package.get("vulns") for package in report["dependencies"])


def locked_versions(texts: Iterable[str]) -> set[tuple[str, str]]:
    """Return name and version of every package of lock files."""
    lines = [line.partition(" #")[0].strip() for text in texts for line in text.splitlines()]
    pins = [Requirement(line) for line in lines if line and not line.startswith(("#", "-"))]
    return {(canonicalize_name(pin.name), next(iter(pin.specifier)).version) for pin in pins}


def newest_release(name: str) -> dict[str, Any] | None:
    """Return the newest release of a package as pip-audit would report it; None where nobody tells."""
    try:
        answer = httpx.get(PAGE.format(name=name), timeout=PAGE_TIMEOUT_S, follow_redirects=True)
        page = answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError):
        return None
    flaws: list[dict[str, Any]] = []
    for flaw in page["vulnerabilities"]:
        known = {name for other in flaws for name in (other["id"], *other["aliases"])}
        if not flaw.get("withdrawn") and flaw["id"] not in known:  # two databases may tell of the same
            flaws.append(flaw)
    return {"name": name, "version": page["info"]["version"], "vulns": flaws}


def report_on_newest(locked: Iterable[tuple[str, str]]) -> tuple[dict[str, Any], list[str]]:
    """Return a report on what is locked at its newest release, and the names of all other packages."""
    pins = sorted(locked)
    with ThreadPoolExecutor(PAGES_AT_ONCE) as pool:
        pages = list(pool.map(newest_release, [name for name, _ in pins]))
    told: list[dict[str, Any]] = []
    untold: list[str] = []
    for (name, version), page in zip(pins, pages, strict=True):
        if page is not None and Version(page["version"]).public == Version(version).public:
            told.append(page)
        else:
            untold.append(name)
    return {"dependencies": told}, untold


def main(arguments: Sequence[str] | None = None) -> int:
    """Audit the lock files and return the exit status: 0 where every finding is explained, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--required", action="store_true", help="fail where nobody can tell")
    required: bool = parser.parse_args(arguments).required
    locks = sorted(ROOT.glob("requirements*.lock"))
    locked = locked_versions(path.read_text("utf-8") for path in locks)
    text, today = EXCEPTIONS.read_text("utf-8"), date.today()
    allowed = read_exceptions(text)
    report, untold = (ask(locks), list[str]()) if can_tell(ROOT / "build") else (None, [])
    if report is None and (page := newest_release(KNOWN_NEWEST)) is not None and page["vulns"]:
        report, untold = report_on_newest(locked)
        allowed = [one for one in allowed if canonicalize_name(one.package) not in untold]
    if report is None:
        print(
            f"NOT AUDITED: no answer about {KNOWN}, which is known to be vulnerable; {len(locks)} lock files "
            "were not compared with any advisory. Run make audit where PyPI can be reached.",
            file=sys.stderr,
        )
        return int(required)
    if silent := unread(untold, locked, read_held(text), today):
        print(
            f"NOT AUDITED: {len(silent)} packages that are not locked at their newest release, and this "
            f"index tells of no other: {', '.join(silent)}",
            file=sys.stderr,
        )
    problems = problems_of(report, allowed, today)
    print(
        *(
            problems
            or [f"{len(report['dependencies'])} packages have no vulnerability that is not explained"]
        ),
        sep="\n",
    )
    if read := len(untold) - len(silent):
        print(f"{read} packages are held below their newest release; {EXCEPTIONS.name} tells what was read")
    return int(bool(problems) or (required and bool(silent)))


if __name__ == "__main__":
    sys.exit(main())
