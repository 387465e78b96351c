import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.erasure.trainings import trained_on


def train(root, name, ids, *, start=None):
    with new_artifact(root, "training", name, {"run_id": "run", "start": start}) as folder:
        if ids is not None:
            (folder / "sample_ids.txt").write_text("\n".join(ids))


def test_trainings_on_a_sample_and_those_that_go_on_from_them_are_named(tmp_path):
    train(tmp_path, "warmup", "ab")
    train(tmp_path, "first", "c", start="warmup")
    train(tmp_path, "second", "d", start="first")
    train(tmp_path, "other", "cd")
    train(tmp_path, "older", None)
    found = {item.path.rsplit("/", 1)[1]: item.how for item in trained_on([tmp_path], frozenset("a"))}
    assert found == {"warmup": "sample", "first": "start", "second": "start", "older": "unknown"}
    assert {item.run_id for item in trained_on([tmp_path], frozenset("d"))} == {"run"}


@pytest.mark.parametrize("name", ["sample_ids.txt", "manifest.json"])
def test_a_damaged_training_may_have_learned_from_anything(tmp_path, damage, name):
    train(tmp_path, "warmup", "b")
    damage["flipped"](tmp_path / "training" / "warmup" / name)
    assert [item.how for item in trained_on([tmp_path], frozenset("a"))] == ["unknown"]


def test_no_training_is_named_where_there_is_none(tmp_path):
    assert trained_on([tmp_path], frozenset("a")) == []
