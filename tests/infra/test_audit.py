"""The audit explains every finding or fails, and says so where nobody could be asked."""

import json
import runpy
import subprocess
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

ROOT = Path(__file__).resolve().parents[2]
TODAY = date(2026, 6, 1)
PREFECT = version("prefect")
FLAW = {
    "id": "PYSEC-2026-1",
    "aliases": ["CVE-2026-1", "GHSA-aaaa"],
    "fix_versions": ["2"],
    "description": "",
}
REPORT = {
    "dependencies": [
        {"name": "Sound", "version": "1", "vulns": []},
        {"name": "Cracked", "version": "1", "vulns": [FLAW]},
        {"name": "nowhere", "skip_reason": "not found on PyPI"},
    ]
}
NOTHING = {"dependencies": [{"name": "jinja2", "skip_reason": "not found on PyPI"}]}
KNOWN = {"dependencies": [{"name": "jinja2", "version": "3.1.4", "vulns": [FLAW]}]}


@pytest.fixture(scope="module")
def audit() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "infra" / "audit.py")))


@pytest.fixture(scope="module")
def pins(audit):
    """Name and version of every locked package."""
    return audit.locked_versions(path.read_text("utf-8") for path in ROOT.glob("requirements*.lock"))


def allowed(audit, *entries):
    return [audit.Allowed(*entry, "why", until) for *entry, until in entries]


LATER = date(2026, 6, 1)
UNKNOWN = ("unknown", "nowhere", LATER)


def test_a_finding_without_an_exception_is_a_problem(audit):
    assert audit.problems_of(REPORT, [], TODAY) == [
        "cracked 1: PYSEC-2026-1; raise its version, or explain it in audit_exceptions.toml",
        "nowhere : unknown; raise its version, or explain it in audit_exceptions.toml",
    ]


@pytest.mark.parametrize("identifier", ["PYSEC-2026-1", "CVE-2026-1", "GHSA-aaaa"])
def test_an_exception_may_use_any_id_and_holds_on_its_last_day(audit, identifier):
    assert audit.problems_of(REPORT, allowed(audit, (identifier, "cracked", LATER), UNKNOWN), TODAY) == []


def test_an_exception_that_is_past_its_day_is_a_problem_and_excuses_nothing(audit):
    problems = audit.problems_of(
        REPORT, allowed(audit, ("CVE-2026-1", "cracked", date(2026, 5, 31)), UNKNOWN), TODAY
    )
    assert [problem.split(";")[0] for problem in problems] == [
        "cracked 1: PYSEC-2026-1",
        "the exception CVE-2026-1 for cracked ended on 2026-05-31",
    ]


@pytest.mark.parametrize("entry", [("CVE-2026-1", "sound"), ("CVE-2026-2", "cracked"), ("unknown", "sound")])
def test_an_exception_that_nothing_needs_is_a_problem(audit, entry):
    kept = allowed(audit, ("CVE-2026-1", "cracked", LATER), UNKNOWN, (*entry, LATER))
    assert audit.problems_of(REPORT, kept, TODAY) == [
        f"the exception {entry[0]} for {entry[1]} is needed no more"
    ]


def answers(monkeypatch, *reports):
    """Let pip-audit print these, one after the other; None: an error."""
    left = list(reports)

    def run(line, **_):
        report = left.pop(0)
        out = "" if report is None else json.dumps(report)
        return subprocess.CompletedProcess(line, 1, out, "ServiceError: no route to host")

    monkeypatch.setattr(subprocess, "run", run)
    return left


def index(monkeypatch, pages):
    """Let the index have these pages of packages: the newest version of each, and its flaws."""

    def get(url, **_):
        name = url.split("/")[-2]
        request = httpx.Request("GET", url)
        if name not in pages:
            return httpx.Response(404, request=request)
        version, flaws = pages[name]
        return httpx.Response(
            200, json={"info": {"version": version}, "vulnerabilities": flaws}, request=request
        )

    monkeypatch.setattr(httpx, "get", get)


@pytest.mark.parametrize("pages", [{}, {"ecdsa": ("0.19.2", [])}])
@pytest.mark.parametrize("answer", [None, NOTHING])
def test_where_nobody_can_tell_it_says_so_and_fails_only_if_asked(audit, monkeypatch, capsys, answer, pages):
    index(monkeypatch, pages)
    for arguments, code in (([], 0), (["--required"], 1)):
        answers(monkeypatch, answer)
        assert audit.main(arguments) == code
        assert "NOT AUDITED: no answer about jinja2==3.1.4" in capsys.readouterr().err


def test_what_is_locked_at_its_newest_release_is_audited_by_its_page(audit, monkeypatch):
    again = {**FLAW, "id": "GHSA-aaaa", "aliases": ["PYSEC-2026-1"]}
    gone = {**FLAW, "id": "PYSEC-2026-2", "aliases": [], "withdrawn": "2026-05-01T00:00:00Z"}
    index(monkeypatch, {"cracked": ("1", [FLAW, again, gone]), "sound": ("1.0", []), "older": ("2", [])})
    lock = "# a comment\nCracked==1\nsound==1.0+cpu ; python_version > '3'\nolder==1  # why\nnowhere==3\n"
    report, untold = audit.report_on_newest(audit.locked_versions([lock]))
    assert untold == ["nowhere", "older"]
    assert audit.problems_of(report, [], TODAY) == [
        "cracked 1: PYSEC-2026-1; raise its version, or explain it in audit_exceptions.toml"
    ]
    assert audit.problems_of(report, allowed(audit, ("GHSA-aaaa", "cracked", LATER)), TODAY) == []


def test_a_mirror_audits_in_part_and_names_the_rest(audit, monkeypatch, capsys):
    known = {"ecdsa": ("0.19.2", [FLAW])}
    for found, arguments, code in (([], [], 0), ([], ["--required"], 1), ([FLAW], [], 1)):
        index(monkeypatch, known | {"prefect": (PREFECT, found)})
        answers(monkeypatch, NOTHING)
        assert audit.main(arguments) == code
        told = capsys.readouterr()
        assert "packages that are not locked at their newest release" in told.err
        assert told.out.startswith(f"prefect {PREFECT}: PYSEC-2026-1" if found else "1 packages have no")


PINS = {("cracked", "1"), ("older", "1"), ("sound", "1")}


@pytest.mark.parametrize(
    ("version", "until", "left"),
    [("1", TODAY, []), ("1", date(2026, 5, 31), ["older"]), ("1.1", TODAY, ["older"])],
    ids=["read", "past its day", "another version"],
)
def test_a_held_package_is_read_at_its_locked_version_until_a_day(audit, version, until, left):
    held = [audit.Held("older", version, "by", "read", until)]
    assert audit.unread(["cracked", "older"], PINS, held, TODAY) == ["cracked", *left]


def test_a_mirror_satisfies_where_every_other_package_was_read(audit, pins, monkeypatch, capsys, tmp_path):
    entry = '[[held]]\npackage = "{}"\nversion = "{}"\nby = "b"\nread = "r"\nuntil = 9999-12-31\n'
    exceptions = tmp_path / "exceptions.toml"
    monkeypatch.setitem(audit.main.__globals__, "EXCEPTIONS", exceptions)
    others = sorted(pins - {("prefect", PREFECT)})
    index(monkeypatch, {"ecdsa": ("0.19.2", [FLAW]), "prefect": (PREFECT, [])})
    for held, code, named in ((others, 0, ""), (others[1:], 1, "1 packages that are not locked at their")):
        exceptions.write_text("".join(entry.format(*pin) for pin in held), encoding="utf-8")
        answers(monkeypatch, NOTHING)
        assert audit.main(["--required"]) == code
        told = capsys.readouterr()
        assert named in told.err
        assert f"{len(held)} packages are held below their newest release" in told.out


def test_the_held_packages_are_those_of_the_locks(audit, pins):
    held = audit.read_held((ROOT / "infra" / "audit_exceptions.toml").read_text("utf-8"))
    assert held
    assert {(one.package, one.version) for one in held} <= pins
    assert len({one.package for one in held}) == len(held)
    assert all(isinstance(one.until, date) and one.by and len(one.read.split()) >= 4 for one in held)


def test_a_finding_fails_and_is_printed(audit, monkeypatch, capsys):
    left = answers(monkeypatch, KNOWN, REPORT)
    assert audit.main([]) == 1
    assert left == []
    assert "cracked 1: PYSEC-2026-1" in capsys.readouterr().out


def test_nothing_found_passes(audit, monkeypatch, capsys, tmp_path):
    exceptions = tmp_path / "exceptions.toml"
    exceptions.touch()
    monkeypatch.setitem(audit.main.__globals__, "EXCEPTIONS", exceptions)
    answers(monkeypatch, KNOWN, {"dependencies": REPORT["dependencies"][:1]})
    assert audit.main([]) == 0
    assert "1 packages have no vulnerability" in capsys.readouterr().out


def test_the_exceptions_are_explained(audit):
    for one in audit.read_exceptions((ROOT / "infra" / "audit_exceptions.toml").read_text("utf-8")):
        assert isinstance(one.until, date)
        assert len(one.reason.split()) >= 4


def test_an_exception_that_lacks_its_day_is_refused(audit):
    with pytest.raises(TypeError, match="until"):
        audit.read_exceptions('[[exception]]\nid = "a"\npackage = "b"\nreason = "c"\n')
