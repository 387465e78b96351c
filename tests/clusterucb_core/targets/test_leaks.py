import gzip
import json
import os
import time
from pathlib import Path

import pytest

from clusterucb_core.records import Message, Sample, Target, TargetRow
from clusterucb_core.targets.catalog import TargetSettings, load_target
from clusterucb_core.targets.leaks import find_leaks

WORDS = [f"word{i}" for i in range(20)]
ROW = TargetRow("row", "s", (Message("user", " ".join(WORDS)), Message("assistant", "gold")))
TARGET = Target("t", (), (ROW,))


def sample(prompt, answer="fine", *, system=None, sample_id="a"):
    turns = (Message("user", prompt), Message("assistant", answer))
    return Sample(sample_id, "pool", turns if system is None else (Message("system", system), *turns))


def reasons(*samples, target=TARGET):
    return [leak.reason for leak in find_leaks(target, samples)]


def test_the_same_prompt_in_other_case_and_space_is_a_leak():
    (leak,) = find_leaks(TARGET, [sample("other"), sample("\n  ".join(WORDS).upper(), sample_id="b")])
    assert (leak.sample_id, leak.stage, leak.reason) == ("b", "leak", "same_prompt")
    assert "row" in leak.detail


def test_a_short_prompt_leaks_only_as_a_whole():
    target = Target("t", (), (TargetRow("r", "s", (Message("user", "2+2?"), Message("assistant", "4"))),))
    assert reasons(sample("2+2?"), sample("what is 2+2?"), target=target) == ["same_prompt"]


@pytest.mark.parametrize("start", range(8))
@pytest.mark.parametrize("before", range(8))
def test_thirteen_shared_words_are_a_leak_wherever_they_stand(start, before):
    run = ["x"] * before + WORDS[start : start + 13] + ["y"] * 3
    (leak,) = find_leaks(TARGET, [sample(" ".join(run))])
    assert leak.reason == "shared_13_words"
    assert leak.detail == f"test row row shares the words: {' '.join(WORDS[start : start + 13])}"


@pytest.mark.parametrize("start", range(9))
def test_twelve_shared_words_are_no_leak(start):
    assert reasons(sample(" ".join(["x", *WORDS[start : start + 12], "y"]))) == []


def test_a_run_is_found_in_the_answer_and_through_punctuation():
    run = "“" + ", ".join(WORDS[:13]).upper() + "!”"
    assert reasons(sample("hello", run)) == ["shared_13_words"]


def test_a_run_does_not_reach_over_two_turns():
    assert reasons(sample(" ".join(WORDS[:7]), " ".join(WORDS[7:14]))) == []


def test_a_shared_system_prompt_is_no_leak():
    system = " ".join(f"rule{i}" for i in range(30))
    turns = (Message("system", system), Message("user", "question"), Message("assistant", "gold"))
    target = Target("t", (), (TargetRow("r", "s", turns),))
    assert reasons(sample("another", system=system), target=target) == []


def test_the_gold_answer_and_validation_rows_are_not_looked_for():
    gold = TargetRow("r", "s", (Message("user", "q"), Message("assistant", " ".join(WORDS))))
    assert reasons(sample(" ".join(WORDS)), target=Target("t", (ROW,), (gold,))) == []


def test_without_test_rows_nothing_leaks():
    assert (
        reasons(sample("q"), Sample("a", "pool", (Message("assistant", "a"),)), target=Target("t", (), ()))
        == []
    )


def test_a_pool_of_75000_samples_takes_seconds():
    text = " ".join(f"term{i % 97}" for i in range(100))
    pool = (sample(f"{i} {text}") for i in range(75_000))
    started = time.perf_counter()
    assert reasons(*[sample(" ".join(WORDS[:13]))]) == ["shared_13_words"]
    assert find_leaks(TARGET, pool) == []
    assert time.perf_counter() - started < 30, "the scan looks at more than every seventh place"


@pytest.mark.skipif("CLUSTERUCB_DATA" not in os.environ, reason="CLUSTERUCB_DATA names no folder with pool/")
def test_three_real_test_rows_of_gsm8k_share_words_with_its_training_set():
    data = Path(os.environ["CLUSTERUCB_DATA"])
    path = "targets/gsm8k.jsonl.gz"
    target = load_target(TargetSettings(name="gsm8k", validation=path, test=path), data)
    with gzip.open(data / "pool" / "gsm8k_train.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    leaks = find_leaks(target, (sample(row["question"], row["answer"]) for row in rows))
    assert {leak.reason for leak in leaks} == {"shared_13_words"}
    assert len({leak.detail.split()[2] for leak in leaks}) == 3
