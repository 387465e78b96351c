"""Writes lm-eval 0.4.13 task files, one YAML and one JSONL a task, from the test rows of a target.

The prompts are rendered here, so lm-eval adds no template, no delimiter and no example. The YAML names its
JSONL file relative to the folder, which can therefore be moved.
"""

import json
import string
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.evaluation.answers import BUNDLED_FOLDER, AnswerForm, answer_form
from clusterucb_core.records import Message, Target, TargetRow

Render = Callable[[Sequence[Message]], str]

# Shapes that a gold answer may have where it names an option by its letter.
_LABELS = ("({})", "{}", "{}.", "{})")


def write_task_files(
    target: Target, folder: Path, *, render: Render, bundled: Path = BUNDLED_FOLDER
) -> list[str]:
    """Write the lm-eval tasks of a target.

    Rows with two choices or more become `<target>_choice`, scored by the log-likelihood of each choice: of
    its letter where the gold text is a letter, else of its text. The others become `<target>_generate`, with
    exact match as the score. The bundled answer form of the target's name can ask for generation everywhere.

    Args:
        target: the target; its test rows are written.
        folder: an existing folder.
        render: gives the text after which the model answers, from the messages before the gold answer.
        bundled: folder of the bundled targets.

    Returns:
        The names of the tasks written, `_choice` first.

    Raises:
        InvalidTarget: the target has no test rows, or a gold text does not hold the answer's pattern.
    """
    if not target.test:
        raise InvalidTarget(f"target {target.name!r} has no test rows to make tasks of; set target.test")
    form = answer_form(target.name, folder=bundled)
    choice_rows = [row for row in target.test if form.kind == "multiple_choice" and len(row.choices) > 1]
    chosen = {row.row_id for row in choice_rows}
    generate_rows = [row for row in target.test if row.row_id not in chosen]
    names: list[str] = []
    if choice_rows:
        names.append(f"{target.name}_choice")
        records = [_choice_record(row, render) for row in choice_rows]
        _write(folder, _choice_task(names[-1]), records)
    if generate_rows:
        names.append(f"{target.name}_generate")
        records = [_generate_record(row, render, form) for row in generate_rows]
        _write(folder, _generate_task(names[-1], form), records)
    return names


def _write(folder: Path, task: dict[str, Any], records: list[dict[str, Any]]) -> None:
    name = task["task"]
    lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    text = yaml.safe_dump(task, sort_keys=False, allow_unicode=True)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def _choice_record(row: TargetRow, render: Render) -> dict[str, Any]:
    prompt = render(row.messages[:-1])
    return {"row_id": row.row_id, "prompt": prompt, "choices": _options(row), "gold": row.answer_index}


def _generate_record(row: TargetRow, render: Render, form: AnswerForm) -> dict[str, Any]:
    text = row.messages[-1].content
    gold = form.extract(text)
    if gold is None:
        raise InvalidTarget(
            f"test row {row.row_id}: its gold text {text[-80:]!r} does not match {form.regex!r}; "
            "correct the row, or give the target another name than that of a bundled one"
        )
    return {"row_id": row.row_id, "prompt": render(row.messages[:-1]), "gold": gold}


def _options(row: TargetRow) -> list[str]:
    gold = row.messages[-1].content.strip()
    letters = string.ascii_uppercase[: len(row.choices)]
    index = row.answer_index
    if index is None or gold == row.choices[index].strip() or len(letters) < len(row.choices):
        return list(row.choices)
    for label in _LABELS:
        if gold == label.format(letters[index]):
            return [label.format(letter) for letter in letters]
    return list(row.choices)


def _choice_task(name: str) -> dict[str, Any]:
    metrics = ("acc", "acc_norm")
    return _shared_keys(name, "multiple_choice") | {
        "doc_to_choice": "choices",
        "metric_list": [_metric(metric) for metric in metrics],
    }


def _generate_task(name: str, form: AnswerForm) -> dict[str, Any]:
    extraction = {"function": "remove_whitespace"}
    if form.regex is not None:
        extraction = {"function": "regex", "regex_pattern": form.regex, "group_select": -1}
    return _shared_keys(name, "generate_until") | {
        "generation_kwargs": {
            "until": list(form.stop),
            "do_sample": False,
            "max_gen_toks": form.max_new_tokens,
        },
        "filter_list": [{"name": "answer", "filter": [extraction, {"function": "take_first"}]}],
        "metric_list": [_metric("exact_match") | {"regexes_to_ignore": list(form.ignore)}],
    }


def _shared_keys(name: str, output_type: str) -> dict[str, Any]:
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": f"{name}.jsonl"}},
        "test_split": "test",
        "fewshot_split": "test",
        "num_fewshot": 0,
        "output_type": output_type,
        "doc_to_text": "prompt",
        "doc_to_target": "gold",
        "target_delimiter": "",
        "metadata": {"version": 1},
    }


def _metric(name: str) -> dict[str, Any]:
    return {"metric": name, "aggregation": "mean", "higher_is_better": True}
