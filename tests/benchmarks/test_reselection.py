"""The benchmark of re-selection: the pool changes as it says."""

import pytest
from reselection import changed_rows, main

from clusterucb_core.records import Message, Sample


def sample(number: int) -> Sample:
    turns = (Message("user", f"question {number}"), Message("assistant", f"answer {number}"))
    return Sample(f"{number:032x}", "web", turns)


def test_the_first_rows_leave_the_next_are_edited_and_the_last_join():
    rows = changed_rows([sample(number) for number in range(12)], 10, {"added": 2, "removed": 3, "edited": 2})
    answers = [row["messages"][-1]["content"] for row in rows]
    edited = ["answer 3 That is the answer.", "answer 4 That is the answer."]
    assert answers == [*edited, *(f"answer {number}" for number in range(5, 12))]
    assert rows[0]["messages"][0] == {"role": "user", "content": "question 3"}


def test_a_folder_must_be_named(capsys):
    with pytest.raises(SystemExit):
        main([])
    assert "--folder" in capsys.readouterr().err
