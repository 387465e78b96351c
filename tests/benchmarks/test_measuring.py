"""Timing in alternation, spread, peak memory and the names of machines."""

import json

import pytest
import torch
from measuring import (
    Way,
    alternate,
    hardware,
    hardware_slug,
    matrix_product,
    peak_memory,
    spread,
    write_result,
)

CPU = torch.device("cpu")


def test_ways_are_warmed_up_and_then_take_turns():
    seen = []
    ways = [
        Way("a", lambda: seen.append("a")),
        Way("b", lambda: seen.append("b"), warm_up=lambda: seen.append("b warm"), rounds=1),
    ]
    clocks = alternate(ways, rounds=2, device=CPU)
    assert seen == ["a", "b warm", "a", "b", "a"]
    assert [len(clocks[name].wall) for name in ("a", "b")] == [2, 1]
    assert len(clocks["a"].cpu) == 2


def test_spread_is_median_and_range():
    assert spread([3.0, 1.0, 2.00004]) == {"median": 2.0, "min": 1.0, "max": 3.0, "rounds": 3}


@pytest.mark.parametrize(
    ("facts", "slug"),
    [
        ({"cpu": "AMD EPYC", "cores": 2}, "amd-epyc-2-cores"),
        ({"cpu": "Intel(R) Xeon(R) CPU @ 2.20GHz", "cores": 8}, "intel-xeon-cpu-2-20ghz-8-cores"),
        ({"cpu": "AMD EPYC", "cores": 16, "gpu": "NVIDIA H100 80GB HBM3"}, "nvidia-h100-80gb-hbm3"),
    ],
)
def test_a_machine_has_a_name_that_fits_into_a_file_name(facts, slug):
    assert hardware_slug(facts) == slug


def test_hardware_says_what_a_reader_must_know():
    facts = hardware(CPU)
    assert facts["cpu"]
    assert facts["cores"] >= 1
    assert facts["threads"] == torch.get_num_threads()


def test_a_matrix_product_counts_two_operations_an_entry_and_term():
    way, operations = matrix_product(CPU, torch.float32, edge=8)
    way.run()
    assert operations == 10 * 2 * 8**3


def test_peak_memory_counts_what_was_freed_again():
    def take_and_free():
        torch.ones(48 * 2**20)  # 192 MiB

    peak = peak_memory(take_and_free, CPU)
    assert 150 * 2**20 < peak < 300 * 2**20, f"{peak / 2**20:.0f} MiB instead of 192"


def test_a_result_is_json_that_can_be_read_again(tmp_path):
    write_result(tmp_path / "new" / "result.json", {"seconds": spread([1.0])})
    assert json.loads((tmp_path / "new" / "result.json").read_text("utf-8"))["seconds"]["rounds"] == 1
