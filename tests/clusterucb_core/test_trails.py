"""The run that a re-selection follows: the newest of its lineage whose selections the catalog holds."""

import shutil
from pathlib import Path

import pytest

from clusterucb_core.artifacts import MANIFEST, discard_artifact, new_artifact
from clusterucb_core.errors import MissingArtifact, StaleArtifact
from clusterucb_core.trails import TRAIL, followed_trail, keep_trail, newest_trails, trail_of
from clusterucb_core.workspace import Workspace


def test_the_newest_run_of_the_lineage_is_followed(plan_of, finish):
    finish(plan_of("first"))
    newest = finish(plan_of("second"))
    finish(plan_of("stranger", lineage="other"))
    assert followed_trail(plan_of("third")) == newest
    assert [trail.run_id for trail in newest_trails(plan_of("third").workspace)] == [
        "stranger",
        "second",
        "first",
    ]


def test_without_a_finished_run_there_is_nothing_to_follow(plan_of, finish):
    with pytest.raises(MissingArtifact, match="no finished run with these settings"):
        followed_trail(plan_of("first"))
    finish(plan_of("first", lineage="other"))
    with pytest.raises(MissingArtifact, match="clusterucb run CONFIG"):
        followed_trail(plan_of("first"))


def test_a_run_whose_draws_are_gone_cannot_be_followed(plan_of, finish):
    trail = finish(plan_of("first"))
    gone = trail.targets[0].chosen.periods[0].draws.path
    shutil.rmtree(gone)
    with pytest.raises(MissingArtifact, match=f"1 of its artifacts are gone, the first {gone}"):
        followed_trail(plan_of("second"))


def test_a_run_whose_draws_an_object_store_still_has_is_followed_with_them_fetched(plan_of, finish, tmp_path):
    root = Workspace(home=str(tmp_path), storage_root=f"file://{tmp_path}/objects").artifacts
    trail = finish(plan_of("first"), root)
    shutil.rmtree(root)
    assert followed_trail(plan_of("second")) == trail
    assert Path(trail.targets[0].chosen.periods[0].draws.path).is_dir()


def test_a_run_whose_versions_are_those_of_another_catalog_is_passed_over(plan_of, finish):
    finish(plan_of("first"))
    plan_of("first").workspace.catalog.unlink()
    finish(plan_of("other", lineage="other"))
    assert [trail.run_id for trail in newest_trails(plan_of("first").workspace)] == ["other"]


def test_a_trail_that_cannot_be_read_is_passed_over_with_a_warning(plan_of, finish, caplog):
    finish(plan_of("first"))
    finish(plan_of("second"))
    root = plan_of("second").workspace.artifacts
    discard_artifact(root, "trails", "second")
    with new_artifact(root, "trails", "second", {}) as folder:
        (folder / TRAIL).write_text('{"run_id": "second"}')
    assert followed_trail(plan_of("third")).run_id == "first"
    assert "cannot be read and is passed over" in caplog.text


@pytest.mark.parametrize("name", [TRAIL, MANIFEST])
@pytest.mark.parametrize("way", ["flipped", "truncated", "extended"])
def test_a_damaged_trail_of_the_newest_run_is_refused_and_that_of_an_older_one_is_not_needed(
    plan_of, finish, damage, name, way
):
    finish(plan_of("first"))
    path = plan_of("first").workspace.artifacts / "trails" / "first" / name
    damage[way](path)
    wanted = (
        f"the newest runs cannot be told: {path}.*`clusterucb run CONFIG`, which writes it anew, or delete"
    )
    with pytest.raises(StaleArtifact, match=wanted):
        followed_trail(plan_of("later"))
    with pytest.raises(StaleArtifact, match=f"{path}.*which writes it anew"):
        trail_of("first", plan_of("first").workspace)
    newest = finish(plan_of("second"))
    assert followed_trail(plan_of("later")) == newest
    shutil.rmtree(path.parent)
    with pytest.raises(MissingArtifact, match="has left no trail"):
        trail_of("first", plan_of("first").workspace)


def test_damaged_draws_are_refused_and_stay(plan_of, finish, damage):
    trail = finish(plan_of("first"))
    draws = Path(trail.targets[0].chosen.periods[0].draws.path)
    damage["flipped"](draws / MANIFEST)
    with pytest.raises(StaleArtifact, match=f"{draws}/{MANIFEST} is damaged"):
        followed_trail(plan_of("second"))
    assert draws.is_dir()


def test_a_later_attempt_of_a_run_replaces_its_trail(plan_of, finish):
    finish(plan_of("first"))
    plan_of("first").workspace.catalog.unlink()
    finish(plan_of("other", lineage="other"))
    again = finish(plan_of("first"))
    assert again.targets[0].versions == (2,)
    assert trail_of("first", plan_of("first").workspace) == again


def test_the_same_trail_kept_again_stays_the_file_that_it_was(plan_of, finish):
    trail = finish(plan_of("first"))
    workspace = plan_of("first").workspace
    (file,) = workspace.artifacts.glob(f"trails/first/{TRAIL}")
    before = file.stat()
    keep_trail(trail, workspace)
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    file.write_text(file.read_text("utf-8")[:-10], "utf-8")
    keep_trail(trail, workspace)
    assert trail_of("first", workspace) == trail
