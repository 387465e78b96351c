"""Drafts: whoever was killed leaves them, the next one removes them, and nobody else's is touched."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clusterucb_core import drafts
from clusterucb_core.drafts import damaged_name, held_draft
from clusterucb_core.errors import RunStopped

KILLED = """
import os, signal, sys
from pathlib import Path
from clusterucb_core.drafts import held_draft
with held_draft(Path(sys.argv[1])) as draft:
    (draft / "part-1").mkdir()
    (draft / "part-1" / "content").write_text("whole")
    (draft / "scrap").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def final(tmp_path):
    return tmp_path / "stage" / "key"


@pytest.fixture
def left(final):
    """The draft of a process that was killed while it filled it."""
    assert subprocess.run([sys.executable, "-c", KILLED, str(final)], check=False).returncode == -9
    (draft,) = final.parent.iterdir()
    return draft


def test_a_draft_is_an_empty_sibling_that_is_gone_afterwards(final):
    with held_draft(final) as draft:
        assert draft.parent == final.parent
        assert list(draft.iterdir()) == []
    assert list(final.parent.iterdir()) == []


def test_what_a_killed_process_left_goes_with_the_next_draft_of_the_same(final, left):
    damaged_name(left).mkdir()
    with held_draft(final) as draft:
        assert list(final.parent.iterdir()) == [draft]


def test_beside_another_it_goes_after_a_day(final, left):
    with held_draft(final.with_name("another")):
        assert left.is_dir()
    yesterday = time.time() - 25 * 3600
    os.utime(left, (yesterday, yesterday))
    with held_draft(final.with_name("another")) as draft:
        assert list(final.parent.iterdir()) == [draft]


def leave(final: Path, error: type[BaseException], keep: str | None) -> None:
    with held_draft(final, keep=keep) as draft:
        (draft / "part-1").mkdir()
        raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RunStopped])
def test_a_block_that_is_stopped_leaves_what_may_be_taken_over(final, error):
    with pytest.raises(error):
        leave(final, error, "part-*")
    with held_draft(final, keep="part-*") as taken:
        assert [path.name for path in taken.iterdir()] == ["part-1"]


@pytest.mark.parametrize(("error", "keep"), [(ValueError, "part-*"), (KeyboardInterrupt, None)])
def test_a_block_that_fails_leaves_nothing(final, error, keep):
    with pytest.raises(error):
        leave(final, error, keep)
    assert list(final.parent.iterdir()) == []


def test_what_it_had_finished_is_taken_over_by_the_same_artifact(final, left):
    inode = (left / "part-1").stat().st_ino
    with held_draft(final, keep="part-*") as draft:
        assert [path.name for path in draft.iterdir()] == ["part-1"]
        assert (draft / "part-1").stat().st_ino == inode
        assert (draft / "part-1" / "content").read_text() == "whole"
    assert not left.exists()


def test_another_artifact_takes_nothing_over(final, left):
    with held_draft(final.with_name("other"), keep="part-*") as draft:
        assert list(draft.iterdir()) == []


def test_a_draft_that_is_held_is_left_alone(final):
    with held_draft(final) as first, held_draft(final, keep="*") as second:
        (first / "content").write_text("mine")
        with held_draft(final, keep="*") as third:
            assert first.is_dir()
            assert second.is_dir()
            assert list(third.iterdir()) == []


def test_a_draft_of_another_machine_is_left_alone(final, left, monkeypatch):
    monkeypatch.setattr(drafts.platform, "node", lambda: "elsewhere")
    with held_draft(final, keep="part-*"):
        assert left.is_dir()


def test_a_file_system_without_locks_sweeps_nothing(final, left, monkeypatch):
    def refuse(*_):
        raise OSError("no locks")

    monkeypatch.setattr(drafts.fcntl, "flock", refuse)
    with held_draft(final) as draft:
        assert draft.is_dir()
        assert left.is_dir()
