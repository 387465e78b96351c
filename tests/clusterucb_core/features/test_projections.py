from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.features.projections import (
    PROJECTION_KINDS,
    CountSketch,
    Projection,
    ProjectionName,
    Projector,
    Rademacher,
    RollSketch,
    resolve_projection,
)
from clusterucb_core.seeds import child_rng

KINDS = [RollSketch, CountSketch, Rademacher]


def project(projection, name, gradients):
    projector = Projector(projection, gradients.device, gradients.dtype)
    out = torch.zeros(len(gradients), projection.dim, dtype=gradients.dtype)
    projector.add(name, gradients, out)
    return out


def drawn_signs(rng, count):
    bits = np.unpackbits(np.frombuffer(rng.bytes((count + 7) // 8), dtype=np.uint8), count=count)
    return 2.0 * bits - 1.0


def dense_matrix(projection, name, numel):
    """Build [numel, dim] entry by entry from the same draws."""
    rng = child_rng(projection.seed, projection.kind, name)
    signs = drawn_signs(rng, numel * projection.dim if projection.kind == "rademacher" else numel)
    if projection.kind == "rademacher":
        return signs.reshape(numel, projection.dim) / projection.dim**0.5
    matrix = np.zeros((numel, projection.dim))
    if projection.kind == "count_sketch":
        columns = rng.integers(0, projection.dim, numel)
    else:
        rotations = rng.integers(0, projection.dim, -(-numel // projection.dim))
        columns = (np.arange(numel) + np.repeat(rotations, projection.dim)[:numel]) % projection.dim
    matrix[np.arange(numel), columns] = signs
    return matrix


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("numel", [3, 16, 37, 160])
def test_a_projection_equals_the_dense_matrix_of_its_draws(kind, numel):
    gradients = torch.randn(4, numel, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    projection = kind(dim=16, seed=7)
    expected = gradients.numpy() @ dense_matrix(projection, "layer.lora_A", numel)
    np.testing.assert_allclose(project(projection, "layer.lora_A", gradients), expected, atol=1e-12)


@pytest.mark.parametrize("numel", [4095, 4096, 10_000, 16_384])
def test_long_rotated_chunks_give_the_same_sums_as_short_ones(numel):
    gradients = torch.randn(3, numel, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    projection = RollSketch(dim=4096, seed=7)
    rng = child_rng(projection.seed, projection.kind, "w")
    signs, rotations = drawn_signs(rng, numel), rng.integers(0, 4096, -(-numel // 4096))
    expected = np.zeros((3, 4096))
    columns = (np.arange(numel) + np.repeat(rotations, 4096)[:numel]) % 4096
    np.add.at(expected, (slice(None), columns), gradients.numpy() * signs)
    np.testing.assert_allclose(project(projection, "w", gradients), expected, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_survive_within_six_standard_errors(kind):
    # the variance of a projected inner product of unit vectors is at most 2 / dim
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((12, 6000))
    rows[6:] += 1.5 * rows[:6]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    projected = project(kind(dim=2048, seed=0), "w", torch.from_numpy(rows)).numpy()
    error = np.abs(projected @ projected.T - rows @ rows.T)
    assert error.max() < 6 * (2 / 2048) ** 0.5, f"{error.max()}: near 1 means a lost sign or scale"


@pytest.mark.parametrize("kind", KINDS)
def test_inner_products_are_right_on_average_over_seeds(kind):
    pair = torch.tensor([[1.0, 2.0, 0.0, 1.0, -1.0] * 4, [1.0, 0.0, 1.0, 2.0, 3.0] * 4], dtype=torch.float64)
    products = [float(torch.linalg.vecdot(*project(kind(dim=8, seed=s), "w", pair))) for s in range(1000)]
    assert np.mean(products) == pytest.approx(0.0, abs=5 * np.std(products) / 1000**0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_draws_depend_on_the_seed_and_the_parameters_name_alone(kind):
    gradients = torch.randn(2, 50, generator=torch.Generator().manual_seed(0))
    base = project(kind(dim=8, seed=1), "a", gradients)
    torch.rand(3)
    assert torch.equal(base, project(kind(dim=8, seed=1), "a", gradients))
    assert not torch.allclose(base, project(kind(dim=8, seed=2), "a", gradients))
    assert not torch.allclose(base, project(kind(dim=8, seed=1), "b", gradients))


def test_parameters_add_up_in_any_order():
    projector = Projector(RollSketch(dim=8, seed=0), torch.device("cpu"), torch.float64)
    parts = {"a": torch.randn(2, 20, dtype=torch.float64), "b": torch.randn(2, 5, dtype=torch.float64)}
    forward, backward = torch.zeros(2, 2, 8, dtype=torch.float64)
    for name in ("a", "b"):
        projector.add(name, parts[name], forward)
    for name in ("b", "a"):
        projector.add(name, parts[name], backward)
    torch.testing.assert_close(forward, backward, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "n_parameters", "expected"),
    [
        ("auto", 200, None),
        ("auto", 201, RollSketch(dim=100, seed=3)),
        ("none", 10**6, None),
        ("roll", 10, RollSketch(dim=100, seed=3)),
        ("count_sketch", 10, CountSketch(dim=100, seed=3)),
        ("rademacher", 10, Rademacher(dim=100, seed=3)),
    ],
)
def test_configured_names_become_projections(name, n_parameters, expected):
    assert resolve_projection(name, dim=100, n_parameters=n_parameters, seed=3) == expected


def test_every_projection_can_be_configured_by_name():
    assert set(get_args(ProjectionName)) == {"auto", "none", *PROJECTION_KINDS}


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(
        InvalidConfig, match="'srht' is unknown; choose one of auto, none, roll, count_sketch"
    ):
        resolve_projection("srht", dim=8, n_parameters=100, seed=0)


def test_a_projection_survives_json():
    projection = RollSketch(dim=8, seed=2)
    adapter = TypeAdapter(Projection)
    assert adapter.validate_json(adapter.dump_json(projection)) == projection
