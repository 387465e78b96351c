import pytest

from clusterucb_core.stages.summary import SubjectSummary
from flows.commands.demonstration import compare_subjects


def subject(name, *, family, loss, evaluations=0, influence=0.5, n=10):
    return SubjectSummary(
        subject=name,
        n_selected=n,
        sources={"sums": family, "talk": n - family},
        captured_influence=influence,
        recall=None,
        loss=loss,
        loss_low=None,
        loss_high=None,
        gradient_evaluations=evaluations,
    )


def test_random_selections_are_averaged_and_stand_first():
    rows = compare_subjects(
        [
            subject("selection", family=6, loss=1.0, evaluations=40),
            subject("random:0", family=1, loss=2.0),
            subject("random:1", family=3, loss=3.0),
            subject("full", family=9, loss=0.5, evaluations=100),
        ],
        "sums",
    )
    assert [row.name for row in rows] == ["random (mean of 2)", "clusterucb", "full"]
    assert [row.family_share for row in rows] == pytest.approx([0.2, 0.6, 0.9])
    assert [row.loss for row in rows] == [2.5, 1.0, 0.5]
    assert [row.gradient_evaluations for row in rows] == [0, 40, 100]


def test_what_was_not_measured_for_all_seeds_has_no_mean():
    rows = compare_subjects(
        [
            subject("random:0", family=1, loss=2.0, influence=None),
            subject("random:1", family=3, loss=3.0),
        ],
        "sums",
    )
    assert rows[0].captured_influence is None
    assert rows[0].loss == 2.5


def test_the_base_model_selects_nothing():
    rows = compare_subjects([subject("zero_shot", family=0, n=0, loss=3.0, evaluations=None)], "sums")
    assert (rows[0].name, rows[0].family_share, rows[0].gradient_evaluations) == ("no fine-tuning", 0.0, None)
