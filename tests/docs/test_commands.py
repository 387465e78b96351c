"""The documentation does what it says: every page is followed, in its order, in a folder as it describes."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
from doc_pages import ROOT, Command, commands, every_block, pages
from doc_runs import PageRun, apply_change, environment_in, is_alike, play, write_project

# Pages that go on from the selection that another page has made.
GOES_ON_FROM = {"how-to/export.md": "guides/data-team.md", "how-to/remove-data.md": "guides/data-team.md"}
# Commands that need more than this machine, or are run by a test of their own: by the words they begin with.
ELSEWHERE = {
    "make ": "sets up the environment; `make demo` is `clusterucb demo`",
    "git clone ": "needs a network",
    "pip install ": "needs a network",
    "infra/local/": "needs PostgreSQL; tests/infra/test_local_stack.py runs it",
    "source .clusterucb/stack/env": "the file of the local stack; tests/infra/test_local_stack.py reads it",
    ".venv/bin/prefect deployment run ": "needs a server; tests/infra/test_end_to_end.py starts a deployment",
    "kubectl ": "needs a cluster; tests/infra/test_ray_manifests.py reads the manifests",
    "mlflow ui ": "serves until it is stopped",
    "python benchmarks/": "needs real data and hours",
    "clusterucb run run.yaml --runner ray": "tests/integration/test_ray.py runs on Ray",
}
ALL_COMMANDS = [command for block in every_block("console") for command in commands(block)]


def elsewhere(command: Command) -> bool:
    return command.text.startswith(tuple(ELSEWHERE))


def has_work(page: str) -> bool:
    languages = {
        block.language for block in every_block("console") + every_block("python") if block.page == page
    }
    return bool(languages)


def named(command: Command) -> str:
    return f"{command.page}:{command.line}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Follow a page at most once, after the page that it goes on from; return its run."""
    base = tmp_path_factory.mktemp("pages")
    write_project(base / "project")
    done: dict[str, PageRun] = {}
    begun: set[str] = set()

    def follow(page: str) -> PageRun:
        if page in done:
            return done[page]
        assert page not in begun, f"{page} has failed before"
        begun.add(page)
        before = follow(GOES_ON_FROM[page]) if page in GOES_ON_FROM else None
        folder = before.folder if before else base / re.sub(r"\W", "-", page)
        if before is None:
            shutil.copytree(base / "project", folder)
        run = PageRun(folder, environment_in(base))
        play(page, run, elsewhere=elsewhere)
        done[page] = run
        return run

    return follow


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in pages() if has_work(page)])
def test_what_a_page_shows_can_be_done(page, runs):
    run = runs(page)
    assert (run.folder / "data").is_dir()


@pytest.mark.slow
def test_the_pages_leave_what_they_speak_of(runs):
    tutorial = runs("tutorial.md").folder
    assert len((tutorial / "selected.jsonl").read_text("utf-8").splitlines()) == 100
    assert "<svg" in (tutorial / "report.html").read_text("utf-8")
    exports = runs("how-to/export.md").folder
    assert {path.suffix for path in exports.glob("selected.*")} == {".jsonl", ".parquet"}
    assert (runs("guides/researcher.md").folder / "comparison" / "comparison.csv").is_file()


def test_every_reason_to_leave_a_command_out_is_needed():
    used = {words for words in ELSEWHERE for command in ALL_COMMANDS if command.text.startswith(words)}
    assert used == set(ELSEWHERE)
    assert sum(not elsewhere(command) for command in ALL_COMMANDS) > 25


@pytest.mark.parametrize("command", [item for item in ALL_COMMANDS if elsewhere(item)], ids=named)
def test_a_command_that_is_not_run_names_what_there_is(command):
    words = shlex.split(command.text)
    match words[0]:
        case "make":
            assert re.search(rf"^{words[1]}:.*##", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        case "git" | "source" | "clusterucb" | "mlflow" | ".venv/bin/prefect":
            return  # of the last three the options are looked at elsewhere
        case "pip":
            extras = re.findall(r"clusterucb\[(\w+)\]", command.text)
            assert words[2:] == ["-e", "."] or extras == ["ray"]
        case "kubectl":
            assert (ROOT / words[3]).is_file()
        case "python":
            script = ROOT / words[1]
            options = [word for word in words if word.startswith("--")]
            assert [option for option in options if f'"{option}"' not in with_shared(script)] == []
        case _:
            assert (ROOT / words[0]).stat().st_mode & 0o111


@pytest.mark.slow
@pytest.mark.parametrize("program", [("mlflow", "ui"), ("prefect", "deployment", "run")], ids=" ".join)
def test_programs_of_others_know_the_options_that_are_shown(program):
    shown = [command.text.removeprefix(".venv/bin/") for command in ALL_COMMANDS]
    used = [word for text in shown if text.startswith(" ".join(program)) for word in shlex.split(text)]
    options = {word for word in used if word.startswith("--")}
    assert options
    text = help_of(program)
    assert {option for option in options if option not in text} == set()


def with_shared(script) -> str:
    """Return the text of a benchmark with that of what it shares with others."""
    return script.read_text("utf-8") + (ROOT / "benchmarks" / "measuring.py").read_text("utf-8")


def help_of(program: tuple[str, ...]) -> str:
    line = [sys.executable, "-m", program[0], *program[1:], "--help"]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout


def test_lines_are_alike_whose_numbers_nearly_are():
    assert is_alike("loss 2.1260, 3,000 gradients", "loss  2.13, 3,001 gradients")
    assert not is_alike("loss 2.1260", "loss 2.9")
    assert not is_alike("loss 2.1260", "gain 2.1260")
    assert not is_alike("2 pulls", "2 pulls and more")


@pytest.mark.parametrize("block", every_block("diff"), ids=lambda block: block.page)
def test_a_change_fits_the_file_and_is_code(block, tmp_path):
    run = PageRun(tmp_path, {})
    apply_change(block, run)
    changed = (run.tree / block.title).read_text("utf-8")
    assert changed != (ROOT / block.title).read_text("utf-8")
    compile(changed, block.title, "exec")
