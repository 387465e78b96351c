import os
import tempfile
from pathlib import Path

import pytest

from clusterucb_core import workspace as workspace_module
from clusterucb_core.artifacts import fingerprint, new_artifact
from clusterucb_core.errors import InvalidConfig, MissingArtifact, StorageUnavailable
from clusterucb_core.frozen import Frozen
from clusterucb_core.object_store import mirrored_address
from clusterucb_core.records import ArtifactRef
from clusterucb_core.workspace import (
    StageSpec,
    Workspace,
    brought,
    check_storage,
    finished,
    location,
    stage_key,
    written,
)


class Part(Frozen):
    digest: str
    folder: str = location(default="")  # pyright: ignore[reportAssignmentType]


class Spec(StageSpec):
    stage: str = "stage"
    version: int = 1
    source: ArtifactRef
    parts: tuple[Part, ...] = ()
    named: dict[str, Part] = {}  # noqa: RUF012
    sizes: tuple[int, ...] = ()
    run_id: str = location(default="")  # pyright: ignore[reportAssignmentType]


def ref(fingerprint: str = "aa", path: str = "/somewhere") -> ArtifactRef:
    return ArtifactRef(stage="before", fingerprint=fingerprint, path=path)


def spec(**changes) -> Spec:
    return Spec(**({"source": ref(), "parts": (Part(digest="p"),), "sizes": (1, 2)} | changes))


@pytest.mark.parametrize(
    "change",
    [
        {"source": ref(path="/elsewhere")},
        {"run_id": "another"},
        {"parts": (Part(digest="p", folder="/elsewhere"),)},
    ],
)
def test_where_things_lie_is_in_no_key(change):
    assert stage_key(spec(**change)) == stage_key(spec())


def test_a_place_inside_a_dictionary_is_in_no_key():
    first, second = (spec(named={"a": Part(digest="p", folder=folder)}) for folder in ("/x", "/y"))
    assert stage_key(first) == stage_key(second) != stage_key(spec())


@pytest.mark.parametrize(
    "change",
    [
        {"source": ref("bb")},
        {"source": ArtifactRef(stage="other", fingerprint="aa", path="/somewhere")},
        {"stage": "other"},
        {"version": 2},
        {"parts": (Part(digest="q"),)},
        {"parts": ()},
        {"sizes": (2, 1)},
    ],
)
def test_what_determines_the_content_is_in_the_key(change):
    assert stage_key(spec(**change)) != stage_key(spec())


def test_a_key_of_its_own_is_taken_as_it_is():
    assert stage_key(spec(key="named")) == "named"


def test_a_reference_counts_by_stage_and_fingerprint():
    class Bare(StageSpec):
        source: ArtifactRef

    found = stage_key(Bare(stage="s", version=1, source=ref()))
    assert found == fingerprint({"stage": "s", "version": 1, "key": None, "source": ["before", "aa"]})


def test_artifacts_lie_below_the_home_unless_a_storage_root_is_set():
    assert Workspace(home="/state").artifacts == Path("/state/artifacts")
    assert Workspace(home="/state").catalog == Path("/state/catalog.duckdb")
    shared = Workspace(home="/state", storage_root="/shared")
    assert (shared.artifacts, shared.catalog) == (Path("/shared"), Path("/state/catalog.duckdb"))


@pytest.fixture
def mirrored(tmp_path):
    return Workspace(home=str(tmp_path / "home"), storage_root=f"file://{tmp_path}/store")


@pytest.fixture
def node(mirrored, tmp_path, monkeypatch):
    """The workspace on a node, whose temporary folder is its own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "node"))
    return mirrored.model_copy(update={"on_node": True})


def test_artifacts_of_an_object_store_are_mirrored_below_the_home_and_on_nodes_below_their_temporary_folder(
    mirrored, node, tmp_path
):
    assert mirrored.is_mirrored
    assert not Workspace(home="/state", storage_root="/shared").is_mirrored
    assert mirrored.artifacts.parent == tmp_path / "home" / "staging"
    assert node.artifacts == tmp_path / "node" / f"clusterucb-{os.getuid()}" / mirrored.artifacts.name
    assert mirrored_address(node.artifacts) == mirrored.storage_root
    assert node.catalog == mirrored.catalog


def write(workspace: Workspace, key: str) -> ArtifactRef:
    with new_artifact(workspace.artifacts, "before", key, {}) as folder:
        (folder / "data").write_text(key)
    return ArtifactRef(stage="before", fingerprint=key, path=str(workspace.artifacts / "before" / key))


def test_a_record_brought_to_a_node_refers_to_copies_there_and_keeps_its_key(mirrored, node):
    class Deep(StageSpec):
        first: Spec
        rest: tuple[ArtifactRef, ...]
        named: dict[str, ArtifactRef]
        none: ArtifactRef | None = None

    refs = [write(mirrored, key) for key in "abc"]
    made = Deep(stage="s", version=1, first=spec(source=refs[0]), rest=(refs[1],), named={"c": refs[2]})
    found = brought(made, node)
    assert stage_key(found) == stage_key(made)
    assert found.model_copy(update={"first": made.first, "rest": made.rest, "named": made.named}) == made
    for ref, key in zip((found.first.source, found.rest[0], found.named["c"]), "abc", strict=True):
        assert Path(ref.path).is_relative_to(node.artifacts)
        assert Path(ref.path, "data").read_text() == key
    assert (node.artifacts.parent.stat().st_mode & 0o777) == 0o700


def test_where_folders_are_shared_a_record_stays_as_it_is(mirrored):
    made = spec(source=ref())
    assert brought(made, mirrored) is made
    assert brought(made, Workspace(home="/state")) is made


def test_what_the_store_lacks_is_named_with_where_it_was_made(node):
    with pytest.raises(
        MissingArtifact, match=r"holds no artifact before/aa; .* remove /somewhere where the run"
    ):
        brought(spec(source=ref()), node)


def test_a_folder_of_another_user_takes_no_copies(mirrored, node, monkeypatch):
    made = spec(source=write(mirrored, "a"))
    (folder := node.artifacts.parent).mkdir(parents=True)
    owner = os.getuid()
    monkeypatch.setattr(workspace_module, "_node_folder", lambda: folder)
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.raises(
        InvalidConfig, match="belongs to another user or leads elsewhere; start this node with"
    ):
        brought(made, node)


def test_a_folder_that_leads_elsewhere_takes_no_copies(mirrored, node, monkeypatch, tmp_path):
    made = spec(source=write(mirrored, "a"))
    (folder := tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.setattr(workspace_module, "_node_folder", lambda: folder)
    with pytest.raises(InvalidConfig, match="belongs to another user or leads elsewhere"):
        brought(made, node)


def test_a_store_is_checked_where_there_is_one(mirrored, tmp_path):
    check_storage(Workspace(home=str(tmp_path)))
    check_storage(mirrored)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "store").write_text("no folder")
    with pytest.raises(StorageUnavailable, match="a probe could not be written"):
        check_storage(mirrored)


def test_a_finished_stage_is_found_by_its_spec(tmp_path):
    workspace = Workspace(home=str(tmp_path))
    assert finished(spec(), workspace) is None
    with new_artifact(workspace.artifacts, "stage", stage_key(spec()), {}):
        pass
    found = finished(spec(run_id="later"), workspace)
    assert found == written(spec(), workspace)
    assert found is not None
    assert found.fingerprint == stage_key(spec())


def test_a_stage_that_left_nothing_is_an_error(tmp_path):
    with pytest.raises(MissingArtifact, match=f"stage 'stage' left no artifact {stage_key(spec())} under"):
        written(spec(), Workspace(home=str(tmp_path)))
