"""Ridge regression of rewards on side information, updated round by round.

The penalty of each output minimises generalised cross-validation (Golub, Heath and Wahba, 1979), which the
eigenvalues of the Gram matrix give for every penalty at once. The intercept is not penalised. While there are
fewer rows than columns, the products of rows with rows are kept, and the sums of columns with columns after
that: both give the same regression, and the smaller matrix is taken apart.
"""

from dataclasses import dataclass

import numpy as np

from clusterucb_core.bandit.arms import Float64Array
from clusterucb_core.records import FloatArray

# Penalties tried, relative to the mean eigenvalue of the Gram matrix of the columns.
_PENALTIES = np.logspace(-5, 3, 33)


@dataclass(slots=True)
class RidgeRows:
    """Fewer rows than columns; only `add_rows` changes them.

    `inputs` [n, f] and `outputs` [n, s] are values relative to `origin` [f] and `level` [s]; `products`
    [n, n] are the inner products of the inputs.
    """

    origin: Float64Array
    level: Float64Array
    inputs: Float64Array
    outputs: Float64Array
    products: Float64Array

    @property
    def n(self) -> int:
        """Rows so far."""
        return len(self.inputs)


@dataclass(slots=True)
class RidgeSums:
    """Running sums over n rows, no fewer than columns; only `add_rows` changes them.

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


RidgeData = RidgeRows | RidgeSums


@dataclass(frozen=True, slots=True)
class RidgeFit:
    """A fitted regression: `intercepts` [s], `weights` [f, s].

    `penalties` [s] are the chosen ones; `variances` [s] estimate the noise; `spectrum` [q] and `axes` [f, q]
    are eigenvalues and eigenvectors of the centred Gram matrix around `centre` [f]: all of those whose
    eigenvalue is not 0, and perhaps more.
    """

    intercepts: Float64Array
    weights: Float64Array
    penalties: Float64Array
    variances: Float64Array
    centre: Float64Array
    spectrum: Float64Array
    axes: Float64Array
    n: int


def fresh_rows(inputs: int, outputs: int) -> RidgeRows:
    """Return no rows yet, of `inputs` columns of side information and `outputs` rewards a row."""
    return RidgeRows(
        origin=np.zeros(inputs),
        level=np.zeros(outputs),
        inputs=np.zeros((0, inputs)),
        outputs=np.zeros((0, outputs)),
        products=np.zeros((0, 0)),
    )


def add_rows(data: RidgeData, x: FloatArray, y: FloatArray) -> RidgeData:
    """Add rows and return the data with them, which may be of the other kind; the old data are used up.

    Args:
        data: what was seen so far.
        x: side information [m, f].
        y: outputs [m, s], finite.
    """
    inputs, outputs = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(inputs) == 0:
        return data
    if isinstance(data, RidgeRows):
        if data.n == 0:
            # values around the first rows: a large common offset costs no precision
            data.origin, data.level = inputs.mean(axis=0), outputs.mean(axis=0)
        inputs, outputs = inputs - data.origin, outputs - data.level
        if data.n + len(inputs) < inputs.shape[1]:
            _append(data, inputs, outputs)
            return data
        sums = _fresh_sums(data)
        _accumulate(sums, data.inputs, data.outputs)
    else:
        sums = data
        inputs, outputs = inputs - sums.origin, outputs - sums.level
    _accumulate(sums, inputs, outputs)
    return sums


def fit_ridge(data: RidgeData) -> RidgeFit:
    """Return the regression with, for each output, the penalty of least generalised cross-validation error.

    Raises:
        ValueError: there is no row.
    """
    if data.n < 1:
        raise ValueError("a regression needs at least one row")
    return _fit_rows(data) if isinstance(data, RidgeRows) else _fit_sums(data)


def _append(data: RidgeRows, inputs: Float64Array, outputs: Float64Array) -> None:
    across = data.inputs @ inputs.T
    data.products = np.block([[data.products, across], [across.T, inputs @ inputs.T]])
    data.inputs = np.concatenate([data.inputs, inputs])
    data.outputs = np.concatenate([data.outputs, outputs])


def _fresh_sums(data: RidgeRows) -> RidgeSums:
    f, s = data.inputs.shape[1], data.outputs.shape[1]
    return RidgeSums(
        n=0,
        origin=data.origin,
        level=data.level,
        inputs=np.zeros(f),
        outputs=np.zeros(s),
        gram=np.zeros((f, f)),
        moments=np.zeros((f, s)),
        squares=np.zeros(s),
    )


def _accumulate(sums: RidgeSums, inputs: Float64Array, outputs: Float64Array) -> None:
    sums.n += len(inputs)
    sums.inputs += inputs.sum(axis=0)
    sums.outputs += outputs.sum(axis=0)
    sums.gram += inputs.T @ inputs
    sums.moments += inputs.T @ outputs
    sums.squares += (outputs * outputs).sum(axis=0)


def _fit_rows(data: RidgeRows) -> RidgeFit:
    mean_x, mean_y = data.inputs.mean(axis=0), data.outputs.mean(axis=0)
    across = data.products.mean(axis=0)
    spectrum, turned = np.linalg.eigh(data.products - across - across[:, None] + across.mean())
    # centred rows have no part along the vector of ones: at least one eigenvalue is rounding
    kept = spectrum > len(spectrum) * np.finfo(np.float64).eps * max(float(spectrum[-1]), 0.0)
    spectrum, turned = spectrum[kept], turned[:, kept]
    outputs = data.outputs - mean_y
    axes = ((data.inputs - mean_x).T @ turned) / np.sqrt(spectrum)
    rotated = np.sqrt(spectrum)[:, None] * (turned.T @ outputs)
    total = (outputs * outputs).sum(axis=0)
    return _solved(data, (mean_x, mean_y), spectrum=spectrum, axes=axes, rotated=rotated, total=total)


def _fit_sums(data: RidgeSums) -> RidgeFit:
    n = data.n
    mean_x, mean_y = data.inputs / n, data.outputs / n
    spectrum, axes = np.linalg.eigh(data.gram - n * np.outer(mean_x, mean_x))
    spectrum = np.maximum(spectrum, 0.0)
    rotated = axes.T @ (data.moments - n * np.outer(mean_x, mean_y))
    total = np.maximum(data.squares - n * mean_y**2, 0.0)
    return _solved(data, (mean_x, mean_y), spectrum=spectrum, axes=axes, rotated=rotated, total=total)


def _solved(
    data: RidgeData,
    means: tuple[Float64Array, Float64Array],
    *,
    spectrum: Float64Array,
    axes: Float64Array,
    rotated: Float64Array,
    total: Float64Array,
) -> RidgeFit:
    """Return the fit, from the moments of inputs and outputs along the axes (`rotated` [q, s])."""
    scale = float(spectrum.sum()) / len(data.origin)
    penalties, variances = _least_error(spectrum, rotated, total, n=data.n, scale=scale)
    weights = axes @ (rotated / (spectrum[:, None] + penalties))
    centre = data.origin + means[0]
    return RidgeFit(
        intercepts=data.level + means[1] - centre @ weights,
        weights=weights,
        penalties=penalties,
        variances=variances,
        centre=centre,
        spectrum=spectrum,
        axes=axes,
        n=data.n,
    )


def predict(fit: RidgeFit, x: FloatArray) -> Float64Array:
    """Return the predicted outputs [m, s] of side information [m, f]."""
    return np.asarray(x @ fit.weights.astype(x.dtype), dtype=np.float64) + fit.intercepts


def prediction_stds(fit: RidgeFit, x: FloatArray) -> Float64Array:
    """Return the standard deviation [m, s] of the predicted mean: noise x (1/n + x (G + penalty)^-1 x)."""
    offsets = np.asarray(x, dtype=np.float64) - fit.centre
    powers = (offsets @ fit.axes) ** 2
    # what lies outside the axes was never seen: there the eigenvalue is 0
    unseen = np.maximum((offsets * offsets).sum(axis=1) - powers.sum(axis=1), 0.0)
    leverage = powers @ (1.0 / (fit.spectrum[:, None] + fit.penalties)) + unseen[:, None] / fit.penalties
    return np.sqrt(fit.variances * (1.0 / fit.n + leverage))


def _least_error(
    spectrum: Float64Array, rotated: Float64Array, total: Float64Array, *, n: int, scale: float
) -> tuple[Float64Array, Float64Array]:
    """Return penalty and noise variance [s] each; `scale` is the mean eigenvalue over all columns."""
    # with one row, or rows that are all alike, any penalty says the same
    tried = _PENALTIES * (scale or 1.0)
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
