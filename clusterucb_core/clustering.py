"""Spherical k-means: clusters of unit rows by cosine, on scikit-learn.

K-means on unit rows minimises 2 - 2 cos to the cluster mean; the means are then scaled to unit length and
every row is assigned once more, by cosine.
"""

# scikit-learn and threadpoolctl ship no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false

import logging
import math
import warnings
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from clusterucb_core.frozen import Frozen
from clusterucb_core.pacing import Pace, advance
from clusterucb_core.records import FloatArray, IntArray

logger = logging.getLogger(__name__)

Float32Array = NDArray[np.float32]

AUTO_DRIFT_LIMIT = 0.1
MIN_AUTO_CLUSTERS = 2
MAX_AUTO_CLUSTERS = 500

# Above this many values (1 GiB of float32; `KMeans` takes as much again) the rows are clustered in batches.
FULL_PASS_VALUES = 2**28
_BATCH_ROWS = 8192
_BLOCK_VALUES = 2**24
_UNIT_TOLERANCE = 1e-3
# Cosines closer to 1 than this are equal rows up to float32 rounding: nothing is gained by a cluster of them.
_SAME_DIRECTION = 1e-5


class ClusterSettings(Frozen):
    """How the pool is cut into arms."""

    features: Literal["gradient", "hidden_state"] = Field(
        default="gradient",
        title="Features",
        description="Gradients at the first checkpoint, or mean hidden states there (no gradient pass)",
    )
    k: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto",
        title="Clusters",
        description="Number of clusters; auto: round(sqrt(N) / 1.5) within 2..500",
    )
    drift_limit: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | Literal["auto"] = Field(
        default="auto",
        title="Drift limit",
        description="A re-selection clusters anew where the mean distance to the centres has grown by more "
        "than this share since they were found; auto: 0.1",
    )


def cluster_count(k: int | Literal["auto"], n: int) -> int:
    """Return the number of clusters for n samples.

    Args:
        k: a number, which is returned as it is, or `auto`: round(sqrt(n) / 1.5) within 2..500, at most n.
        n: number of samples, at least 1.

    Raises:
        ValueError: no samples, or k is not in 1..n.
    """
    if n < 1:
        raise ValueError(f"n={n} samples cannot be clustered; at least 1 is needed")
    if k == "auto":
        return min(n, MAX_AUTO_CLUSTERS, max(MIN_AUTO_CLUSTERS, round(math.sqrt(n) / 1.5)))
    _check_cluster_count(k, n)
    return k


def drift_limit(settings: ClusterSettings) -> float:
    """Return the drift above which a changed pool is clustered anew."""
    return AUTO_DRIFT_LIMIT if settings.drift_limit == "auto" else settings.drift_limit


def drift_of(mean_distance: float, at_clustering: float) -> float:
    """Return by what share the mean distance of a pool to the centres has grown since they were found.

    Args:
        mean_distance: mean of 1 - cosine to the nearest centre, over the pool as it is.
        at_clustering: that of the pool from which the centres were found.

    Returns:
        The growth: 0.1 for a tenth more, below 0 where samples lie closer now; infinite where all samples lay
        on their centres and some do not any more.
    """
    if at_clustering <= _SAME_DIRECTION:
        return 0.0 if mean_distance <= _SAME_DIRECTION else math.inf
    return mean_distance / at_clustering - 1.0


def nearest_centers(features: FloatArray, centers: FloatArray) -> tuple[IntArray, float]:
    """Assign rows to given centres.

    Args:
        features: unit rows, [n, d], n at least 1.
        centers: unit rows, [k, d].

    Returns:
        The nearest centre of every row, [n]; ties go to the lowest. And the mean of 1 - cosine to it.

    Raises:
        ValueError: shapes that do not fit.
    """
    if features.ndim != 2 or centers.ndim != 2 or features.shape[1] != centers.shape[1] or not len(features):
        raise ValueError(
            f"features of shape {features.shape} and centres of shape {centers.shape} must be unit rows of "
            "one length, at least one of each"
        )
    every = np.ones(len(centers), dtype=np.bool_)
    with threadpool_limits(limits=1):
        labels, cosines = _assign(features, np.asarray(centers, dtype=np.float32), every)
    return labels, float(1.0 - cosines.mean(dtype=np.float64))


def spherical_kmeans(
    features: FloatArray, k: int, *, rng: np.random.Generator, iterations: int = 20
) -> tuple[IntArray, FloatArray]:
    """Return the cluster of every row and the unit centres.

    Runs on one thread: with more, the order of scikit-learn's sums, and with it the last bits of the centres,
    would change from run to run. Above `FULL_PASS_VALUES` values the rows are read in random batches
    (`MiniBatchKMeans`, `iterations` passes), so that a memory map is never loaded whole.

    Args:
        features: unit rows, [n, d], any float type.
        k: number of clusters, 1..n.
        rng: source of the first centres and of the batch order.
        iterations: the most passes over the rows.

    Returns:
        labels int64 [n], for every row the centre of the largest cosine (the lowest of equals), and centers
        float32 [k, d], unit rows. A cluster is empty only where there are fewer than k directions.

    Raises:
        ValueError: k is not in 1..n, `iterations` is below 1, or a row is not of unit length.
    """
    if features.ndim != 2:
        raise ValueError(f"features of shape {features.shape} must be [n, d]")
    _check_cluster_count(k, len(features))
    if iterations < 1:
        raise ValueError(f"iterations={iterations} must be at least 1")
    _check_unit_rows(features)
    # scikit-learn does not tell how far it has come with all rows at once
    logger.info("k-means: %d rows of %d values, %d clusters", *features.shape, k)
    with _one_quiet_thread():
        if features.size <= FULL_PASS_VALUES:
            means = _fit_whole(features, k, rng=rng, iterations=iterations)
        else:
            means = _fit_batches(features, k, rng=rng, iterations=iterations)
        return _settle(features, means)


@contextmanager
def _one_quiet_thread() -> Generator[None]:
    with threadpool_limits(limits=1), warnings.catch_warnings():
        # Fewer distinct rows than clusters: `_settle` handles what this warns of.
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


def _check_cluster_count(k: int, n: int) -> None:
    if not 1 <= k <= n:
        raise ValueError(f"k={k} clusters of n={n} samples; k must lie in 1..n")


def _check_unit_rows(features: FloatArray) -> None:
    step = max(1, _BLOCK_VALUES // max(1, features.shape[1]))
    for start in range(0, len(features), step):
        lengths = np.linalg.norm(np.asarray(features[start : start + step], dtype=np.float32), axis=1)
        wrong = np.flatnonzero(~(np.abs(lengths - 1.0) <= _UNIT_TOLERANCE))  # NaN is wrong, too
        if len(wrong):
            raise ValueError(
                f"row {start + wrong[0]} has length {lengths[wrong[0]]}; k-means by cosine needs unit rows: "
                "scale every row, and exclude those of zeros or NaN"
            )


def _blocks(features: FloatArray, width: int) -> Iterator[tuple[int, Float32Array]]:
    rows = max(1, _BLOCK_VALUES // max(1, width))
    for start in range(0, len(features), rows):
        yield start, _unit_rows(features[start : start + rows])


def _unit_rows(rows: FloatArray) -> Float32Array:
    """Return float32 rows scaled to length 1 exactly enough that equal rows have a cosine of 1."""
    wide = np.asarray(rows, dtype=np.float32)
    return wide / np.linalg.norm(wide, axis=1, keepdims=True)


def _fit_whole(features: FloatArray, k: int, *, rng: np.random.Generator, iterations: int) -> Float32Array:
    model = KMeans(
        n_clusters=k,
        n_init=1,  # pyright: ignore[reportArgumentType]
        max_iter=iterations,
        random_state=_random_state(rng),
    )
    return np.asarray(model.fit(_unit_rows(features)).cluster_centers_, dtype=np.float32)


def _fit_batches(features: FloatArray, k: int, *, rng: np.random.Generator, iterations: int) -> Float32Array:
    model = MiniBatchKMeans(
        n_clusters=k,
        n_init=1,  # pyright: ignore[reportArgumentType]
        random_state=_random_state(rng),
    )
    n = len(features)
    n_batches = max(1, n // max(_BATCH_ROWS, 4 * k))
    pace = Pace(logger, "k-means", "rows", iterations * n)
    for _ in range(iterations):
        for rows in np.array_split(rng.permutation(n), n_batches):
            model.partial_fit(_unit_rows(features[np.sort(rows)]))
            advance(pace, len(rows))
    return np.asarray(model.cluster_centers_, dtype=np.float32)


def _random_state(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31 - 1))


def _settle(features: FloatArray, means: Float32Array) -> tuple[IntArray, FloatArray]:
    """Scale the means to unit length, assign every row, and seed empty clusters anew until none is left."""
    lengths = np.linalg.norm(means.astype(np.float64), axis=1)
    usable = lengths > _SAME_DIRECTION  # the mean of opposite rows has no direction
    centers = np.where(usable[:, None], means / np.where(usable, lengths, 1.0)[:, None], 0.0).astype(
        np.float32
    )
    labels, cosines = _assign(features, centers, usable)
    for _ in range(len(centers)):
        empty = np.flatnonzero(~usable | (np.bincount(labels, minlength=len(centers)) == 0))
        if not len(empty) or (usable.all() and cosines.min() >= 1.0 - _SAME_DIRECTION):
            break
        farthest = np.argsort(cosines, kind="stable")[: len(empty)]
        centers[empty] = _unit_rows(features[np.sort(farthest)])
        usable[empty] = True
        labels, cosines = _assign(features, centers, usable)
    return labels, centers


def _assign(
    features: FloatArray, centers: Float32Array, usable: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], Float32Array]:
    """Return for every row its nearest usable centre and the cosine to it."""
    labels = np.zeros(len(features), dtype=np.int64)
    cosines = np.zeros(len(features), dtype=np.float32)
    pace = Pace(logger, "k-means, nearest centres", "rows", len(features))
    for start, block in _blocks(features, max(centers.shape)):
        scores = np.where(usable, block @ centers.T, -np.inf)
        best = scores.argmax(axis=1)
        labels[start : start + len(block)] = best
        cosines[start : start + len(block)] = scores[np.arange(len(block)), best]
        advance(pace, len(block))
    return labels, cosines
