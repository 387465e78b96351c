"""Print every place of the project's Python that could run code out of a file; exit 1 where there is one.

Ruff's rules on pickles leave tests and benchmarks out, and know neither NumPy's, PyTorch's and joblib's own
ways to read one nor `trust_remote_code`. Here every Python file counts. `EXCEPTIONS` says what is allowed
and why; one that nothing needs fails too.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("clusterucb_core", "flows", "tasks", "infra", "benchmarks", "examples", "tests")
# Modules that read pickles or code objects, or do nothing else.
MODULES = frozenset(
    {
        *("pickle", "_pickle", "cPickle", "pickle5", "pickletools", "dill", "cloudpickle", "ray.cloudpickle"),
        *("joblib", "shelve", "marshal", "jsonpickle", "torch.package", "multiprocessing.reduction"),
    }
)
# Functions that read pickles, or run code that a file or a hub names, whatever they are given.
CALLS = frozenset(
    {
        *("pandas.read_pickle", "polars.LazyFrame.deserialize", "polars.DataFrame.deserialize"),
        *("torch.hub.load", "torch.jit.load", "torch.serialization.load", "numpy.lib.format.read_array"),
        *("mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "mlflow.sklearn.load_model"),
        *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.full_load_all"),
        *("yaml.unsafe_load", "yaml.unsafe_load_all", "runpy.run_module"),
    }
)
# Names that tell the same of a method, on whatever object.
METHODS = frozenset({"read_pickle", "unsafe_load", "add_safe_globals"})
LOADERS = frozenset({"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"})
# Keywords that have to have this very value wherever they are given.
KEYWORDS: Mapping[str, bool] = {"allow_pickle": False, "trust_remote_code": False, "weights_only": True}
# And the functions that read pickles unless they are given it.
NEEDED: Mapping[str, str] = {"torch.load": "weights_only"}

_ALLOWED_BY_NAME = "True only for code of a folder whose content the configuration names"
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    (
        "clusterucb_core/evaluation/harness.py",
        "yaml.load",
    ): "its loader is a SafeLoader with one tag, for our own files",
    (
        "tests/docs/doc_pages.py",
        "yaml.load",
    ): "its loader is a SafeLoader that reads tags of mkdocs.yml as texts",
    (
        "flows/ray_cluster.py",
        "ray.cloudpickle",
    ): "names a module that Ray sends to its own workers; reads nothing",
    ("clusterucb_core/lm/loading.py", "trust_remote_code=trusted"): _ALLOWED_BY_NAME,
    ("clusterucb_core/lm/lora.py", "trust_remote_code=runs_own_code(settings)"): _ALLOWED_BY_NAME,
}


@dataclass(frozen=True)
class Finding:
    """A place that could run code out of a file: its file, its line, and the name of what does it."""

    path: str
    line: int
    name: str


def findings_in(source: str, path: str) -> Iterator[Finding]:
    """Yield what a Python source has of it, exceptions included.

    Args:
        source: the text of the file.
        path: its path below the project's folder.
    """
    tree = ast.parse(source, filename=path)
    names = _imported_names(tree)
    for node in ast.walk(tree):
        for name in _found(node, names):
            yield Finding(path, node.lineno, name)  # pyright: ignore[reportAttributeAccessIssue]


def findings_below(root: Path) -> list[Finding]:
    """Return what the Python files below a project's folder have of it, exceptions included."""
    paths = sorted(path for folder in FOLDERS for path in (root / folder).rglob("*.py"))
    return [
        found
        for path in paths
        for found in findings_in(path.read_text("utf-8"), path.relative_to(root).as_posix())
    ]


def _imported_names(tree: ast.AST) -> dict[str, str]:
    """Return what the names that a file imports stand for: `np` for `numpy`, `load` for `torch.load`."""
    names: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                names[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def _found(node: ast.AST, names: Mapping[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _is_forbidden_module(alias.name))
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        whole = [f"{node.module}.{alias.name}" for alias in node.names]
        yield from (
            [node.module]
            if _is_forbidden_module(node.module)
            else (name for name in whole if name in MODULES | CALLS | LOADERS)
        )
    elif isinstance(node, ast.Attribute | ast.Name) and _full_name(node, names) in LOADERS:
        yield _full_name(node, names)
    elif isinstance(node, ast.Call):
        yield from _found_in_call(node, names)


def _found_in_call(call: ast.Call, names: Mapping[str, str]) -> Iterator[str]:
    name = _full_name(call.func, names)
    if name in CALLS or name.rpartition(".")[2] in METHODS:
        yield name
    if name in ("importlib.import_module", "__import__") and call.args:
        module = _constant(call.args[0])
        if isinstance(module, str) and _is_forbidden_module(module):
            yield module
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    for keyword, wanted in KEYWORDS.items():
        if keyword in given and _constant(given[keyword]) is not wanted:
            yield f"{keyword}={ast.unparse(given[keyword])}"
    needed = NEEDED.get(name)
    if needed and needed not in given:
        yield f"{name} without {needed}"


def _full_name(node: ast.expr, names: Mapping[str, str]) -> str:
    """Return the dotted name of an expression with imports put in; `?` stands for a start without a name."""
    if isinstance(node, ast.Name):
        return names.get(node.id, node.id)
    if isinstance(node, ast.Attribute):
        return f"{_full_name(node.value, names)}.{node.attr}"
    return "?"


def _is_forbidden_module(name: str) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in MODULES)


def _constant(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Look through the project below a folder and return 1 where something is forbidden."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    root: Path = parser.parse_args(arguments).root
    found = findings_below(root)
    kept = {(finding.path, finding.name) for finding in found} & EXCEPTIONS.keys()
    problems = [
        f"{one.path}:{one.line}: {one.name} can run code that it reads; use safetensors, JSON or Parquet"
        for one in found
        if (one.path, one.name) not in kept
    ]
    problems += [
        f"{path}: the exception for {name} is needed no more; remove it from {Path(__file__).name}"
        for path, name in EXCEPTIONS
        if (root / path).exists() and (path, name) not in kept
    ]
    print(*(problems or [f"no pickle and no foreign code is read; {len(kept)} exceptions"]), sep="\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
