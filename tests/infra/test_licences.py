"""The list of licences is that of the lock, and a licence that is not allowed is found."""

import re
import runpy
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def licences() -> Any:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "infra" / "licences.py")))


def test_the_page_lists_every_locked_package(licences):
    page = (ROOT / "docs" / "licences.md").read_text("utf-8")
    listed = re.findall(r"^\| (\S+) \| (\S+) \| .+ \|$", page, re.MULTILINE)
    lock = (ROOT / "requirements.lock").read_text("utf-8")
    assert [pair for pair in listed if pair[0] not in ("package", "---")] == [
        tuple(line.split("==")) for line in lock.split()
    ]


def test_the_page_is_what_the_installed_packages_say_and_all_are_allowed(licences, capsys):
    assert licences.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("MIT", True),
        ("GPL-3.0-only", False),
        ("", False),
        ("MIT AND Apache-2.0", True),
        ("MIT AND GPL-3.0-only", False),
        ("MIT OR GPL-3.0-only", True),
        ("MPL-2.0 AND (Apache-2.0 OR MIT)", True),
        ("GPL-3.0-only AND (Apache-2.0 OR MIT)", False),
        ("AGPL-3.0-only", False),
    ],
)
def test_all_of_what_and_joins_and_one_of_what_or_does_must_be_allowed(licences, licence, allowed):
    assert licences.is_allowed(licence) is allowed


def stated(**fields) -> Message:
    message = Message()
    for name, values in fields.items():
        for value in values if isinstance(values, list) else [values]:
            message[name.replace("_", "-")] = value
    return message


@pytest.mark.parametrize(
    ("fields", "licence"),
    [
        ({"License_Expression": "ISC", "License": "other"}, "ISC"),
        ({"Classifier": ["License :: OSI Approved :: MIT License", "Topic :: Database"]}, "MIT"),
        ({"Classifier": ["License :: OSI Approved"], "License": "Apache 2.0\ntext"}, "Apache-2.0"),
        ({"Name": "a"}, ""),
    ],
)
def test_a_licence_is_read_wherever_a_package_states_it(licences, fields, licence):
    assert licences.stated_licence(stated(**fields)) == licence


def test_a_refused_licence_and_a_needless_exception_are_problems(licences):
    packages = [licences.Package(name, "1", "") for name in licences.EXCEPTIONS]
    assert licences.problems_of(packages) == []
    problems = licences.problems_of([*packages[1:], licences.Package("new", "2", "GPL-3.0-only")])
    assert [problem.split(";")[0] for problem in problems] == [
        "new 2: the licence GPL-3.0-only is not allowed",
        f"the exception for {packages[0].name} is needed no more",
    ]


def test_a_lock_that_is_not_installed_is_bad_usage(licences):
    with pytest.raises(SystemExit, match=r"no-such-package is in .* run make setup"):
        licences.installed_packages("no-such-package==1\n")
