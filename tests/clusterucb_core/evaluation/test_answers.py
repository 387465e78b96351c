import pytest

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.evaluation import AnswerForm, answer_form


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("2+2=<<2+2=4>>4\n#### 4", "4"),
        ("#### 1\nno, #### -1,250.5", "-1,250.5"),
        ("four", None),
    ],
)
def test_the_last_match_of_gsm8k_is_the_answer(text, answer):
    assert answer_form("gsm8k").extract(text) == answer


def test_without_a_pattern_the_whole_text_is_the_answer():
    assert AnswerForm().extract("  a b\n") == "a b"


def test_a_target_that_is_not_bundled_has_the_default_form():
    assert answer_form("mine") == AnswerForm()


@pytest.mark.parametrize(
    "text",
    [
        "answer: {regex: '('}",
        "answer: {regex: '(a)(b)'}",
        "answer: {ignore: ['[']}",
        "answer: {kid: 1}",
        "[]",
    ],
)
def test_a_block_that_cannot_be_used_is_an_error_that_names_the_file(tmp_path, text):
    (tmp_path / "sums.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InvalidTarget, match=r"answer of .*sums\.yaml cannot be used"):
        answer_form("sums", folder=tmp_path)
