import numpy as np

from clusterucb_core.report.pool_map import lay_out


def groups(n, d=12):
    rng = np.random.default_rng(0)
    directions = np.eye(d)[:3]
    labels = np.arange(n) % 3
    rows = directions[labels] + 0.05 * rng.normal(size=(n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def test_what_points_the_same_way_lies_together():
    features, labels = groups(60)
    places = lay_out(features, seed=1)
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(axis=1)] == labels).all()


def test_same_features_and_seed_give_the_same_places():
    features, _ = groups(30)
    np.testing.assert_array_equal(lay_out(features, seed=2**40), lay_out(features, seed=2**40))


def test_a_handful_of_samples_can_be_laid_out():
    assert lay_out(groups(10)[0], seed=0).shape == (10, 2)
