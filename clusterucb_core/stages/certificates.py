"""What a selection is estimated to have missed, from the audit that its draws end with."""

import numpy as np

from clusterucb_core.certificate import Certificate, SeenByTurns, certify, certify_turns
from clusterucb_core.influence import Aggregate, Choice, takes_turns
from clusterucb_core.stages.drawn import Drawn


def certificate_of(
    drawn: Drawn, choice: Choice, *, aggregate: Aggregate, rng: np.random.Generator
) -> Certificate | None:
    """Return what a selection is estimated to have missed; None where nothing was audited.

    Args:
        drawn: what was drawn.
        choice: what was selected of it.
        aggregate: how it was selected.
        rng: source of all randomness.
    """
    if drawn.pulls is None or drawn.n_uniform == 0:
        return None
    k, known = len(choice.rows), len(drawn.seen) - drawn.n_uniform
    if takes_turns(aggregate):
        turn = dict(zip(choice.rows.tolist(), range(k), strict=True))
        turns = np.array([turn.get(row, k) for row in drawn.seen.tolist()])
        seen = SeenByTurns(drawn.scores, turns, known, drawn.n_left)
        return certify_turns(seen, k=k, rng=rng)
    rewards = drawn.pulls.rewards
    return certify(rewards[:known], rewards[known:], drawn.n_left, k=k, rng=rng)
