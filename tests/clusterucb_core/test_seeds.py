import hashlib

import numpy as np
import pytest

from clusterucb_core.seeds import child_rng, child_seed


def test_a_child_seed_is_63_bits_of_a_hash_of_its_names():
    digest = hashlib.sha256(b"7\x1farms\x1f12").digest()
    assert child_seed(7, "arms", "12") == int.from_bytes(digest[:8], "big") // 2
    assert all(0 <= child_seed(seed, "stage") < 2**63 for seed in range(50))


def test_the_same_names_give_the_same_numbers():
    first, second = child_rng(3, "policy", "a"), child_rng(3, "policy", "a")
    np.testing.assert_array_equal(first.integers(0, 1000, 20), second.integers(0, 1000, 20))


@pytest.mark.parametrize(
    "other", [(4, "policy", "a"), (3, "arms", "a"), (3, "policy", "b"), (3, "policya", "")]
)
def test_another_seed_stage_or_key_gives_other_numbers(other):
    assert child_seed(*other) != child_seed(3, "policy", "a")


def test_names_do_not_run_into_each_other():
    assert child_seed(1, "2", "3") != child_seed(12, "", "3") != child_seed(1, "23", "")


def test_the_global_generator_is_left_alone():
    before = np.random.get_state()[1].copy()
    child_rng(0, "stage").random(10)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
