import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from clusterucb_core.artifacts import find_artifact, new_artifact
from clusterucb_core.erasure import erase_samples, erasing
from clusterucb_core.errors import DamagedCatalog, UnknownSample
from clusterucb_core.export import export_selection
from clusterucb_core.restoration import choose_backup, restore_catalog
from clusterucb_core.store import (
    SelectionDraft,
    backup_catalog,
    erased_ids,
    open_catalog,
    publish_selections,
    record_artifact_root,
    record_pool,
    selection_samples,
    withdraw_samples,
)
from clusterucb_core.store.statements import rows, run
from clusterucb_core.workspace import Workspace

STEPS = (
    "erase_artifacts",
    "erase_backups",
    "erase_catalog",
    "remove_drafts",
    "renew_exports",
    "trained_on",
    "record_erasures",
)
TEXT = "sample that is called a say"  # the words of a alone


@pytest.fixture
def workspace(tmp_path, pool, tokens, shard, root) -> Workspace:
    """A state folder with a pool of a, b and c, of which a and b were selected, exported and backed up."""
    found = Workspace(home=str(tmp_path / "home"))
    folder = Path(pool.path)
    with open_catalog(found.catalog) as con:
        record_pool(
            con,
            samples_parquet=folder / "samples.parquet",
            quarantine_parquet=folder / "quarantine.parquet",
            digest="d",
        )
        publish_selections(con, [selection(["a", "b"])])
        run(con, "INSERT INTO feature_rows VALUES ('space', 'a', 'shard', 0)")
    backup_catalog(found)
    leak = {"sample_id": "a", "stage": "leak", "reason": "words", "detail": f"shares: {TEXT}"}
    with new_artifact(root, "candidates", "key", {"leaks": [leak], "unusable": []}):
        pass
    with new_artifact(root, "training", "key", {"run_id": "run", "start": None}) as training:
        (training / "sample_ids.txt").write_text("a\nb")
    draft = root / "ingest" / ".other.12345678.tmp"
    draft.mkdir()
    (draft / "samples.parquet").write_text(f"a killed ingest wrote {TEXT}")
    return found


@pytest.fixture
def exports(workspace, tmp_path) -> Path:
    folder = tmp_path / "exports"
    for name in ("jsonl", "parquet", "alpaca", "sharegpt"):
        export_selection(workspace.catalog, 1, folder / name, format=name)
    return folder


def selection(ids: list[str]) -> SelectionDraft:
    ranks = list(range(1, len(ids) + 1))
    samples = {"rank": ranks, "sample_id": ids, "influence": [1.0] * len(ids), "cluster": [0] * len(ids)}
    return SelectionDraft(
        selection_key="key",
        run_id="run",
        period=1,
        pool_version=1,
        target="t",
        mode="static",
        policy="full",
        budget_samples=2,
        gradient_evaluations=2,
        gradient_evaluations_reused=0,
        target_gradient_evaluations=1,
        selection_flops=1.0,
        full_selection_flops=1.0,
        cost={},
        config={},
        config_digest="",
        code_version="",
        mlflow_run_id=None,
        flow_run_id=None,
        pulls=pl.DataFrame(),
        samples=pl.DataFrame(samples),
    )


def withdraw(workspace, *ids):
    with open_catalog(workspace.catalog) as con:
        return withdraw_samples(con, ids, reason="asked for")


def erase(workspace, *ids, **more):
    return erase_samples(withdraw(workspace, *ids), workspace, reason="asked for", **more)


def assert_erased(workspace, exports, find_text):
    assert find_text([TEXT], Path(workspace.home), exports) == {}
    others = ["sample that is called b say", "sample that is called c say"]
    assert len(find_text(others[:1], Path(workspace.home), exports)) == 7  # pool, catalog, backup, exports
    (features,) = Path(workspace.artifacts).glob("features/*/*/features.npy")
    assert np.load(features).any(axis=1).tolist() == [False, True, True, False]
    (table,) = Path(workspace.artifacts).glob("tokens/*/sample_ids.json")
    assert json.loads(table.read_text()) == ["b", "c"]
    with open_catalog(workspace.catalog, read_only=True) as con:
        assert selection_samples(con, 1)["messages"].is_null().to_list() == [True, False]
        assert erased_ids(con) == {"a"}
        assert rows(con, "FROM feature_rows") == []


def test_the_text_is_found_before_and_nowhere_after(workspace, exports, find_text):
    before = find_text([TEXT], Path(workspace.home), exports)
    kinds = {Path(path).name for path in before}
    assert kinds >= {"catalog.duckdb", "samples.parquet", "quarantine.parquet", "manifest.json"}
    assert len(before) == 10
    result = erase(workspace, "a")
    assert_erased(workspace, exports, find_text)
    assert result.artifacts == {
        "ingest": 1, "tokens": 1, "candidates": 1, "draws": 0, "clustering": 0, "features": 1,
    }  # fmt: skip
    assert (result.catalog.samples, result.catalog.quarantine, result.catalog.feature_rows) == (1, 1, 1)
    assert (result.backups, result.drafts, result.absent_roots) == (1, 1, ())
    assert len(result.exports["rewritten"]) == 4
    assert [(origin.path, origin.row_number) for origin in result.origins] == [("pool.jsonl", 1)]
    assert [item.how for item in result.trainings] == ["sample"]


def test_a_catalog_that_a_restoration_set_aside_is_rewritten_too(workspace, exports, find_text):
    restore_catalog(choose_backup(workspace, None), workspace)
    erase(workspace, "a")
    assert find_text([TEXT], Path(workspace.home)) == {}


def test_a_damaged_backup_stops_the_erasure_until_it_is_deleted(workspace, exports, find_text):
    damaged = backup_catalog(workspace)
    damaged.write_bytes(damaged.read_bytes()[:200_000])
    with pytest.raises(DamagedCatalog, match="nothing can be erased from this one, so delete it"):
        erase(workspace, "a")
    damaged.unlink()
    erase(workspace, "a")
    assert_erased(workspace, exports, find_text)


def test_ranks_of_a_rewritten_export_stay(workspace, exports):
    erase(workspace, "a")
    assert pl.read_parquet(exports / "parquet").select("rank", "sample_id").rows() == [(2, "b")]
    assert len((exports / "jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("step", STEPS)
def test_an_erasure_killed_before_a_step_is_finished_by_the_next(
    workspace, exports, find_text, monkeypatch, step
):
    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(erasing, step, killed)
        with pytest.raises(KeyboardInterrupt):
            erase(workspace, "a")
    with open_catalog(workspace.catalog, read_only=True) as con:
        assert erased_ids(con) == frozenset(), "the table tells of an erasure that was not finished"
    erase(workspace, "a")
    assert_erased(workspace, exports, find_text)


def test_an_erasure_killed_before_an_export_is_recorded_again_is_finished(
    workspace, exports, find_text, monkeypatch
):
    def killed(*arguments, **named):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("clusterucb_core.export.exporting._record", killed)
        with pytest.raises(KeyboardInterrupt):
            erase(workspace, "a")
    assert len(erase(workspace, "a").exports["rewritten"]) == 4
    assert_erased(workspace, exports, find_text)


def test_a_repeat_finds_nothing_left_to_erase(workspace, exports, find_text):
    erase(workspace, "a")
    again = erase(workspace, "a")
    assert not any(again.artifacts.values())
    assert (again.catalog.samples, again.drafts) == (0, 0)
    assert_erased(workspace, exports, find_text)


def test_an_export_that_is_gone_or_was_changed_is_named_and_left_alone(workspace, exports):
    (exports / "jsonl").unlink()
    changed = (exports / "alpaca").read_text() + "my own line\n"
    (exports / "alpaca").write_text(changed)
    result = erase(workspace, "a").exports
    assert result["gone"] == (str(exports / "jsonl"),)
    assert result["changed"] == (str(exports / "alpaca"),)
    assert (exports / "alpaca").read_text() == changed
    assert sorted(path.name for path in exports.iterdir()) == ["alpaca", "parquet", "sharegpt"]


def test_an_export_of_other_samples_is_not_touched(workspace, exports):
    before = {path: path.stat().st_ino for path in exports.iterdir()}
    assert erase(workspace, "c").exports == {"rewritten": (), "gone": (), "changed": ()}
    assert {path: path.stat().st_ino for path in exports.iterdir()} == before


def test_other_artifact_roots_are_searched_too_and_an_absent_one_is_named(
    workspace, root, tmp_path, find_text
):
    moved, absent = tmp_path / "elsewhere", tmp_path / "absent"
    root.rename(moved)
    with open_catalog(workspace.catalog) as con:
        record_artifact_root(con, str(absent))
    result = erase(workspace, "a", roots=[moved])
    assert find_text([TEXT], moved) == {}
    assert set(result.absent_roots) == {str(absent), str(root)}


DAMAGED = ["ingest/key/samples.parquet", "tokens/key/input_ids.npy", "candidates/key/manifest.json"]


@pytest.mark.parametrize("name", [*DAMAGED, "features.npy"])
def test_what_is_damaged_is_removed_whole_and_the_rest_is_erased(
    workspace, exports, root, find_text, damage, caplog, name
):
    (path,) = root.rglob(name)
    damage["flipped"](path)
    erase(workspace, "a")
    assert find_text([TEXT], Path(workspace.home), exports) == {}
    assert f"{path} is damaged" in caplog.text
    assert not path.parent.exists()


def test_what_was_rewritten_has_true_digests(workspace, root):
    erase(workspace, "a")
    stages = ("ingest", "tokens", "candidates")
    assert all(find_artifact(root, stage, "key") is not None for stage in stages)
    (shard,) = root.glob("features/*/*")
    assert find_artifact(root, f"features/{shard.parent.name}", shard.name) is not None


def test_a_training_whose_ids_are_damaged_may_have_learned_from_anything(workspace, root, damage):
    damage["flipped"](root / "training" / "key" / "sample_ids.txt")
    assert [item.how for item in erase(workspace, "c").trainings] == ["unknown"]


def test_a_sample_that_was_not_withdrawn_is_not_erased(workspace):
    with pytest.raises(UnknownSample, match=r"1 of 1 samples were not withdrawn, the first 'a'"):
        erase_samples(["a"], workspace, reason="asked for")
    with open_catalog(workspace.catalog, read_only=True) as con:
        assert selection_samples(con, 1)["messages"].null_count() == 0
