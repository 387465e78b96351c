import numpy as np
import pytest
import torch

from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.adam import AdamMoments, adam_scaling

CPU = {"device": torch.device("cpu"), "dtype": torch.float64}


def test_features_follow_the_formula_worked_out_by_hand():
    # m' = 0.9 * 1 + 0.1 * 3 = 1.2; v' = 0.999 * 4 + 0.001 * 9 = 4.005
    # m' = 0.9 * 0 + 0.1 * -2 = -0.2; v' = 0 + 0.001 * 4 = 0.004
    scaling = adam_scaling(AdamMoments(np.array([1.0, 0.0]), np.array([4.0, 0.0])), [("a", 2)], **CPU)
    gradients = torch.tensor([[3.0, -2.0]], dtype=torch.float64)
    scaling.apply("a", gradients)
    expected = [1.2 / (4.005 + 1e-8) ** 0.5, -0.2 / (0.004 + 1e-8) ** 0.5]
    assert gradients[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_epsilon_is_inside_the_root_and_keeps_tiny_moments_finite():
    moments = AdamMoments(np.array([1e-9]), np.array([0.0]), eps=1e-8)
    gradients = torch.zeros(1, 1, dtype=torch.float64)
    adam_scaling(moments, [("a", 1)], **CPU).apply("a", gradients)
    assert gradients.item() == pytest.approx(0.9e-9 / 1e-4, rel=1e-12)


def test_moments_are_cut_in_the_order_of_the_parameters():
    scaling = adam_scaling(AdamMoments(np.arange(3.0), np.arange(3.0)), [("a", 1), ("b", 2)], **CPU)
    assert scaling.momentum["b"].tolist() == pytest.approx([0.9, 1.8])
    assert scaling.variance["a"].tolist() == pytest.approx([1e-8])


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ([1.0], [1.0, 2.0], "do not fit"),
        ([1.0, np.nan], [1.0, 2.0], "broken"),
        ([1.0, 1.0], [1.0, -2.0], "broken"),
    ],
)
def test_moments_that_do_not_fit_are_refused(first, second, message):
    with pytest.raises(InvalidModel, match=message):
        adam_scaling(AdamMoments(np.array(first), np.array(second)), [("a", 2)], **CPU)
