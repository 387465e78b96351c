import json

import pytest
import yaml

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.evaluation import Rendering, task_names, write_perplexity_task, write_task_files
from clusterucb_core.records import CodeTest, Message, Target, TargetRow


def row(number, prompt, gold, choices=(), answer_index=None):
    turns = (Message("user", prompt), Message("assistant", gold))
    return TargetRow(f"r{number}", "s", turns, tuple(choices), answer_index)


def prompt(messages):
    return "".join(f"[{m.role}] {m.content}\n" for m in messages) + "[assistant] "


def exchange(messages):
    return (
        None if "unclear" in messages[0].content else (prompt(messages[:-1]), f"{messages[-1].content}</s>")
    )


def encode(before, after):
    return [*map(ord, before)], [*map(ord, after)]


RENDERING = Rendering(prompt, exchange, encode, max_length=1000)


def written(folder, rows, name="mine", **settings):
    names = write_task_files(Target(name, (), tuple(rows)), folder, rendering=RENDERING, **settings)
    return records_of(folder, names)


def records_of(folder, names):
    lines = {n: (folder / f"{n}.jsonl").read_text(encoding="utf-8").split("\n") for n in names}
    return {n: [json.loads(line) for line in content if line] for n, content in lines.items()}


def test_rows_with_and_without_choices_give_a_task_each(tmp_path):
    records = written(tmp_path, [row(1, "2+2?", " 4\n"), row(2, "sky?", "blue", ["red", "blue"], 1)])
    assert records == {
        "mine_choice": [
            {"row_id": "r2", "prompt": "[user] sky?\n[assistant] ", "choices": ["red", "blue"], "gold": 1}
        ],
        "mine_generate": [{"row_id": "r1", "prompt": "[user] 2+2?\n[assistant] ", "gold": "4"}],
    }


def test_the_yaml_adds_nothing_to_the_prompt_and_can_be_moved(tmp_path):
    written(tmp_path, [row(1, "2+2?", "4")])
    task = yaml.safe_load((tmp_path / "mine_generate.yaml").read_text(encoding="utf-8"))
    assert (task["dataset_path"], task["num_fewshot"], task["target_delimiter"]) == ("json", 0, "")
    assert task["dataset_kwargs"] == {"data_files": {"test": "mine_generate.jsonl"}}
    assert task["generation_kwargs"]["do_sample"] is False


@pytest.mark.parametrize(
    ("gold", "options"),
    [("(B)", ["(A)", "(B)"]), ("B", ["A", "B"]), ("B.", ["A.", "B."]), ("B)", ["A)", "B)"])],
)
def test_a_gold_letter_is_compared_with_the_other_letters(tmp_path, gold, options):
    records = written(tmp_path, [row(1, "q", gold, ["one", "two"], 1)])
    assert records["mine_choice"][0]["choices"] == options


@pytest.mark.parametrize(("gold", "choices"), [("two", ["one", "two"]), ("I say two", ["one", "two"])])
def test_other_gold_texts_are_compared_by_the_choices_themselves(tmp_path, gold, choices):
    assert written(tmp_path, [row(1, "q", gold, choices, 1)])["mine_choice"][0]["choices"] == choices


def test_a_choice_that_is_itself_a_letter_is_no_label(tmp_path):
    assert written(tmp_path, [row(1, "q", "B", ["C", "B"], 1)])["mine_choice"][0]["choices"] == ["C", "B"]


def test_a_single_choice_is_generated_since_it_cannot_be_missed(tmp_path):
    assert list(written(tmp_path, [row(1, "q", "(A)", ["one"], 0)])) == ["mine_generate"]


def test_a_bundled_form_can_ask_for_generation_and_a_pattern(tmp_path):
    text = "answer: {kind: generation, regex: '= (.*)', stop: ['\n\n'], ignore: [','], max_new_tokens: 9}"
    (tmp_path / "sums.yaml").write_text(
        text.replace("\n", "\\n").replace("'\\n\\n'", '"\\n\\n"'), encoding="utf-8"
    )
    records = written(tmp_path, [row(1, "q", "a = 1\nb = 2", ["1", "2"], 1)], "sums", bundled=tmp_path)
    assert records["sums_generate"][0]["gold"] == "2"
    task = yaml.safe_load((tmp_path / "sums_generate.yaml").read_text(encoding="utf-8"))
    assert task["filter_list"][0]["filter"][0]["group_select"] == -1
    assert task["generation_kwargs"] == {"until": ["\n\n"], "do_sample": False, "max_gen_toks": 9}


def test_the_same_target_writes_the_same_bytes(tmp_path):
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, [row(1, "\u00fc \u2028?", "\u00e4"), row(2, "q", "a", ["a", "b"], 0)])
        contents.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 4


def test_a_gold_text_without_the_pattern_is_an_error(tmp_path):
    with pytest.raises(InvalidTarget, match=r"test row r1: its gold text 'four' does not match '####"):
        written(tmp_path, [row(1, "2+2?", "four")], "gsm8k")


def test_a_target_without_test_rows_is_an_error(tmp_path):
    with pytest.raises(InvalidTarget, match=r"'mine' has no test rows .* set target\.test"):
        written(tmp_path, [])


ROW_WITH_CODE = TargetRow(
    "c1",
    "s",
    (Message("user", "def two():\n"), Message("assistant", "    return 2\n")),
    code=CodeTest("two", "def check(two):\n    assert two() == 2\n"),
)


def test_a_row_with_a_test_is_run_only_where_code_may_be(tmp_path):
    assert list(written(tmp_path, [ROW_WITH_CODE])) == ["mine_generate"]
    (record,) = written(tmp_path, [ROW_WITH_CODE], run_code=True)["mine_code"]
    assert (record["code_prompt"], record["entry_point"]) == ("def two():\n", "two")
    assert record["prompt"] == "[user] def two():\n\n[assistant] "
    assert record["test"] == ROW_WITH_CODE.code.test


def test_the_names_are_known_before_the_files_are_written(tmp_path):
    rows = [row(1, "q", "a"), row(2, "q", "a", ["a", "b"], 0), ROW_WITH_CODE]
    for run_code in (False, True):
        names = list(written(tmp_path, rows, run_code=run_code))
        assert task_names(Target("mine", (), tuple(rows)), run_code=run_code) == names
    assert names == ["mine_choice", "mine_code", "mine_generate"]


def test_an_answer_gets_at_most_half_of_the_models_length(tmp_path):
    short = Rendering(prompt, exchange, encode, max_length=100)
    write_task_files(Target("mine", (), (row(1, "q", "a"),)), tmp_path, rendering=short)
    task = yaml.safe_load((tmp_path / "mine_generate.yaml").read_text(encoding="utf-8"))
    assert task["generation_kwargs"]["max_gen_toks"] == 50


def test_perplexity_is_that_of_the_answers_with_their_end(tmp_path):
    target = Target("mine", (), (row(1, "2+2?", "4"), row(2, "q", "(A)", ["one", "two"], 0)))
    name = write_perplexity_task(target, tmp_path, rendering=RENDERING)
    assert records_of(tmp_path, [name])["mine_perplexity"] == [
        {
            "row_id": "r1",
            "prompt": "[user] 2+2?\n[assistant]",
            "texts": [" 4</s>", " "],
            "gold": 0,
            "n_tokens": 5,
        },
        {
            "row_id": "r2",
            "prompt": "[user] q\n[assistant]",
            "texts": [" (A)</s>", " "],
            "gold": 0,
            "n_tokens": 7,
        },
    ]
    text = (tmp_path / "mine_perplexity.yaml").read_text(encoding="utf-8")
    assert "process_results: !function 'clusterucb_core.evaluation.scoring.token_weighted'" in text


def test_a_token_of_white_space_and_answer_together_is_the_answers(tmp_path):
    def merged(before, after):
        return [1] * len(before), ([2] if after.startswith(" 4") else []) + [3] * (len(after) - 2)

    target = Target("mine", (), (row(1, "2+2?", "4"),))
    write_perplexity_task(target, tmp_path, rendering=Rendering(prompt, exchange, merged, max_length=99))
    (record,) = records_of(tmp_path, ["mine_perplexity"])["mine_perplexity"]
    assert (record["texts"], record["n_tokens"]) == ([" 4</s>"], 5)


def test_rows_that_give_no_perplexity_are_left_out_and_counted(tmp_path, caplog):
    rows = (row(1, "q", "a"), row(2, "unclear", "a"), row(3, "q" * 1000, "a"))
    write_perplexity_task(Target("mine", (), rows), tmp_path, rendering=RENDERING)
    assert [record["row_id"] for record in records_of(tmp_path, ["mine_perplexity"])["mine_perplexity"]] == [
        "r1"
    ]
    assert "mine_perplexity leaves out 2 rows" in caplog.text


def test_no_row_that_gives_a_perplexity_is_an_error(tmp_path):
    with pytest.raises(InvalidTarget, match=r"none of 1 test rows of target 'mine' gives a perplexity"):
        write_perplexity_task(Target("mine", (), (row(1, "unclear", "a"),)), tmp_path, rendering=RENDERING)
