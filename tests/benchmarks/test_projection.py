"""The projection benchmark on made-up gradients: its comparisons tell good projections from bad ones."""

import numpy as np
import polars as pl
import pytest
from projection import Gradients, projected, rows_of, sufficient_dims, summary, unit_rows

PARAMETERS = [("a", 300), ("b", 700)]


@pytest.fixture(scope="module")
def gradients():
    rng = np.random.default_rng(0)
    common = rng.normal(size=1000)
    pool = (rng.normal(size=(120, 1000)) + rng.normal(size=(120, 1)) * common).astype(np.float32)
    validation = (rng.normal(size=(6, 1000)) + common).astype(np.float32)
    return Gradients(pool, {"goal": (validation, np.array([0, 0, 0, 1, 1, 1]))}, PARAMETERS)


def test_wider_projections_keep_more_of_everything(gradients):
    table = summary([row for seed in (0, 1, 2) for row in rows_of(gradients, seed=seed, dims=(16, 4096))])
    for _, group in table.group_by("projection"):
        narrow, wide = group.sort("dim").to_dicts()
        for figure in ("pearson_of_cosines", "spearman_of_influence", "recall_of_top"):
            assert narrow[figure] < wide[figure]
        assert wide["pearson_of_cosines"] > 0.98


def test_rows_are_projected_parameter_by_parameter(gradients):
    class Recorder:
        projection = type("Of", (), {"dim": 3})

        def add(self, name, part, out):
            out += part.sum(dim=1, keepdim=True) * (1 if name == "a" else -1)

    found = projected(gradients.pool, Recorder(), PARAMETERS)
    sums = gradients.pool[:, :300].sum(axis=1) - gradients.pool[:, 300:].sum(axis=1)
    expected = unit_rows(np.repeat(sums[:, None], 3, axis=1))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


def test_the_sufficient_dimension_is_the_one_from_which_recall_stays_high():
    recalls = {"roll": [0.5, 0.92, 0.88, 0.95, 0.97], "dense": [0.1, 0.2, 0.3, 0.4, 0.5]}
    rows = [
        {"target": "t", "projection": kind, "dim": 2**place, "recall_of_top": recall}
        for kind, values in recalls.items()
        for place, recall in enumerate(values)
    ]
    assert sufficient_dims(pl.DataFrame(rows)) == {"t, roll": 8, "t, dense": None}
