"""Ridge regression of rewards on side information, updated round by round from running sums.

The penalty of each output minimises generalised cross-validation (Golub, Heath and Wahba, 1979), which the
eigenvalues of the Gram matrix give for every penalty at once. The intercept is not penalised.
"""

from dataclasses import dataclass

import numpy as np

from clusterucb_core.bandit.arms import Float64Array
from clusterucb_core.records import FloatArray

# Penalties tried, relative to the mean eigenvalue of the Gram matrix.
_PENALTIES = np.logspace(-5, 3, 33)


@dataclass(slots=True)
class RidgeSums:
    """Running sums over n rows; only `add_rows` changes them.

    `inputs` [f] and `outputs` [s] are sums, `gram` [f, f] and `moments` [f, s] sums of products, `squares`
    [s] sums of squared outputs, all of values taken relative to `origin` [f] and `level` [s].
    """

    n: int
    origin: Float64Array
    level: Float64Array
    inputs: Float64Array
    outputs: Float64Array
    gram: Float64Array
    moments: Float64Array
    squares: Float64Array


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """A fitted regression: `intercepts` [s], `weights` [f, s].

    `penalties` [s] are the chosen ones; `variances` [s] estimate the noise; `spectrum` [f] and `axes` [f, f]
    are the eigenvalues and eigenvectors of the centred Gram matrix around `centre` [f].
    """

    intercepts: Float64Array
    weights: Float64Array
    penalties: Float64Array
    variances: Float64Array
    centre: Float64Array
    spectrum: Float64Array
    axes: Float64Array
    n: int


def fresh_sums(inputs: int, outputs: int) -> RidgeSums:
    """Return the sums over no rows, of `inputs` columns of side information and `outputs` rewards a row."""
    f, s = inputs, outputs
    return RidgeSums(
        n=0,
        origin=np.zeros(f),
        level=np.zeros(s),
        inputs=np.zeros(f),
        outputs=np.zeros(s),
        gram=np.zeros((f, f)),
        moments=np.zeros((f, s)),
        squares=np.zeros(s),
    )


def add_rows(sums: RidgeSums, x: FloatArray, y: FloatArray) -> None:
    """Add rows to the sums.

    Args:
        sums: changed in place.
        x: side information [m, f].
        y: outputs [m, s], finite.
    """
    if len(x) == 0:
        return
    if sums.n == 0:
        # sums around the first rows: a large common offset costs no precision
        sums.origin = np.asarray(x, dtype=np.float64).mean(axis=0)
        sums.level = np.asarray(y, dtype=np.float64).mean(axis=0)
    moved = np.asarray(x, dtype=np.float64) - sums.origin
    rewards = np.asarray(y, dtype=np.float64) - sums.level
    sums.n += len(moved)
    sums.inputs += moved.sum(axis=0)
    sums.outputs += rewards.sum(axis=0)
    sums.gram += moved.T @ moved
    sums.moments += moved.T @ rewards
    sums.squares += (rewards * rewards).sum(axis=0)


def fit_ridge(sums: RidgeSums) -> RidgeFit:
    """Return the regression with, for each output, the penalty of least generalised cross-validation error.

    Raises:
        ValueError: there is no row.
    """
    if sums.n < 1:
        raise ValueError("a regression needs at least one row")
    n = sums.n
    mean_x, mean_y = sums.inputs / n, sums.outputs / n
    spectrum, axes = np.linalg.eigh(sums.gram - n * np.outer(mean_x, mean_x))
    spectrum = np.maximum(spectrum, 0.0)
    rotated = axes.T @ (sums.moments - n * np.outer(mean_x, mean_y))
    total = np.maximum(sums.squares - n * mean_y**2, 0.0)
    penalties, variances = _least_error(spectrum, rotated, total, n)
    weights = axes @ (rotated / (spectrum[:, None] + penalties))
    centre = sums.origin + mean_x
    return RidgeFit(
        intercepts=sums.level + mean_y - centre @ weights,
        weights=weights,
        penalties=penalties,
        variances=variances,
        centre=centre,
        spectrum=spectrum,
        axes=axes,
        n=n,
    )


def predict(fit: RidgeFit, x: FloatArray) -> Float64Array:
    """Return the predicted outputs [m, s] of side information [m, f]."""
    return np.asarray(x @ fit.weights.astype(x.dtype), dtype=np.float64) + fit.intercepts


def prediction_stds(fit: RidgeFit, x: FloatArray) -> Float64Array:
    """Return the standard deviation [m, s] of the predicted mean: noise x (1/n + x (G + penalty)^-1 x)."""
    rotated = (np.asarray(x, dtype=np.float64) - fit.centre) @ fit.axes
    leverage = (rotated * rotated) @ (1.0 / (fit.spectrum[:, None] + fit.penalties))
    return np.sqrt(fit.variances * (1.0 / fit.n + leverage))


def _least_error(
    spectrum: Float64Array, rotated: Float64Array, total: Float64Array, n: int
) -> tuple[Float64Array, Float64Array]:
    """Return penalty and noise variance [s] each."""
    # with one row, or rows that are all alike, any penalty says the same
    scale = float(spectrum.mean()) or 1.0
    tried = _PENALTIES * scale
    shrunk = 1.0 / (spectrum[:, None] + tried)  # [f, penalties]
    power = rotated * rotated  # [f, s]
    residuals = total - 2.0 * (shrunk.T @ power) + (spectrum[:, None] * shrunk**2).T @ power
    residuals = np.maximum(residuals, 0.0)  # [penalties, s]
    freedom = n - 1.0 - (spectrum[:, None] * shrunk).sum(axis=0)  # [penalties]
    # an interpolating fit has no freedom left to judge it by
    errors = np.where(freedom[:, None] > 0.5, residuals / np.maximum(freedom[:, None], 0.5) ** 2, np.inf)
    best = np.where(np.isfinite(errors).any(axis=0), errors.argmin(axis=0), len(tried) - 1)
    columns = np.arange(rotated.shape[1])
    variances = residuals[best, columns] / np.maximum(freedom[best], 0.5)
    return tried[best], variances
