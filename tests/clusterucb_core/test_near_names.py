import pytest

from clusterucb_core.near_names import did_you_mean, known_names


@pytest.mark.parametrize(
    ("name", "wanted"), [("lastest", "did you mean latest?"), ("2nd", ""), (7, ""), (None, "")]
)
def test_a_question_is_asked_where_a_name_is_near(name, wanted):
    assert did_you_mean(name, ["latest", "oldest"]) == wanted


def test_the_known_names_follow_the_question():
    assert known_names("thread", ["threads", "ray"]) == "did you mean threads? known: threads, ray"
    assert known_names("xyz", ["threads", "ray"]) == "known: threads, ray"
