import math

import polars as pl
import pytest

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.export.chosen import chosen_samples, weighted
from clusterucb_core.export.options import ExportOptions
from clusterucb_core.store import open_catalog, withdraw_samples

SAMPLES = [[{"role": "user", "content": str(n)}, {"role": "assistant", "content": "a"}] for n in range(6)]


def scored(*influence):
    return pl.DataFrame({"influence": influence}, schema={"influence": pl.Float64})


@pytest.mark.parametrize(
    ("influence", "weights"),
    [
        ([3.0, 1.0], [1.5, 0.5]),
        ([3.0, 1.0, -4.0, 0.0], [3.0, 1.0, 0.0, 0.0]),
        ([0.1], [1.0]),
        ([-1.0, 0.0], [1.0, 1.0]),
        ([], []),
    ],
)
def test_weights_are_influence_not_below_0_over_its_mean(influence, weights):
    found = weighted(scored(*influence))["weight"].to_list()
    assert found == pytest.approx(weights)
    assert not found or math.isclose(sum(found) / len(found), 1.0)


def test_that_all_weights_are_1_is_said(caplog):
    weighted(scored(-1.0, -2.0))
    assert "no sample has an influence above 0" in caplog.text


def test_samples_without_influence_have_no_weights(catalog):
    path = catalog(*SAMPLES[:2], influence=[None, None])
    with pytest.raises(InvalidConfig, match=r"2 of 2 samples of version 1 .*policy full.* have no influence"):
        chosen_samples(path, 1, ExportOptions(weights=True))
    assert len(chosen_samples(path, 1, ExportOptions()).samples) == 2


def ranks(path, **options):
    return chosen_samples(path, 1, ExportOptions(**options)).samples["rank"].to_list()


def test_an_order_by_source_keeps_ranks_within_one(catalog):
    path = catalog(*SAMPLES, sources=["b", "a", "b", "c", "a", "b"])
    assert ranks(path, order="source") == [2, 5, 1, 3, 6, 4]
    assert ranks(path) == [1, 2, 3, 4, 5, 6]


def test_a_random_order_is_that_of_its_seed(catalog):
    path = catalog(*SAMPLES)
    orders = [ranks(path, order="random", seed=seed) for seed in (0, 1, 2, 3)]
    assert ranks(path, order="random", seed=0) == orders[0]
    assert all(sorted(order) == [1, 2, 3, 4, 5, 6] for order in orders)
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("order", ["rank", "random", "source"])
def test_a_sample_that_leaves_moves_no_other_and_changes_no_weight(catalog, order):
    path = catalog(*SAMPLES, sources=["b", "a", "b", "c", "a", "b"])
    options = ExportOptions(order=order, weights=True)
    before = chosen_samples(path, 1, options).samples
    with open_catalog(path) as con:
        withdraw_samples(con, ["id7"], reason="asked for")
    after = chosen_samples(path, 1, options)
    assert after.samples.equals(before.filter(pl.col("sample_id") != "id7"))
    assert (after.withdrawn, after.erased) == (1, 0)


def test_the_versions_of_selection_and_pool_are_told(catalog):
    found = chosen_samples(catalog(*SAMPLES), None, ExportOptions()).samples
    assert found.select("selection_version", "pool_version").unique().rows() == [(1, 1)]
