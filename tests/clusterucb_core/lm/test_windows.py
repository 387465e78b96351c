import numpy as np
import pytest

from clusterucb_core.lm.windows import fit_window


@pytest.mark.parametrize(
    ("turns", "head", "max_length", "kept", "supervised"),
    [
        # fits: all, less what follows the last supervised token
        ([-1, -1, 0, 0, -1], 0, 9, [0, 1, 2, 3], [0, 0, 1, 1]),
        # the prompt is cut from the left, first without and then with a head
        ([-1, -1, -1, -1, 0, 0], 0, 4, [2, 3, 4, 5], [0, 0, 1, 1]),
        ([-1, -1, -1, -1, 0, 0], 1, 4, [0, 3, 4, 5], [0, 0, 1, 1]),
        # the answer just fits behind one token of context
        ([-1, -1, -1, -1, 0, 0], 0, 3, [3, 4, 5], [0, 1, 1]),
        ([-1, -1, -1, -1, 0, 0], 1, 3, [0, 4, 5], [0, 1, 1]),
        # the answer alone is too long: its end goes
        ([-1, -1, 0, 0, 0, 0], 0, 3, [1, 2, 3], [0, 1, 1]),
        ([-1, -1, 0, 0, 0, 0], 1, 3, [0, 2, 3], [0, 1, 1]),
        # several turns: the last ones stay, a turn that is cut through loses its loss
        ([-1, 0, 0, 0, -1, 1, 1], 0, 5, [2, 3, 4, 5, 6], [0, 0, 0, 1, 1]),
        ([-1, 0, 0, -1, 1, 1], 1, 5, [0, 2, 3, 4, 5], [0, 0, 0, 1, 1]),
        ([-1, -1, 0, 0, -1, 1, 1], 1, 6, [0, 2, 3, 4, 5, 6], [0, 1, 1, 0, 1, 1]),
        # nothing predicts the first token
        ([0, 0, 0], 0, 9, [0, 1, 2], [0, 1, 1]),
        ([0, 0, 0, 0], 0, 2, [0, 1], [0, 1]),
        # a head that leaves no room
        ([-1, -1, -1, 0, 0], 3, 2, [0, 1], [0, 0]),
    ],
)
def test_windows_by_hand(turns, head, max_length, kept, supervised):
    window = fit_window(np.array(turns), head=head, max_length=max_length)
    assert window.kept.tolist() == kept
    assert window.supervised.astype(int).tolist() == supervised
    assert window.truncated == (max_length < np.flatnonzero(np.array(turns) >= 0)[-1] + 1)


@pytest.mark.parametrize("turns", [[], [-1, -1], [0]])
def test_without_a_token_that_can_carry_loss_the_window_is_empty(turns):
    window = fit_window(np.array(turns, dtype=np.int64), head=0, max_length=8)
    assert window.kept.size == window.supervised.size == 0
    assert not window.truncated


def test_any_window_keeps_its_limit_and_never_supervises_what_was_not():
    rng = np.random.default_rng(0)
    for _ in range(500):
        turns = np.repeat(np.where(np.arange(6) % 2, np.arange(6) // 2, -1), rng.integers(1, 6, size=6))
        limit = int(rng.integers(2, turns.size + 3))
        window = fit_window(turns, head=int(rng.integers(0, 2)), max_length=limit)
        assert window.kept.size <= limit
        assert (np.diff(window.kept) > 0).all()
        assert (turns[window.kept][window.supervised] >= 0).all()
        assert (turns[window.kept][window.supervised] == turns.max()).any()
