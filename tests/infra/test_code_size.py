"""The code-size report counts whole files and whole functions and fails past the limits."""

import runpy
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "infra" / "code_size.py"
ARMS = """\
def short():
    return 1


class Arm:
    async def longer(self):
        x = 1
        y = 2
        return x, y
"""


@pytest.fixture(scope="module")
def code_size() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for package in ("clusterucb_core", "flows", "tasks"):
        (tmp_path / package).mkdir()
    (tmp_path / "clusterucb_core" / "arms.py").write_text(ARMS)
    return tmp_path


def function_of(lines: int) -> str:
    return "def long():\n" + "    x = 1\n" * (lines - 1)


def test_functions_count_from_def_to_their_last_line(code_size: dict[str, Any], root: Path) -> None:
    lengths = list(code_size["function_lengths"](root / "clusterucb_core" / "arms.py", root=root))
    assert {(length.name, length.lines) for length in lengths} == {
        ("clusterucb_core/arms.py:1 short", 2),
        ("clusterucb_core/arms.py:6 longer", 4),
    }


def test_the_report_names_medians_and_the_largest(
    code_size: dict[str, Any], root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert code_size["main"]([str(root)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "1 files: median 9 lines (aim 150), largest 9 (limit 400): clusterucb_core/arms.py",
        "2 functions: median 3 lines (aim 15), largest 4 (limit 60): clusterucb_core/arms.py:6 longer",
    ]


@pytest.mark.parametrize(("lines", "status"), [(60, 0), (61, 1)])
def test_a_function_past_sixty_lines_fails_and_is_named(
    code_size: dict[str, Any], root: Path, lines: int, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "tasks" / "ingest.py").write_text(function_of(lines))
    assert code_size["main"]([str(root)]) == status
    assert ("too long: tasks/ingest.py:1 long: 61 lines" in capsys.readouterr().out) is (lines == 61)


@pytest.mark.parametrize(("lines", "status"), [(400, 0), (401, 1)])
def test_a_file_past_four_hundred_lines_fails(
    code_size: dict[str, Any], root: Path, lines: int, status: int
) -> None:
    (root / "flows" / "pipeline.py").write_text("x = 1\n" * lines)
    assert code_size["main"]([str(root)]) == status


def test_a_folder_without_code_is_bad_usage(code_size: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        code_size["main"]([str(tmp_path)])
    assert stopped.value.code == 2
