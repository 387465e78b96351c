"""Progress lines: what they say, and how seldom."""

import logging
import threading

import pytest

from clusterucb_core import pacing
from clusterucb_core.errors import RunStopped
from clusterucb_core.pacing import (
    BEGUN_AND_OVER,
    Pace,
    advance,
    duration_text,
    finish,
    pace_of,
    pace_text,
    paced,
    stopped_by,
)

LOG = logging.getLogger("clusterucb_core.test")


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (1200, 4800, 12.0, "1,200 of 4,800 samples, 100/s, 36 s left"),
        (1, 3, 4.0, "1 of 3 samples, 0.25/s, 8.0 s left"),
        (3, 3, 4.0, "3 of 3 samples, 0.75/s"),
        (0, 3, 4.0, "0 of 3 samples, 0/s"),
        (500, None, 2.0, "500 samples, 250/s"),
        (1, 1, 0.0, "1 of 1 samples, 1,000,000,000/s"),
    ],
)
def test_a_line_tells_done_total_rate_and_time_left(done, total, seconds, text):
    assert pace_text(done, total, unit="samples", seconds=seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.44, "0.4 s"), (119, "119 s"), (600, "10 min"), (9000, "2.5 h")]
)
def test_a_duration_has_the_unit_that_suits_it(seconds, text):
    assert duration_text(seconds) == text


def test_a_task_says_nothing_until_its_last_line_is_some_seconds_old(caplog):
    caplog.set_level(logging.INFO)
    pace = Pace(LOG, "reading", "rows", 10)
    advance(pace, 2)
    assert caplog.messages == []
    pace.began_at -= 2 * pacing.REPORT_EVERY_S
    pace.reported_at -= pacing.REPORT_EVERY_S
    advance(pace, 3, "in a file")
    advance(pace, 1)
    (line,) = caplog.messages
    assert line.startswith("reading: 5 of 10 rows, 0.5/s, 10 s left; in a file")
    assert pace.done == 6


def test_paced_items_are_given_in_order_and_counted_once_they_are_done():
    pace, seen = Pace(LOG, "reading", "rows", 3), []
    for item in paced("abc", pace):
        seen.append((item, pace.done))
    assert seen == [("a", 0), ("b", 1), ("c", 2)]
    assert pace.done == 3


@pytest.fixture
def told():
    """What a listener is told of tasks: whether each was over."""
    records = []
    listener = logging.Handler(logging.DEBUG)
    listener.emit = lambda record: records.append((pace_of(record).what, pace_of(record).is_over))
    BEGUN_AND_OVER.addHandler(listener)
    BEGUN_AND_OVER.setLevel(logging.DEBUG)
    yield records
    BEGUN_AND_OVER.removeHandler(listener)
    BEGUN_AND_OVER.setLevel(logging.NOTSET)


def test_a_listener_is_told_of_the_beginning_and_of_the_end_of_a_task(told):
    pace = Pace(LOG, "reading", "rows", 3)
    assert told == [("reading", False)]
    advance(pace, 2)
    assert told == [("reading", False)]
    advance(pace)
    finish(pace)
    assert told == [("reading", False), ("reading", True)]


def test_a_task_without_a_total_is_over_once_that_is_said(told):
    pace = Pace(LOG, "drawing", "gradients", None)
    advance(pace, 5)
    finish(pace)
    assert told == [("drawing", False), ("drawing", True)]


def test_where_nobody_listens_nothing_is_said(caplog):
    caplog.set_level(logging.INFO)
    finish(Pace(LOG, "drawing", "gradients", None))
    assert caplog.records == []


def test_a_line_knows_its_task(caplog):
    caplog.set_level(logging.INFO)
    pace = Pace(LOG, "reading", "rows", 10)
    pace.reported_at -= pacing.REPORT_EVERY_S
    advance(pace)
    LOG.info("something else")
    assert [pace_of(record) for record in caplog.records] == [pace, None]


def test_a_task_that_is_asked_to_stop_does_so_where_it_counts():
    asked = threading.Event()
    with stopped_by(asked):
        items = paced(range(5), Pace(LOG, "work", "rows", 5))
        assert [next(items), next(items)] == [0, 1]
        asked.set()
        with pytest.raises(RunStopped, match="work was stopped; what was finished before is kept"):
            next(items)
    advance(Pace(LOG, "another", "rows", 5))  # outside of the block nothing is asked
