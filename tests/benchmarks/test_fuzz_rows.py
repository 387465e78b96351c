"""A short run of the row fuzzer: its figures fit together, it goes on from its log, it keeps what it finds."""  # noqa: E501

import json

import fuzz_rows
import pytest
from fuzz_rows import main, run, summary


@pytest.mark.slow
def test_ten_thousand_rows_pass_and_a_repeat_reads_none(tmp_path):
    out = tmp_path / "fuzzing.json"
    out.write_text('{"readers": 1}')
    for _ in range(2):
        main(["--folder", str(tmp_path / "run"), "--rows", "10000", "--out", str(out), "--seed", "7"])
    kept = json.loads(out.read_text())
    found = kept["rows"]
    assert kept["readers"] == 1
    assert found["findings"] == []
    assert 10_000 <= found["rows"] < 13_000
    assert found["rows"] - found["rows_kept"] <= sum(found["quarantined"].values())
    assert found["files"] == 10 * found["batches"]
    assert found["ingested"] > 0
    assert found["slowest_file_s"] < 5


def test_a_crash_is_kept_with_its_bytes_and_can_be_replayed(tmp_path, monkeypatch, capsys):
    def crash(*_, **__):
        raise KeyError("planted")

    monkeypatch.setattr(fuzz_rows, "check_pool_file", crash)
    monkeypatch.setattr(fuzz_rows, "FILES_A_BATCH", 2)
    line = fuzz_rows.run_batch(tmp_path, 0, 1)
    assert [finding.split(": ", 1)[1] for finding in line["findings"]] == ["KeyError: 'planted'"] * 2
    kept = sorted((tmp_path / "found").iterdir())
    assert len(kept) == 2
    with pytest.raises(KeyError, match="planted"):
        main(["--replay", str(kept[0])])


def test_a_run_goes_on_from_its_log(tmp_path):
    line = {
        "rows": 90, "files": 10, "counted_files": 5, "refused_files": 0, "samples": 80, "rows_kept": 80, "ingested": 0,  # noqa: E501
        "seconds": 1, "quarantined": {"no_answer": 10}, "damage": {"none": 10}, "slowest_file_s": 0.1, "peak_mib": 9,  # noqa: E501
        "findings": [],
    }  # fmt: skip
    (tmp_path / "rows-0.jsonl").write_text(json.dumps(line) + "\n")
    run(tmp_path, 90, 0)
    assert summary(tmp_path, 0)["rows"] == 90
    assert summary(tmp_path, 0)["quarantined"] == {"no_answer": 10}
