from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from clusterucb_core import clustering
from clusterucb_core.clustering import (
    ClusterSettings,
    cluster_count,
    drift_limit,
    drift_of,
    nearest_centers,
    spherical_kmeans,
)
from clusterucb_core.seeds import child_rng


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def blobs(n: int = 300, k: int = 5, d: int = 16, spread: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around k orthogonal directions, and the direction of each row."""
    rng = np.random.default_rng(3)
    truth = rng.integers(k, size=n)
    return unit(np.eye(d)[truth] + spread * rng.normal(size=(n, d))), truth


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


def check_result(features: np.ndarray, labels: np.ndarray, centers: np.ndarray) -> None:
    np.testing.assert_allclose(np.linalg.norm(centers, axis=1), 1.0, atol=1e-6)
    cosines = features.astype(np.float64) @ centers.astype(np.float64).T
    own = cosines[np.arange(len(features)), labels]
    np.testing.assert_allclose(own, cosines.max(axis=1), atol=1e-6)
    assert (centers.dtype, labels.dtype) == (np.float32, np.int64)


def test_separated_blobs_give_the_partition_of_scikit_learn():
    features, truth = blobs()
    labels, centers = spherical_kmeans(features, 5, rng=child_rng(0, "cluster"))
    reference = KMeans(5, n_init=10, random_state=0).fit(features).labels_
    assert same_partition(reference, truth)
    assert same_partition(labels, truth)
    check_result(features, labels, centers)


def test_every_row_lies_with_its_nearest_center_without_clear_clusters():
    features = unit(np.random.default_rng(0).normal(size=(400, 12)))
    labels, centers = spherical_kmeans(features, 20, rng=child_rng(0, "cluster"))
    check_result(features, labels, centers)
    assert np.bincount(labels, minlength=20).min() >= 1


def test_the_centers_are_the_directions_of_the_cluster_means():
    features, _ = blobs()
    labels, centers = spherical_kmeans(features, 5, rng=child_rng(0, "cluster"))
    means = np.stack([features[labels == label].mean(axis=0) for label in range(5)])
    np.testing.assert_allclose(centers, unit(means), atol=1e-5)


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_features_alone():
    features = unit(np.random.default_rng(1).normal(size=(500, 32)))
    before = features.copy()
    first = spherical_kmeans(features, 12, rng=child_rng(5, "cluster"))
    second = spherical_kmeans(features, 12, rng=child_rng(5, "cluster"))
    assert [part.tobytes() for part in first] == [part.tobytes() for part in second]
    np.testing.assert_array_equal(features, before)


def test_the_number_of_threads_changes_no_byte():
    features = unit(np.random.default_rng(1).normal(size=(3000, 48)))
    results: set[tuple[bytes, ...]] = set()
    for threads in (1, 2, 4):
        with threadpool_limits(limits=threads):
            parts = spherical_kmeans(features, 30, rng=child_rng(2, "cluster"))
        results.add(tuple(part.tobytes() for part in parts))
    assert len(results) == 1


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_duplicate_rows_give_unit_centers_and_no_warning(k: int):
    features = np.tile(unit(np.array([[1.0, 2.0, 3.0]])), (9, 1))
    labels, centers = spherical_kmeans(features, k, rng=child_rng(0, "cluster"))
    check_result(features, labels, centers)


@pytest.mark.parametrize("seed", range(5))
def test_two_far_rows_among_duplicates_get_clusters_of_their_own(seed: int):
    features = unit(np.array([[1.0, 0.0, 0.0]] * 30 + [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]))
    labels, centers = spherical_kmeans(features, 3, rng=child_rng(seed, "cluster"))
    assert sorted(np.bincount(labels, minlength=3).tolist()) == [1, 1, 30]
    check_result(features, labels, centers)


def test_opposite_rows_never_give_a_zero_center():
    features = np.array([[1.0, 0.0], [-1.0, 0.0]] * 4, dtype=np.float32)
    labels, centers = spherical_kmeans(features, 1, rng=child_rng(0, "cluster"))
    assert np.linalg.norm(centers[0]) == pytest.approx(1.0)
    assert labels.tolist() == [0] * 8


def test_an_empty_cluster_is_seeded_with_the_row_farthest_from_its_center():
    features, _ = blobs(k=4, spread=0.01)
    means = unit(np.eye(16)[[0, 1, 2]])
    means = np.concatenate([means, means[:1]])  # a copy of the first: no row prefers it
    labels, centers = clustering._settle(features, means)
    assert np.bincount(labels, minlength=4).min() >= 1
    assert centers[3][3] > 0.99
    check_result(features, labels, centers)


def test_batches_find_the_same_blobs_as_a_whole_pass(monkeypatch: pytest.MonkeyPatch):
    features, truth = blobs(n=2000, spread=0.02)
    monkeypatch.setattr(clustering, "FULL_PASS_VALUES", 100)
    monkeypatch.setattr(clustering, "_BATCH_ROWS", 256)
    monkeypatch.setattr(clustering, "_BLOCK_VALUES", 1000)
    first, second = (spherical_kmeans(features, 5, rng=child_rng(1, "cluster")) for _ in range(2))
    assert same_partition(first[0], truth)
    assert [part.tobytes() for part in first] == [part.tobytes() for part in second]
    check_result(features, *first)


def test_a_float16_memory_map_is_clustered_like_the_array(tmp_path: Path):
    features, truth = blobs()
    np.save(tmp_path / "features.npy", features.astype(np.float16))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r", allow_pickle=False)
    labels, centers = spherical_kmeans(mapped, 5, rng=child_rng(0, "cluster"))
    assert same_partition(labels, truth)
    check_result(unit(mapped.astype(np.float32)), labels, centers)


@pytest.mark.parametrize("k", [0, -1, 31])
def test_a_number_of_clusters_that_cannot_be_names_both_figures(k: int):
    features, _ = blobs(n=30)
    with pytest.raises(ValueError, match=rf"k={k} clusters of n=30 samples"):
        spherical_kmeans(features, k, rng=child_rng(0, "cluster"))
    with pytest.raises(ValueError, match=rf"k={k} clusters of n=30 samples"):
        cluster_count(k, 30)


@pytest.mark.parametrize("value", [0.0, 0.5, np.nan, np.inf])
def test_a_row_that_is_not_of_unit_length_is_named(value: float):
    features, _ = blobs(n=30)
    features[11] = value
    with pytest.raises(ValueError, match=r"row 11 has length .* needs unit rows"):
        spherical_kmeans(features, 3, rng=child_rng(0, "cluster"))


def test_arguments_of_the_wrong_kind_are_refused():
    with pytest.raises(ValueError, match=r"features of shape \(4,\)"):
        spherical_kmeans(np.ones(4), 1, rng=child_rng(0, "cluster"))
    with pytest.raises(ValueError, match="iterations=0"):
        spherical_kmeans(np.eye(3), 1, rng=child_rng(0, "cluster"), iterations=0)


@pytest.mark.parametrize(
    ("n", "expected"),
    # sqrt(6000) / 1.5 = 51.6; sqrt(562,500) / 1.5 = 500
    [(1, 1), (2, 2), (5, 2), (100, 7), (6000, 52), (562_500, 500), (10**7, 500)],
)
def test_the_automatic_number_of_clusters_by_hand(n: int, expected: int):
    assert cluster_count("auto", n) == expected


def test_a_given_number_of_clusters_is_kept():
    assert cluster_count(50, 6000) == 50
    with pytest.raises(ValueError, match="n=0 samples cannot be clustered"):
        cluster_count("auto", 0)


def test_settings_have_the_documented_defaults_and_refuse_the_impossible():
    assert ClusterSettings().model_dump() == {"features": "gradient", "k": "auto", "drift_limit": "auto"}
    assert ClusterSettings(features="hidden_state", k=50, drift_limit=0.2).k == 50
    for values in ({"k": 0}, {"k": "many"}, {"drift_limit": -1.0}, {"features": "loss"}, {"clusters": 3}):
        with pytest.raises(ValidationError):
            ClusterSettings.model_validate(values)


def test_every_setting_has_a_title_and_a_description_for_the_form():
    for field in ClusterSettings.model_fields.values():
        assert field.title
        assert field.description


def test_rows_go_to_the_centers_that_are_there():
    features, _ = blobs()
    labels, centers = spherical_kmeans(features, 5, rng=child_rng(0, "cluster"))
    found, distance = nearest_centers(features, centers)
    np.testing.assert_array_equal(found, labels)
    cosines = (features.astype(np.float64) @ centers.astype(np.float64).T).max(axis=1)
    assert distance == pytest.approx(float(np.mean(1.0 - cosines)), abs=1e-6)


def test_drift_is_the_growth_of_the_mean_distance_to_the_centers():
    features, _ = blobs()
    _, centers = spherical_kmeans(features, 5, rng=child_rng(0, "cluster"))
    _, before = nearest_centers(features, centers)
    elsewhere = unit(np.eye(16)[np.full(100, 9)] + 0.05 * np.random.default_rng(0).normal(size=(100, 16)))
    _, now = nearest_centers(np.concatenate([features, elsewhere]), centers)
    # a quarter of the rows lie at right angles to all centres: a distance of 1 each
    assert now == pytest.approx(0.75 * before + 0.25, abs=0.03)
    assert drift_of(now, before) == pytest.approx(now / before - 1.0)
    assert drift_of(before, before) == 0.0


def test_rows_that_leave_centers_on_which_all_lay_have_drifted_without_limit():
    assert drift_of(0.0, 0.0) == 0.0
    assert drift_of(0.1, 0.0) == float("inf")


def test_the_drift_limit_is_a_tenth_unless_it_is_set():
    assert drift_limit(ClusterSettings()) == 0.1
    assert drift_limit(ClusterSettings(drift_limit=0.0)) == 0.0


def test_centers_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"features of shape \(3, 4\) and centres of shape \(2, 5\)"):
        nearest_centers(unit(np.ones((3, 4))), unit(np.ones((2, 5))))
