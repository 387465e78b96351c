from pathlib import Path

import pytest

from clusterucb_core.artifacts import fingerprint, new_artifact
from clusterucb_core.errors import MissingArtifact
from clusterucb_core.frozen import Frozen
from clusterucb_core.records import ArtifactRef
from clusterucb_core.workspace import StageSpec, Workspace, finished, location, stage_key, written


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
