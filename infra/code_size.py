"""Print the median and largest file and function length of the project; exit 1 where a limit is passed.

A file counts all its lines. A function counts from `def` to its last line, signature and docstring included;
a nested function counts for itself and inside its parent. Aims and limits are those of the style guide.
"""

import argparse
import ast
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("clusterucb_core", "flows", "tasks")
FILE_AIM, FILE_LIMIT = 150, 400
FUNCTION_AIM, FUNCTION_LIMIT = 15, 60


@dataclass(frozen=True)
class Length:
    """The length of one file or function.

    Args:
        name: where it is: `folder/file.py`, or `folder/file.py:line function`.
        lines: its number of lines.
    """

    name: str
    lines: int


def file_length(path: Path, *, root: Path) -> Length:
    """Return the length of one source file, named relative to `root`."""
    return Length(path.relative_to(root).as_posix(), len(path.read_text("utf-8").splitlines()))


def function_lengths(path: Path, *, root: Path) -> Iterator[Length]:
    """Yield the length of every function and method of one source file."""
    name = path.relative_to(root).as_posix()
    for node in ast.walk(ast.parse(path.read_text("utf-8"), filename=str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Length(
                f"{name}:{node.lineno} {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1
            )


def report(kind: str, lengths: Sequence[Length], *, aim: int, limit: int) -> list[str]:
    """Return the lines to print for one kind: a summary, then one line for each length past the limit.

    Args:
        kind: plural noun, `files` or `functions`.
        lengths: at least one length.
        aim: the median that the style guide aims for, in lines.
        limit: the largest length allowed, in lines.
    """
    largest = max(lengths, key=lambda length: length.lines)
    median = statistics.median(length.lines for length in lengths)
    summary = (
        f"{len(lengths)} {kind}: median {median:g} lines (aim {aim}), "
        f"largest {largest.lines} (limit {limit}): {largest.name}"
    )
    return [
        summary,
        *(f"too long: {length.name}: {length.lines} lines" for length in too_long(lengths, limit)),
    ]


def too_long(lengths: Sequence[Length], limit: int) -> list[Length]:
    """Return the lengths past the limit, longest first."""
    return sorted((length for length in lengths if length.lines > limit), key=lambda length: -length.lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the packages below a folder and return the exit status: 0 within the limits, else 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    root: Path = parser.parse_args(arguments).root
    paths = sorted(path for package in PACKAGES for path in (root / package).rglob("*.py"))
    files = [file_length(path, root=root) for path in paths]
    functions = [length for path in paths for length in function_lengths(path, root=root)]
    if not functions:
        parser.error(
            f"no function found in {', '.join(PACKAGES)} below {root}; name the project's root folder"
        )
    print(*report("files", files, aim=FILE_AIM, limit=FILE_LIMIT), sep="\n")
    print(*report("functions", functions, aim=FUNCTION_AIM, limit=FUNCTION_LIMIT), sep="\n")
    return int(bool(too_long(files, FILE_LIMIT) or too_long(functions, FUNCTION_LIMIT)))


if __name__ == "__main__":
    sys.exit(main())
