"""The feature benchmark on a minuscule model: what it writes is complete, and its figures fit together."""

import json

import bergson_modes
import pytest
import torch
from featurize import main, measure
from gradient_ways import GROUPS, Choice
from gradient_workload import WorkloadSettings, build_workload, sample_lengths
from less_loop import COLLECTED, DenseProjection, FlatMoments, flat_gradient, less_features, project_densely

TINY = WorkloadSettings(size="XS", rank=4, samples=24, max_length=48, batch_tokens=256)
LENGTHS = [9, 30, 12, 48, 17, 21, 8, 33, 25, 40, 14, 11]


@pytest.fixture(autouse=True)
def _no_real_data(monkeypatch):
    for name in ("CLUSTERUCB_DATA", "CLUSTERUCB_MODELS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def result():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CLUSTERUCB_DATA", raising=False)
        patch.setattr(bergson_modes, "is_installed", lambda: False)
        yield measure(TINY, Choice(dims=(64, 128), threads=threads), rounds=2, with_memory=False)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def workload():
    return build_workload(TINY, LENGTHS)


def exact_features(workload):
    moments = FlatMoments.of(workload.moments, workload.device)
    rows = [moments.transform(flat_gradient(workload.model, sample)) for sample in workload.samples]
    return torch.nn.functional.normalize(torch.stack(rows), dim=1)


@pytest.mark.slow
def test_every_group_of_ways_is_timed_or_named_as_skipped(result):
    assert {way["group"] for way in result["ways"].values()} == set(GROUPS) - {"bergson"}
    assert result["skipped"] == {"bergson": "bergson is not installed"}
    assert {way["dim"] for way in result["ways"].values() if way["group"] == "ours"} == {64, 128}


@pytest.mark.slow
def test_the_result_names_hardware_versions_settings_and_work(result):
    assert {"cpu", "cores", "memory_gib", "threads"} <= result["hardware"].keys()
    assert result["versions"]["torch"] == torch.__version__
    assert result["settings"]["rank"] == 4
    assert result["settings"]["rounds"] == 2
    assert result["workload"]["samples"] == 24
    assert result["workload"]["lengths_from"].startswith("lognormal")
    assert result["matrix_rate_gflops"] > 0


@pytest.mark.slow
def test_rates_and_ratios_follow_from_the_seconds(result):
    work, floor = result["workload"], result["ways"]["floor"]["seconds"]
    for way in result["ways"].values():
        seconds = way["seconds"]
        assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
        assert way["samples_per_s"] * seconds["median"] == pytest.approx(work["samples"], rel=2e-3)
        assert way["tokens_per_s"] * seconds["median"] == pytest.approx(work["tokens"], rel=2e-3)
        ratio = way["times_the_floor"]["median"]
        assert seconds["min"] / floor["max"] * 0.999 <= ratio <= seconds["max"] / floor["min"] * 1.001
        assert 0 < way["share_of_matrix_rate"] < 1


@pytest.mark.slow
def test_the_floor_is_once_the_floor(result):
    assert result["ways"]["floor"]["times_the_floor"] == {"median": 1, "min": 1, "max": 1, "rounds": 2}


@pytest.mark.slow
def test_what_is_timed_on_a_part_says_so(result):
    for way in result["ways"].values():
        assert way["extrapolated"] == (way["group"] == "less")
        assert way["share_timed"] == (pytest.approx(COLLECTED / 24, rel=1e-3) if way["extrapolated"] else 1)


@pytest.mark.slow
def test_comparisons_are_those_of_the_ways(result):
    ways, found = result["ways"], result["comparisons"]
    assert found["ours_to_128_over_floor"] == ways["ours to 128"]["times_the_floor"]["median"]
    less = ways["LESS's loop to 64"]["seconds"]["median"] / ways["ours to 64"]["seconds"]["median"]
    assert found["LESS's loop to 64 over ours to 64"] == pytest.approx(less, rel=1e-3)


def test_the_command_writes_one_file_that_names_no_folder(tmp_path, capsys):
    out = tmp_path / "result.json"
    small = ["--size", "XS", "--samples", "16", "--max-length", "32", "--dims", "64", "--rounds", "1"]
    main(
        [
            *small,
            "--threads",
            str(torch.get_num_threads()),
            "--ways",
            "floor,ours",
            "--out",
            str(out),
            "--no-memory",
        ]
    )
    written = json.loads(out.read_text("utf-8"))
    assert written["command"].startswith("python benchmarks/featurize.py --size XS")
    assert str(tmp_path) not in out.read_text("utf-8")
    assert set(written["ways"]) == {"floor", "ours to 64"}
    assert "ours to 64" in capsys.readouterr().out


def test_an_unknown_group_of_ways_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--ways", "floor,theirs"])
    assert "'theirs' is none of floor, ours, auto, stages, less, bergson" in capsys.readouterr().err


def test_the_same_settings_give_the_same_workload(workload):
    again = build_workload(TINY, LENGTHS)
    assert (again.moments.exp_avg_sq == workload.moments.exp_avg_sq).all()
    assert all(
        (a.input_ids == b.input_ids).all() for a, b in zip(again.samples, workload.samples, strict=True)
    )


def test_half_of_each_sample_is_masked_and_lengths_stay_within_the_limit(workload):
    assert [(sample.labels == -100).sum() for sample in workload.samples] == [n // 2 for n in LENGTHS]
    lengths, _ = sample_lengths(TINY)
    assert len(lengths) == 24
    assert 8 <= min(lengths) <= max(lengths) <= 48


def test_spread_samples_are_the_middles_of_length_groups(workload):
    # sorted: 8 9 11 | 12 14 17 | 21 25 30 | 33 40 48
    assert [len(sample.input_ids) for sample in workload.spread_samples(4)] == [9, 14, 25, 40]


@pytest.mark.parametrize("draw", ["bernoulli", "bits"])
def test_the_loops_features_have_the_cosines_of_exact_ones(workload, draw):
    exact = exact_features(workload)
    projection = DenseProjection(4096, seed=0, draw=draw)
    found = less_features(workload.model, workload.samples, workload.moments, projection=projection)
    error = (found @ found.T - exact @ exact.T).abs().max()
    assert error < 6 * (2 / 4096) ** 0.5, f"{error}: near 1 means signs that differ between samples"


@pytest.mark.parametrize("draw", ["bernoulli", "bits"])
def test_the_sign_matrix_is_the_same_whenever_it_is_drawn_again(draw):
    projection = DenseProjection(64, seed=1, draw=draw)
    matrix = project_densely(torch.eye(50), projection) * 8
    assert set(matrix.unique().tolist()) == {-1.0, 1.0}
    rows = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(project_densely(rows, projection), rows @ matrix / 8)


def test_bergson_gives_the_gradients_of_autograd_without_projection(workload):
    if not bergson_modes.is_installed():
        pytest.skip("bergson is not installed: install requirements-bergson.lock to compare with it")
    (mode,) = (mode for mode in bergson_modes.modes(workload, [64]) if mode.target is None)
    found = bergson_modes.runner(workload, mode, workload.batches)()
    flat = torch.cat([part.reshape(len(LENGTHS), -1) for part in found.values()], dim=1)
    expected = torch.stack([flat_gradient(workload.model, sample) for sample in workload.samples])
    torch.testing.assert_close(flat, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.slow
def test_peak_memory_is_that_of_a_fresh_process_above_the_model(tmp_path):
    out = tmp_path / "result.json"
    small = ["--size", "XS", "--samples", "16", "--max-length", "32", "--dims", "64", "--rounds", "1"]
    main([*small, "--threads", str(torch.get_num_threads()), "--ways", "floor", "--out", str(out)])
    found = json.loads(out.read_text("utf-8"))["ways"]["floor"]["peak_memory_mib"]
    assert 0.5 < found < 60, "hundreds of MiB would be those of the libraries"
