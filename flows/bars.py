"""Progress of long tasks as bars on a terminal, one display for all of them, and log lines above it."""

import logging
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from clusterucb_core.pacing import BEGUN_AND_OVER, Pace, pace_of, pace_text

BAR_COLUMNS = 24
LEAST_BAR_COLUMNS = 6
GAP = 2
REFRESHES_PER_S = 5


class Bars(logging.Handler):
    """Shows the tasks that it is told of while they last; the display is there only while there is one."""

    def __init__(self, console: Console):
        super().__init__()
        self._console = console
        self._live: Live | None = None
        self._paces: dict[int, Pace] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Take up a task that begins, and drop one that is over."""
        pace = pace_of(record)
        assert pace is not None, "the logger names tasks only"
        if pace.is_over:
            self._paces.pop(id(pace), None)
        elif pace.total != 0:
            self._paces[id(pace)] = pace
        try:
            self._show()
        except OSError:  # the terminal is gone: no reason to end what is under way
            self.handleError(record)

    def close(self) -> None:
        """Take the display away, whatever is under way."""
        self.acquire()
        try:
            self._paces.clear()
            self._show()
        finally:
            self.release()
        super().close()

    def _show(self) -> None:
        if self._paces and self._live is None:
            # what others write to stderr meanwhile goes above the bars
            self._live = Live(
                get_renderable=self._rows,
                console=self._console,
                refresh_per_second=REFRESHES_PER_S,
                transient=True,
                redirect_stdout=False,
            )
            self._live.start()
        elif not self._paces and self._live is not None:
            self._live.stop()
            self._live = None

    def _rows(self) -> RenderableType:
        paces = list(self._paces.values())
        if not paces:
            return ""
        named = [(pace.what, _state(pace), pace) for pace in paces]
        # what is left to wait for matters most, the bar least
        room = self._console.width - max(len(state) for _, state, _ in named) - 2 * GAP
        bar_width = min(BAR_COLUMNS, room - max(len(what) for what, _, _ in named))
        with_bar = bar_width >= LEAST_BAR_COLUMNS
        table = Table.grid(padding=(0, GAP, 0, 0))
        table.add_column(
            no_wrap=True, overflow="ellipsis", max_width=max(1, room if with_bar else room + GAP)
        )
        for what, state, pace in named:
            table.add_row(Text(what), *([_bar(pace, bar_width)] if with_bar else []), Text(state))
        return table


@contextmanager
def bars(console: Console | None = None) -> Generator[None]:
    """Show the tasks that begin within the block, on stderr unless a console is given."""
    shown = Bars(console or Console(stderr=True))
    before = (BEGUN_AND_OVER.level, BEGUN_AND_OVER.propagate)
    BEGUN_AND_OVER.addHandler(shown)
    BEGUN_AND_OVER.setLevel(logging.DEBUG)
    BEGUN_AND_OVER.propagate = False  # no log is to hold them
    try:
        yield
    finally:
        BEGUN_AND_OVER.removeHandler(shown)
        BEGUN_AND_OVER.setLevel(before[0])
        BEGUN_AND_OVER.propagate = before[1]
        shown.close()


def _state(pace: Pace) -> str:
    seconds = time.monotonic() - pace.began_at
    return pace_text(pace.done, pace.total, unit=pace.unit, seconds=seconds)


def _bar(pace: Pace, width: int) -> ProgressBar:
    return ProgressBar(total=pace.total, completed=pace.done, width=width, pulse=pace.total is None)
