"""A broken page fails the build. It needs the tools that `make docs` installs; without them it is skipped."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from doc_pages import ROOT

TOOLS = ROOT / "build" / "docs-tools"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (TOOLS / ".locked").is_file(), reason="`make docs` has not installed its tools"),
]


def build(folder: Path, text: str) -> tuple[int, str]:
    """Build a site of one page under the settings of ours; return the exit status and what was printed."""
    (folder / "docs").mkdir()
    for name in ("javascripts/iframe-worker.js", "stylesheets/site.css"):
        (folder / "docs" / name).parent.mkdir(exist_ok=True)
        (folder / "docs" / name).write_bytes((ROOT / "docs" / name).read_bytes())
    (folder / "docs" / "index.md").write_text(text, "utf-8")
    settings = re.sub(r"^nav:\n(?: .*\n)*", "", (ROOT / "mkdocs.yml").read_text("utf-8"), flags=re.MULTILINE)
    settings = settings.replace("hooks: [infra", f"hooks: [{ROOT}/infra").replace("[.]", f"[{ROOT}]")
    (folder / "mkdocs.yml").write_text(settings, "utf-8")
    environment = os.environ | {"PYTHONPATH": f"{TOOLS}{os.pathsep}{ROOT}", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_whole_page_is_built_and_its_formula_is_mathml(tmp_path):
    text = "# A page\n\nWith $x^2$ and a [link](#a-page).\n\n<!-- generated: formats -->\n"
    status, printed = build(tmp_path, text)
    assert status == 0, printed
    html = (tmp_path / "build" / "site" / "index.html").read_text("utf-8")
    assert "<msup><mi>x</mi><mn>2</mn></msup>" in html
    assert "<code>sharegpt</code>" in html


def test_broken_links_and_anchors_fail_the_build(tmp_path):
    status, printed = build(tmp_path, "# A page\n\n[one](nowhere.md) [two](#nothing)\n")
    assert status == 1
    assert "nowhere.md" in printed
    assert "#nothing" in printed
    assert "Aborted with 2 warnings in strict mode" in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('# A page\n\n<img src="https://elsewhere.example/a.png">\n', "must open without a network"),
        ("# A page\n\n<!-- generated: fortunes -->\n", "asks for the generated part 'fortunes'"),
        ("# A page\n\n::: clusterucb_core.bandit.pulls.nothing\n", "clusterucb_core.bandit.pulls.nothing"),
    ],
    ids=["elsewhere", "unknown part", "unknown name"],
)
def test_what_cannot_be_shown_fails_the_build(tmp_path, text, message):
    status, printed = build(tmp_path, text)
    assert status == 1
    assert message in printed
