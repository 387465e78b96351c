"""The running ridge regression is scikit-learn's at its penalty, and its penalty is a good one."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge, RidgeCV

from clusterucb_core.bandit.regression import add_rows, fit_ridge, fresh_rows, predict, prediction_stds


def rows(n: int, f: int, noise: float, seed: int = 0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, f)) * rng.uniform(0.1, 2, size=f) + 100
    weights = rng.normal(size=(f, 3))
    return x, x @ weights + noise * rng.normal(size=(n, 3)) + 7


def fitted(x, y, parts: int = 1):
    data = fresh_rows(x.shape[1], y.shape[1])
    for part in np.array_split(np.arange(len(x)), parts):
        data = add_rows(data, x[part], y[part])
    return fit_ridge(data)


@pytest.mark.parametrize(("n", "f"), [(200, 15), (16, 15), (15, 15), (14, 15), (30, 200)])
def test_it_is_the_ridge_of_scikit_learn_at_the_chosen_penalty(n, f):
    x, y = rows(n, f, noise=0.5)
    fit = fitted(x, y, parts=7)
    for column in range(3):
        reference = Ridge(alpha=fit.penalties[column]).fit(x, y[:, column])
        np.testing.assert_allclose(predict(fit, x)[:, column], reference.predict(x), atol=1e-8)


def test_rows_added_one_by_one_or_at_once_give_the_same_fit():
    x, y = rows(60, 8, noise=0.5)
    once, singly = fitted(x, y), fitted(x, y, parts=60)
    np.testing.assert_allclose(predict(singly, x), predict(once, x), rtol=1e-7)
    np.testing.assert_allclose(singly.penalties, once.penalties, rtol=1e-6)


@pytest.mark.parametrize(("n", "f"), [(60, 8), (20, 30)])
def test_the_stated_deviation_is_that_of_the_whole_covariance(n, f):
    x, y = rows(n, f, noise=0.5)
    fit, unseen = fitted(x, y, parts=3), rows(10, f, noise=0.0, seed=3)[0]
    gram = (x - x.mean(axis=0)).T @ (x - x.mean(axis=0))
    offsets = unseen - x.mean(axis=0)
    for column, penalty in enumerate(fit.penalties):
        leverage = np.einsum("if,fg,ig->i", offsets, np.linalg.inv(gram + penalty * np.eye(f)), offsets)
        expected = np.sqrt(fit.variances[column] * (1 / n + leverage))
        np.testing.assert_allclose(prediction_stds(fit, unseen)[:, column], expected, rtol=1e-6)


@pytest.mark.parametrize(("n", "noise"), [(200, 0.5), (40, 3.0), (12, 1.0)])
def test_the_penalty_predicts_unseen_rows_about_as_well_as_leave_one_out(n, noise):
    x, y = rows(n + 500, 30, noise)
    ours = predict(fitted(x[:n], y[:n]), x[n:])
    alphas = np.logspace(-4, 5, 40)
    for column in range(3):
        other = RidgeCV(alphas=alphas).fit(x[:n], y[:n, column]).predict(x[n:])
        truth = y[n:, column]
        assert np.mean((ours[:, column] - truth) ** 2) < 1.3 * np.mean((other - truth) ** 2)


def test_the_stated_deviation_covers_the_noiseless_value():
    x, _ = rows(400, 10, noise=0.0)
    rng = np.random.default_rng(1)
    truth = x @ rng.normal(size=(10, 1))
    fit = fitted(x[:100], truth[:100] + rng.normal(size=(100, 1)))
    distance = np.abs(predict(fit, x[100:]) - truth[100:]) / prediction_stds(fit, x[100:])
    assert 0.85 < np.mean(distance < 1.96) <= 1.0


def test_one_row_predicts_its_own_reward():
    fit = fitted(np.ones((1, 4)), np.array([[2.0, 3.0]]))
    np.testing.assert_allclose(predict(fit, np.zeros((2, 4))), [[2.0, 3.0]] * 2)


def test_equal_rewards_are_predicted_exactly():
    x, _ = rows(50, 4, noise=1.0)
    fit = fitted(x, np.full((50, 1), 0.3))
    np.testing.assert_allclose(predict(fit, x + 5), 0.3, atol=1e-12)


def test_no_row_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        fit_ridge(fresh_rows(3, 1))
