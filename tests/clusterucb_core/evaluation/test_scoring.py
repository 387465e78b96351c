import gzip
import json
import os
from pathlib import Path

import pytest

from clusterucb_core.evaluation.scoring import pass_at_1, program_text, run_answers, token_weighted

ROW = {
    "code_prompt": "def two():\n",
    "test": "def check(two):\n    assert two() == 2",
    "entry_point": "two",
    "n_tokens": 7,
}


@pytest.mark.parametrize(
    "answer",
    [
        "    return 2",
        "    pass\n\ndef two():\n    return 2\n",
        "Sure:\n```python\n    return 2\n```\nIt gives 2.",
        "```\n    return 2",
    ],
)
def test_a_body_a_whole_function_and_a_fenced_one_pass(answer):
    assert run_answers([[answer]], [ROW]) == [["passed"]]


@pytest.mark.parametrize(
    ("answer", "outcome"), [("    return 3", "AssertionError"), ("It is 2.", "IndentationError")]
)
def test_what_is_wrong_with_an_answer_is_told(answer, outcome):
    assert run_answers([[answer]], [ROW]) == [[outcome]]


def test_the_program_ends_with_the_call_of_the_test():
    assert program_text(ROW, "    return 2") == (
        "def two():\n    return 2\n\ndef check(two):\n    assert two() == 2\n\ncheck(two)\n"
    )


def test_a_row_passes_or_it_does_not():
    assert pass_at_1(ROW, ["passed"]) == {"pass@1": 1.0}
    assert pass_at_1(ROW, ["timeout"]) == {"pass@1": 0.0}


def test_a_log_likelihood_comes_with_its_tokens():
    assert token_weighted(ROW, [(-3.5, True)]) == {"perplexity": (-3.5, 7)}
    assert token_weighted(ROW, [(-3.5, True), (-0.5, True)]) == {"perplexity": (-3.0, 7)}


@pytest.mark.slow
@pytest.mark.skipif(
    "CLUSTERUCB_DATA" not in os.environ, reason="CLUSTERUCB_DATA names no folder with targets/"
)
def test_the_gold_answers_of_humaneval_pass_and_empty_ones_do_not():
    path = Path(os.environ["CLUSTERUCB_DATA"]) / "targets" / "humaneval.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [
            row | {"code_prompt": row["prompt"]} for row in map(json.loads, file) if row["split"] == "test"
        ]
    assert len(rows) == 154
    assert run_answers([[row["completion"]] for row in rows[:40]], rows[:40]) == [["passed"]] * 40
    assert ["passed"] not in run_answers([["    return None\n"]] * 10, rows[:10])
