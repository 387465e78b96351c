"""What joined and left a pool, and what a re-selection may spend on it."""

import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.records import ArtifactRef
from clusterucb_core.selection import SelectionSettings
from clusterucb_core.stages.pool_change import (
    PoolChange,
    ReselectSettings,
    asks_for_warmup,
    fresh_samples,
    pool_change,
)


@pytest.fixture
def candidates(tmp_path):
    def write(*ids: str) -> ArtifactRef:
        key = "-".join(ids)
        with new_artifact(tmp_path, "candidates", key, {"n_pool": len(ids)}) as folder:
            (folder / "sample_ids.txt").write_text("\n".join(sorted(ids)))
        return ArtifactRef(stage="candidates", fingerprint=key, path=str(tmp_path / "candidates" / key))

    return write


def test_samples_that_joined_and_left_are_counted_apart(candidates):
    change = pool_change(candidates("b", "c", "d", "e"), candidates("a", "b", "c"), candidates("a", "b"))
    assert change == PoolChange(n_samples=4, n_added=2, n_removed=1, n_since_warmup=3)
    assert not change.is_none


def test_the_same_candidates_are_no_change(candidates):
    same = candidates("a", "b")
    assert pool_change(same, same, candidates("a")).is_none


@pytest.mark.parametrize(("n_since", "wanted"), [(50, False), (51, True)])
def test_a_new_warmup_is_asked_for_above_the_share_of_new_samples(n_since, wanted):
    change = PoolChange(n_samples=100, n_added=0, n_removed=0, n_since_warmup=n_since)
    assert asks_for_warmup(change, ReselectSettings()) is wanted


@pytest.mark.parametrize(("n_added", "wanted"), [(0, 64), (350, 64), (641, 64), (650, 65), (10_000, 1000)])
def test_the_fresh_budget_is_a_share_of_what_is_new_and_at_least_64(n_added, wanted):
    assert fresh_samples(SelectionSettings(budget_fraction=0.1), n_added) == wanted
