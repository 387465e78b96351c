"""The lint that keeps values out of SQL texts follows names to where they are made."""

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
IMPORTS = "from clusterucb_core.store.statements import rows, run, frame_with\n"
UNFIXED = {
    "def f(con, name):\n    run(con, f'DROP TABLE {name}')": "f'DROP TABLE {name}'",
    "def f(con, name):\n    run(con, 'DROP TABLE ' + name)": "'DROP TABLE ' + name",
    "def f(con, name):\n    run(con, 'DROP TABLE %s' % name)": "'DROP TABLE %s' % name",
    "def f(con, name):\n    run(con, 'DROP TABLE {}'.format(name))": "'DROP TABLE {}'.format(name)",
    "def f(con, sql):\n    return rows(con, sql)": "sql",
    "def f(con, ids):\n    q = ', '.join(ids)\n    con.execute(q)": "q",
    "def f(con, name):\n    q = 'FROM ' + name\n    rows(con, sql=q)": "q",
    "def f(con, rows_):\n    for name, _ in rows_:\n        con.sql(f'FROM {name}')": "f'FROM {name}'",
    "def f(cursor, name):\n    cursor.execute(sql.SQL(name).format(sql.Identifier('a')))": (
        "sql.SQL(name).format(sql.Identifier('a'))"
    ),
    "def f(con, name):\n    con.execute(sql.SQL('DROP {}').format(name))": "sql.SQL('DROP {}').format(name)",
    "def f(con, a):\n    q = 'FROM x'\n    q += a\n    frame_with(con, q, a)": "q",
}
FIXED = [
    "def f(con, name):\n    run(con, 'DELETE FROM pools WHERE name = ?', [name])",
    "TABLE = 'pools'\ndef f(con):\n    run(con, f'DELETE FROM {TABLE}')",
    "def f(con, wide):\n    part = 'a, b' if wide else 'a'\n    rows(con, f'SELECT {part} FROM pools')",
    "def f(con):\n    for name in ('a', 'b'):\n        run(con, f'DROP TABLE {name}')",
    "def f(con, name):\n    run(con, f'DROP TABLE {identifier(name)}')",
    "def f(cursor, name):\n    cursor.execute(sql.SQL('DROP {}').format(sql.Identifier(name)))",
    "def f(subprocess, line):\n    subprocess.run(line)",
]


@pytest.fixture(scope="module")
def lint() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "infra" / "sql_texts.py"))


@pytest.mark.parametrize("source", UNFIXED)
def test_a_value_in_a_text_is_found(lint, source):
    assert [found.text for found in lint["unfixed_in"](IMPORTS + source, "file.py")] == [UNFIXED[source]]


@pytest.mark.parametrize("source", FIXED)
def test_a_text_that_the_source_fixes_is_allowed(lint, source):
    assert list(lint["unfixed_in"](IMPORTS + source, "file.py")) == []


def test_a_text_with_a_value_in_it_fails_and_its_line_is_named(lint, tmp_path, capsys):
    (tmp_path / "clusterucb_core").mkdir()
    (tmp_path / "clusterucb_core" / "x.py").write_text("def f(con, name):\n    con.execute(f'FROM {name}')\n")
    assert lint["main"]([str(tmp_path)]) == 1
    assert "clusterucb_core/x.py:2: f runs SQL that its source does not fix" in capsys.readouterr().out


def test_an_exception_that_nothing_needs_fails(lint, tmp_path, capsys):
    (tmp_path / "clusterucb_core" / "store").mkdir(parents=True)
    (tmp_path / "clusterucb_core" / "store" / "erasures.py").write_text("x = 1\n")
    assert lint["main"]([str(tmp_path)]) == 1
    assert "the exception for _count is needed no more" in capsys.readouterr().out


def test_every_exception_has_a_reason(lint):
    assert all(len(reason.split()) >= 4 for reason in lint["EXCEPTIONS"].values())
