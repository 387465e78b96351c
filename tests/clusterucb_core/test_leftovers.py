import os
import shutil
import time
from itertools import count

import pytest

from clusterucb_core.artifacts import artifact_exists, new_artifact
from clusterucb_core.leftovers import remove_leftovers
from clusterucb_core.workspace import Workspace

NUMBER = count()


def leave_draft(root, stage, *, hours_ago=0.0):
    """Leave what a process that is killed while it writes an artifact leaves, and return it."""
    key = f"key{next(NUMBER)}"
    with new_artifact(root, stage, key, {}) as draft:
        (draft / "rows.npy").write_bytes(b"0" * 100)
        kept = draft.with_name("kept")
        draft.rename(kept)
        draft.mkdir()
    shutil.rmtree(root / stage / key)
    kept.rename(draft)
    for path in (draft / "rows.npy", draft):
        os.utime(path, (then := time.time() - 3600 * hours_ago, then))
    return draft


@pytest.fixture
def workspace(tmp_path):
    return Workspace(home=str(tmp_path))


def test_drafts_of_killed_processes_go_and_artifacts_stay(workspace):
    root = workspace.artifacts
    drafts = [leave_draft(root, stage) for stage in ("tokens", "features/0abc", "training")]
    with new_artifact(root, "tokens", "whole", {}) as folder:
        (folder / "rows.npy").write_bytes(b"1")
    (root / "tokens" / ".hidden").mkdir()
    assert remove_leftovers(workspace) == 3
    assert [draft for draft in drafts if draft.exists()] == []
    assert artifact_exists(root, "tokens", "whole")
    assert (root / "tokens" / ".hidden").is_dir()
    assert remove_leftovers(workspace) == 0


def test_a_draft_that_another_process_may_be_writing_stays(workspace, tmp_path):
    young = leave_draft(workspace.artifacts, "ingest", hours_ago=1)
    assert remove_leftovers(workspace) == 0
    shared = Workspace(home=str(tmp_path), storage_root=str(tmp_path / "shared"))
    also = leave_draft(shared.artifacts, "tokens", hours_ago=1)
    assert remove_leftovers(shared) == 0
    assert young.is_dir()
    assert also.is_dir()
    assert remove_leftovers(workspace, shared_grace_s=1800) == 1
    assert remove_leftovers(shared, shared_grace_s=1800) == 1


def test_a_folder_without_artifacts_has_no_leftovers(workspace):
    assert remove_leftovers(workspace) == 0
