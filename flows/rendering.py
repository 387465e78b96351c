"""What commands write: tables and JSON to stdout, everything else to stderr.

Text of samples and files is shown as it is, never read as markup, and cannot steer the terminal.
"""

import json
import logging
import math
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from typing import IO, Any, cast

import typer

from clusterucb_core.pacing import pace_of
from flows.home import OWN_LOGGERS

ABSENT = "–"
# Where stdout is no terminal nothing is cut to a width that nobody chose.
FILE_COLUMNS = 200


def print_json(value: object) -> None:
    """Write one JSON value to stdout; numbers that JSON lacks (NaN, infinities) become null."""
    typer.echo(json.dumps(_finite(value), indent=2, default=str))


def print_table(
    headers: Sequence[str], rows: Sequence[Sequence[object]], *, gap: bool = False, left: int = 1
) -> None:
    """Write a table to stdout.

    Args:
        headers: names of the columns.
        rows: cells; None is shown as a dash.
        gap: leave a line empty above the table.
        left: how many of the first columns are flush left; the others hold numbers.
    """
    from rich.console import Console  # what takes long to import, and many calls print no table
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=None, show_header=any(headers), pad_edge=False, padding=(0, 2, 0, 0), header_style="bold"
    )
    for position, header in enumerate(headers):
        table.add_column(header, justify="left" if position < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if gap:
        typer.echo()
    width = None if sys.stdout.isatty() else FILE_COLUMNS
    Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False).print(table)


def say(text: str = "") -> None:
    """Write a line of a result to stdout."""
    typer.echo(_harmless(text))


def tell(text: str) -> None:
    """Write a message to stderr."""
    typer.echo(_harmless(text), err=True)


def printable(cell: object) -> str:
    """Return a cell as text of one line."""
    return ABSENT if cell is None else "".join(c if c.isprintable() else " " for c in str(cell))


def cut(text: str, length: int) -> str:
    """Return a text of at most so many characters, on one line."""
    line = " ".join(printable(text).split())
    return line if len(line) <= length else line[: length - 3] + "..."


def count(value: int | None) -> str | None:
    """Return a whole number with separators."""
    return None if value is None else f"{value:,}"


def counted(value: int, noun: str) -> str:
    """Return a number with its noun, such as `1 training` and `2 trainings`."""
    return f"{value:,} {noun}" + ("" if value == 1 else "s")


def decimal(value: float | None, digits: int = 4) -> str | None:
    """Return a number with so many digits after the point."""
    return None if value is None or math.isnan(value) else f"{value:.{digits}f}"


def interval(value: float | None, low: float | None, high: float | None) -> str | None:
    """Return a number with its interval."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return decimal(value)
    return f"{decimal(value)} [{decimal(low)}, {decimal(high)}]"


def percent(part: float, whole: float) -> str | None:
    """Return a share in per cent."""
    return None if not whole else f"{100 * part / whole:.1f} %"


def size(n_bytes: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n_bytes < 1024:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} TiB"


@contextmanager
def only_messages() -> Generator[None]:
    """Send to stderr what libraries and child processes write to stdout within the block."""
    sys.stdout.flush()
    with redirect_stdout(cast("IO[str]", _AsStderr())):
        kept = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)


@contextmanager
def log_to_stderr(*, verbose: bool) -> Generator[None]:
    """Show the log on stderr within the block: progress on a terminal or if asked, else warnings.

    On a terminal that can show them, bars stand for the log lines that tell how far a task has come.
    """
    at_terminal = sys.stderr.isatty()
    handler = _StderrLines()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
    # the level is the handler's own: a run's log is kept whole whatever is shown
    handler.setLevel(logging.INFO if verbose or at_terminal else logging.WARNING)
    shown: AbstractContextManager[None] = nullcontext()
    if at_terminal and _has_a_cursor():
        from flows.bars import bars

        shown = bars()
        handler.addFilter(lambda record: pace_of(record) is None)
    with _heard_by(handler), shown:
        yield


def _has_a_cursor() -> bool:
    """Tell whether the terminal can show bars."""
    return os.environ.get("TERM", "").lower() not in ("", "dumb", "unknown")


@contextmanager
def _heard_by(handler: logging.Handler) -> Generator[None]:
    """Give a handler alone everything from INFO on that our own loggers say."""
    loggers = [logging.getLogger(name) for name in OWN_LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (old_level, old_propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(old_level)
            logger.propagate = old_propagate


class _StderrLines(logging.StreamHandler[Any]):
    """Writes to what stderr is at the moment: while bars are shown, to above them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the line."""
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, which may name a file of somebody else, as text that cannot steer the terminal."""
        return _harmless(super().format(record))


class _AsStderr:
    """Stands for what stderr is at the moment it is used."""

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


def _harmless(text: str) -> str:
    return "\n".join(printable(line) for line in text.split("\n"))


def _finite(value: object) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
