"""What the targets of a run share, named by its content."""

import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.errors import InvalidPool
from clusterucb_core.records import ArtifactRef
from clusterucb_core.stages.intake import candidate_ids, pool_size, run_shared, shared_spec
from clusterucb_core.workspace import Workspace, stage_key


@pytest.fixture
def candidates(tmp_path):
    """Write what one target may draw of a pool of four samples."""

    def write(name, sample_ids, n_pool=4) -> ArtifactRef:
        with new_artifact(tmp_path, "candidates", name, {"n_pool": n_pool}) as folder:
            (folder / "sample_ids.txt").write_text("\n".join(sample_ids))
        return ArtifactRef(stage="candidates", fingerprint=name, path=str(tmp_path / "candidates" / name))

    return write


def test_targets_share_what_any_may_draw_and_warm_up_on_what_every_one_may(candidates, tmp_path):
    both = [candidates("a", "abc"), candidates("b", "bcd")]
    workspace = Workspace(home=str(tmp_path / "home"))
    shared = {of: run_shared(shared_spec(both, of), workspace) for of in ("any", "every")}
    assert candidate_ids(shared["any"]) == ["a", "b", "c", "d"]
    assert candidate_ids(shared["every"]) == ["b", "c"]
    assert pool_size(shared["any"]) == pool_size(shared["every"]) == 4


def test_what_is_shared_is_named_by_its_samples_and_the_pool_size(candidates):
    one, other, larger = candidates("a", "abc"), candidates("b", "abc"), candidates("c", "abc", n_pool=5)
    keys = {stage_key(shared_spec(refs, of)) for refs in ([one], [one, other]) for of in ("any", "every")}
    assert len(keys) == 1
    assert stage_key(shared_spec([larger], "any")) not in keys


def test_targets_that_leave_nothing_in_common_are_refused(candidates):
    with pytest.raises(InvalidPool, match=r"every pool sample leaks into the test rows of one of 2 targets"):
        shared_spec([candidates("a", "ab"), candidates("b", "cd")], "every")
