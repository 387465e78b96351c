"""Write `docs/licences.md`: what every locked package says of its licence; exit 1 where one is not allowed.

Reads `requirements.lock` and the metadata of the packages that are installed. `--check` writes nothing and
fails where the page is not what would be written. `ALLOWED` and `EXCEPTIONS` say what may be used, and why.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = "requirements.lock"
PAGE = "docs/licences.md"
CLASSIFIER = "License :: "
# They ask for a notice, and at most for the source of changed files of their own (MPL).
ALLOWED = frozenset(
    {
        *(
            "0BSD",
            "Apache-2.0",
            "Apache-2.0 WITH LLVM-exception",
            "BSD",
            "BSD-2-Clause",
            "BSD-3-Clause",
            "BSL-1.0",
        ),
        *("CC0-1.0", "CNRI-Python", "ISC", "MIT", "MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Zlib"),
    }
)
# What packages write where they do not write SPDX.
SPELLINGS: Mapping[str, str] = {
    "3-Clause BSD License": "BSD-3-Clause",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD",
    "GNU Lesser General Public License v2 or later (LGPLv2+)": "LGPL-2.1-or-later",
    "GNU Library or Lesser General Public License (LGPL)": "LGPL",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "The MIT License (MIT)": "MIT",
}
_UNSTATED = "its metadata states none; the licence file that it installs is that of "
_NOT_CHANGED = "used as a library of its own and not changed, which its licence allows to any program"
EXCEPTIONS: Mapping[str, str] = {
    "axe-playwright-python": f"{_UNSTATED}MIT; runs in tests only",
    "chardet": _NOT_CHANGED,
    "huey": f"{_UNSTATED}MIT",
    "psycopg2-binary": _NOT_CHANGED,
    "skops": f"{_UNSTATED}MIT; MLflow asks for it and nothing here calls it",
    "text-unidecode": "of its two licences the Artistic one is taken, which allows this use",
}
HEAD = """\
# Licences

What every package of `requirements.lock` says of its licence, in its own metadata. The project installs them
from the package index and ships none of them. `make audit` fails where one appears whose licence is not
allowed; `python infra/licences.py` writes the list. What only the other lock files name is not in it.

| package | version | licence |
|---|---|---|
"""


@dataclass(frozen=True)
class Package:
    """A locked package and the licence that it states, SPDX where it can be told."""

    name: str
    version: str
    licence: str


def locked_packages(lock: str) -> Iterator[tuple[str, str]]:
    """Yield name and version of every line of a lock file."""
    for line in lock.splitlines():
        name, pinned, version = line.partition("==")
        if pinned:
            yield name.strip(), version.strip()


def installed_packages(lock: str) -> list[Package]:
    """Return the locked packages with the licences that the installed ones state.

    Raises:
        SystemExit: one of them is not installed.
    """
    try:
        return [
            Package(name, version, stated_licence(metadata(name))) for name, version in locked_packages(lock)
        ]
    except PackageNotFoundError as error:
        raise SystemExit(f"{error.name} is in {LOCK} and not installed; run make setup") from error


def stated_licence(stated: Message) -> str:
    """Return the licence of a package's metadata: its expression, its classifiers, or its first line."""
    if expression := stated.get("License-Expression"):
        return str(expression)
    classified = [
        name.rpartition(" :: ")[2]
        for name in stated.get_all("Classifier", [])
        if name.startswith(CLASSIFIER) and name != f"{CLASSIFIER}OSI Approved"
    ]
    if classified:
        return " OR ".join(sorted(SPELLINGS.get(name, name) for name in classified))
    first = str(stated.get("License") or "").strip().split("\n")[0]
    return SPELLINGS.get(first, first)


def is_allowed(licence: str) -> bool:
    """Tell whether a licence allows our use: all of what AND joins, one of what OR does."""
    plain = re.sub(r"[()]", "", licence)
    if "(" in licence and " AND " in plain and " OR " in plain:
        plain = plain.replace(" OR ", " AND ")  # more than is asked for: then no bracket matters
    return any(all(part in ALLOWED for part in way.split(" AND ")) for way in plain.split(" OR "))


def page_of(packages: Sequence[Package]) -> str:
    """Return the page that lists packages and explains exceptions."""
    rows = "".join(
        f"| {package.name} | {package.version} | {package.licence or 'not stated'} |\n"
        for package in packages
    )
    reasons = "".join(f"- **{name}**: {reason}.\n" for name, reason in sorted(EXCEPTIONS.items()))
    return f"{HEAD}{rows}\n## Exceptions\n\n{reasons}"


def problems_of(packages: Sequence[Package]) -> list[str]:
    """Return what is wrong: licences that are not allowed, and exceptions that nothing needs."""
    refused = {package.name: package for package in packages if not is_allowed(package.licence)}
    found = [
        f"{name} {package.version}: the licence {package.licence or '(none stated)'} is not allowed; use "
        "another package, or give a reason in EXCEPTIONS"
        for name, package in refused.items()
        if name not in EXCEPTIONS
    ]
    return found + [
        f"the exception for {name} is needed no more" for name in EXCEPTIONS if name not in refused
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the page and return the exit status: 0 where every licence is allowed, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args(arguments).check
    packages = installed_packages((ROOT / LOCK).read_text("utf-8"))
    page, problems = page_of(packages), problems_of(packages)
    if not check:
        (ROOT / PAGE).write_text(page, encoding="utf-8")
    elif (ROOT / PAGE).read_text("utf-8") != page:
        problems.append(f"{PAGE} is not what {LOCK} gives; run python infra/licences.py")
    print(
        *(problems or [f"{len(packages)} licences are allowed, {len(EXCEPTIONS)} of them as exceptions"]),
        sep="\n",
    )
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
