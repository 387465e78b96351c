"""The clock of a run: what its stage tasks took, and which found their work done."""

import time

from prefect import flow, task

from clusterucb_core.tracks import StageTime
from tasks.clock import add_time, clocked, stage_clock


@task(
    name="slow stage",
    cache_key_fn=lambda _, parameters: f"slow-{parameters['key']}",
    persist_result=True,
    result_serializer="json",
    on_completion=[clocked],
)
def slow(key):
    time.sleep(0.2)
    return key


@flow(persist_result=False)
def three_calls(key):
    with stage_clock() as clock:
        for _ in range(3):
            slow(key)
    return list(clock.times.values())


def test_a_flow_run_times_its_stages_and_counts_those_that_were_cached(prefect_server, tmp_path):
    (found,) = three_calls(str(tmp_path))
    assert (found.stage, found.calls, found.cached) == ("slow stage", 3, 2)
    assert 0.2 <= found.seconds < 5.0


def test_times_of_a_stage_add_up_and_stages_keep_their_order():
    with stage_clock() as clock:
        add_time("draws", calls=1, cached=0, seconds=1.5)
        add_time("features", calls=4, cached=1, seconds=2.0)
        add_time("draws", calls=1, cached=1, seconds=0.25)
    assert list(clock.times.values()) == [
        StageTime(stage="draws", calls=2, cached=1, seconds=1.75),
        StageTime(stage="features", calls=4, cached=1, seconds=2.0),
    ]


def test_without_a_clock_nothing_is_counted_and_a_later_clock_begins_at_zero():
    add_time("draws", calls=1, cached=0, seconds=1.5)
    with stage_clock() as clock:
        assert clock.times == {}
