import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.features.batches import plan_batches


def test_batches_hold_samples_of_like_length_within_the_budget():
    # sorted lengths 2 3 3 5 9: 3 x 3 fits 10 and a fourth sample would make 4 x 5; the 9 is alone
    batches = plan_batches(np.array([9, 3, 5, 3, 2]), max_batch_tokens=10)
    assert [batch.tolist() for batch in batches] == [[4, 1, 3], [2], [0]]


def test_a_sample_above_the_budget_is_a_batch_of_its_own():
    assert [batch.tolist() for batch in plan_batches(np.array([50, 1, 60]), max_batch_tokens=10)] == [
        [1],
        [0],
        [2],
    ]


def test_no_samples_give_no_batches():
    assert plan_batches(np.array([], dtype=np.int64), max_batch_tokens=10) == []


def test_a_budget_below_one_is_refused():
    with pytest.raises(InvalidConfig, match="max_batch_tokens=0"):
        plan_batches(np.array([1]), max_batch_tokens=0)


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(0, 30), max_size=40), budget=st.integers(1, 100))
def test_batches_cover_every_sample_once_and_keep_the_budget(lengths, budget):
    lengths = np.array(lengths, dtype=np.int64)
    batches = plan_batches(lengths, max_batch_tokens=budget)
    assert sorted(index for batch in batches for index in batch.tolist()) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= budget for batch in batches)
