"""Print every SQL text of the program that is not fixed in its source; exit 1 where there is one.

Values go to DuckDB, SQLite and PostgreSQL as parameters. A text is fixed where it is a literal, joins fixed
texts, or fills a place of an f-string with a fixed text or with what one of `QUOTING` returns; names are
followed to where they are assigned. `EXCEPTIONS` names the functions whose texts are not, and why that is
safe; one that nothing needs fails.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("clusterucb_core", "flows", "tasks", "infra")
STATEMENTS = "clusterucb_core.store.statements"
# Where the SQL stands among the arguments: of our functions behind the connection, of methods of one first.
FUNCTIONS = frozenset({"run", "rows", "frame", "run_on_frame", "frame_with"})
METHODS = frozenset({"execute", "executemany", "sql", "query"})
# These return text that SQL reads as one name or one value, whatever they are given.
QUOTING = frozenset({"identifier", "quoted"})

_PASSES_ON = "passes on the text of its caller, which is looked at there"
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("clusterucb_core/store/statements.py", "run"): _PASSES_ON,
    ("clusterucb_core/store/statements.py", "rows"): _PASSES_ON,
    ("clusterucb_core/store/statements.py", "frame"): _PASSES_ON,
    ("clusterucb_core/store/erasures.py", "_count"): "its three callers give literals",
    (
        "clusterucb_core/store/publication.py",
        "_insert_selection",
    ): "joins the fixed names of columns, and marks",
    (
        "clusterucb_core/store/copying.py",
        "copy_database",
    ): "takes apart pairs of fixed questions and parameters",
    ("clusterucb_core/store/migration.py", "_migrate"): "takes apart fixed scripts",
    ("clusterucb_core/store/restoring.py", "_insert_new"): "its callers give fixed names of tables",
    ("clusterucb_core/store/restoring.py", "count"): "names the table of the function around it",
    ("clusterucb_core/store/restoring.py", "read_known"): "joins fixed names of tables and columns",
}


@dataclass(frozen=True)
class Unfixed:
    """An SQL text that is not fixed: its file and line, the function it is in, and the expression."""

    path: str
    line: int
    function: str
    text: str


class Scope:
    """What the names of a module and of one function in it stand for.

    A name of the module is fixed whatever it is: it is made at import, before anything is read.
    """

    def __init__(self, module: ast.Module, function: ast.AST | None):
        self.fixed_names = {name for statement in module.body for name in _bound(statement)}
        self.local: dict[str, list[ast.expr | None]] = {}
        for node in () if function is None else ast.walk(function):
            for name, value in _assigned(node):
                self.local.setdefault(name, []).append(value)


def unfixed_in(source: str, path: str) -> Iterator[Unfixed]:
    """Yield the SQL texts of a Python source that are not fixed, exceptions included.

    Args:
        source: the text of the file.
        path: its path below the project's folder.
    """
    module = ast.parse(source, filename=path)
    functions = [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]
    imported = _functions_of_statements(module)
    inside = {
        id(node): function for function in functions for node in ast.walk(function)
    }  # the innermost last
    for call in (node for node in ast.walk(module) if isinstance(node, ast.Call)):
        function = inside.get(id(call))
        text = _sql_of(call, imported)
        if text is not None and not _is_fixed(text, Scope(module, function)):
            yield Unfixed(path, call.lineno, function.name if function else "<module>", ast.unparse(text))


def unfixed_below(root: Path) -> list[Unfixed]:
    """Return the SQL texts below a project's folder that are not fixed, exceptions included."""
    paths = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return [
        found
        for path in paths
        for found in unfixed_in(path.read_text("utf-8"), path.relative_to(root).as_posix())
    ]


def _functions_of_statements(module: ast.Module) -> set[str]:
    """Return the names by which a file calls the functions that take SQL."""
    imports = [node for node in ast.walk(module) if isinstance(node, ast.ImportFrom)]
    return {
        alias.asname or alias.name
        for node in imports
        if node.module == STATEMENTS
        for alias in node.names
        if alias.name in FUNCTIONS
    }


def _sql_of(call: ast.Call, imported: set[str]) -> ast.expr | None:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    if isinstance(call.func, ast.Name) and call.func.id in imported:
        return call.args[1] if len(call.args) > 1 else given.get("sql")
    if isinstance(call.func, ast.Attribute) and call.func.attr in METHODS:
        return call.args[0] if call.args else given.get("query")
    return None


def _is_fixed(node: ast.expr | None, scope: Scope, *, following: frozenset[str] = frozenset()) -> bool:
    """Tell whether an expression is made of texts of the source alone."""

    def fixed(part: ast.expr | None) -> bool:
        return _is_fixed(part, scope, following=following)

    match node:
        case ast.Constant():
            return True
        case ast.JoinedStr():
            return all(map(fixed, node.values))
        case ast.FormattedValue():
            return fixed(node.value)
        case ast.BinOp():
            return isinstance(node.op, ast.Add) and fixed(node.left) and fixed(node.right)
        case ast.IfExp():
            return fixed(node.body) and fixed(node.orelse)
        case ast.Tuple() | ast.List():
            return all(map(fixed, node.elts))
        case ast.ListComp() | ast.GeneratorExp():
            return fixed(node.elt)
        case ast.Call():
            return _quotes(node) or (_composes(node) and all(map(fixed, _first_text(node))))
        case ast.Name() if node.id in scope.local:
            values = [] if node.id in following else scope.local[node.id]
            return bool(values) and all(
                _is_fixed(value, scope, following=following | {node.id}) for value in values
            )
        case ast.Name():
            return node.id in scope.fixed_names
        case _:
            return False


def _quotes(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Name) and call.func.id in QUOTING


def _composes(call: ast.Call) -> bool:
    """Tell whether psycopg2 puts a statement together: `sql.SQL(text).format(sql.Identifier(name), ...)`."""
    name = ast.unparse(call.func)
    if name == "sql.SQL":
        return True
    parts = [ast.unparse(part) for part in call.args]
    return name.startswith("sql.SQL(") and all(
        part.lstrip("*[").startswith(("sql.Identifier(", "sql.Literal(")) for part in parts
    )


def _first_text(call: ast.Call) -> list[ast.expr]:
    made = call.func.value if isinstance(call.func, ast.Attribute) and call.func.attr == "format" else call
    return made.args if isinstance(made, ast.Call) else []


def _assigned(node: ast.AST) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield the names that a part of a function binds, each with its value, or None where that is unknown."""
    match node:
        case ast.Assign():
            for target in node.targets:
                yield from _pairs(target, node.value)
        case ast.AnnAssign():
            yield from _pairs(node.target, node.value)
        case ast.NamedExpr():
            yield node.target.id, node.value
        case ast.For() | ast.comprehension():
            # one value stands for all of a literal, or of a name that stands for one
            yield from _pairs(node.target, node.iter if isinstance(node.target, ast.Name) else None)
        case ast.AugAssign():
            yield from _pairs(node.target, node.value)
        case ast.arg():
            yield node.arg, None
        case _:
            return


def _pairs(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr | None]]:
    if isinstance(target, ast.Name):
        yield target.id, value
    else:
        yield from ((name.id, None) for name in ast.walk(target) if isinstance(name, ast.Name))


def _bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in statement.names if alias.name.isupper())
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        yield from (name for name, _ in _assigned(statement))


def main(arguments: Sequence[str] | None = None) -> int:
    """Look through the program below a folder and return 1 where a text is not fixed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    root: Path = parser.parse_args(arguments).root
    found = unfixed_below(root)
    kept = {(one.path, one.function) for one in found} & EXCEPTIONS.keys()
    problems = [
        f"{one.path}:{one.line}: {one.function} runs SQL that its source does not fix: {one.text}; "
        "give values as parameters"
        for one in found
        if (one.path, one.function) not in kept
    ]
    problems += [
        f"{path}: the exception for {function} is needed no more; remove it from {Path(__file__).name}"
        for path, function in EXCEPTIONS
        if (root / path).exists() and (path, function) not in kept
    ]
    print(*(problems or [f"every SQL text is fixed; {len(kept)} exceptions"]), sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
