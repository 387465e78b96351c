"""Writes lm-eval 0.4.13 task files, one YAML and one JSONL a task, from the test rows of a target.

The prompts are rendered here, so lm-eval adds no template, no delimiter and no example. The YAML names its
JSONL file relative to the folder, which can therefore be moved. Tasks of perplexity and of code also name
functions of `clusterucb_core.evaluation.scoring`.

Perplexity is that of the gold answers given their prompts, each token weighing the same:

    perplexity = exp(-sum_i log p(answer_i | prompt_i) / sum_i tokens(answer_i))

where an answer ends with the token that closes the model's turn. So it is the exponential of the mean test
loss, were rows weighed by their tokens. lm-eval counts the white space that ends a prompt to what follows;
such a row therefore asks for the log-likelihood of that white space, too, which is taken off again.
"""

import json
import logging
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.evaluation import scoring
from clusterucb_core.evaluation.answers import BUNDLED_FOLDER, AnswerForm, answer_form
from clusterucb_core.records import Message, Target, TargetRow

logger = logging.getLogger(__name__)

# Shapes that a gold answer may have where it names an option by its letter.
_LABELS = ("({})", "{}", "{}.", "{})")


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a model is asked, and how it would give an answer.

    `prompt` gives the text after which the model answers, from the messages before the gold answer;
    `exchange` the same and the gold answer as the model would write it, from all messages, or None where the
    template does not tell them apart. `encode` gives the tokens of a text and of what follows it as lm-eval
    sees them; the two may come to `max_length`.
    """

    prompt: Callable[[Sequence[Message]], str]
    exchange: Callable[[Sequence[Message]], tuple[str, str] | None]
    encode: Callable[[str, str], tuple[list[int], list[int]]]
    max_length: int


class FunctionName(str):
    """The full name of a function, which lm-eval imports from a task file."""

    __slots__ = ()


def task_names(target: Target, *, run_code: bool, bundled: Path = BUNDLED_FOLDER) -> list[str]:
    """Return the names of the tasks that `target` stands for: those that `write_task_files` writes of it.

    Args:
        target: the target; one without test rows has no task.
        run_code: whether code of the model may be run.
        bundled: folder of the bundled targets.
    """
    rows = _rows_by_kind(target, answer_form(target.name, folder=bundled), run_code=run_code)
    return [f"{target.name}_{kind}" for kind, of_kind in rows.items() if of_kind]


def perplexity_name(target: Target) -> str:
    """Return the name of a target's perplexity task."""
    return f"{target.name}_perplexity"


def write_task_files(
    target: Target,
    folder: Path,
    *,
    rendering: Rendering,
    run_code: bool = False,
    bundled: Path = BUNDLED_FOLDER,
) -> list[str]:
    """Write the lm-eval tasks of a target.

    Rows with two choices or more become `<target>_choice`, scored by the log-likelihood of each choice: of
    its letter where the gold text is a letter, else of its text. Rows with a test become `<target>_code`,
    scored by running it, where that is allowed. The others become `<target>_generate`, with exact match as
    the score. The bundled answer form of the target's name can ask for generation everywhere.

    Args:
        target: the target; its test rows are written.
        folder: an existing folder.
        rendering: how the model is asked.
        run_code: whether code of the model may be run; otherwise it is compared as text.
        bundled: folder of the bundled targets.

    Returns:
        The names of the tasks written, in the order choice, code, generate.

    Raises:
        InvalidTarget: the target has no test rows, or a gold text does not hold the answer's pattern.
    """
    if not target.test:
        raise InvalidTarget(f"target {target.name!r} has no test rows to make tasks of; set target.test")
    form = _fitting(answer_form(target.name, folder=bundled), rendering, name=target.name)
    makers: dict[str, tuple[Callable[[TargetRow], dict[str, Any]], Callable[[str], dict[str, Any]]]] = {
        "choice": (lambda row: _choice_record(row, rendering), _choice_task),
        "code": (lambda row: _code_record(row, rendering), lambda name: _code_task(name, form)),
        "generate": (
            lambda row: _generate_record(row, rendering, form),
            lambda name: _generate_task(name, form),
        ),
    }
    names: list[str] = []
    for kind, rows in _rows_by_kind(target, form, run_code=run_code).items():
        if rows:
            record, task = makers[kind]
            names.append(f"{target.name}_{kind}")
            _write(folder, task(names[-1]), [record(row) for row in rows])
    return names


def write_perplexity_task(target: Target, folder: Path, *, rendering: Rendering) -> str:
    """Write the task `<target>_perplexity` and return its name.

    A row whose answer the template does not set apart, or that is longer than the model reads, is left out
    and counted in the log.

    Raises:
        InvalidTarget: no row is left.
    """
    name = perplexity_name(target)
    records = [record for row in target.test if (record := _perplexity_record(row, rendering)) is not None]
    if not records:
        raise InvalidTarget(
            f"none of {len(target.test)} test rows of target {target.name!r} gives a perplexity: set "
            f"target.test, or shorten the rows to the {rendering.max_length} tokens that the model reads"
        )
    if len(records) < len(target.test):
        logger.warning("%s leaves out %d rows", name, len(target.test) - len(records))
    _write(folder, _perplexity_task(name), records)
    return name


def _rows_by_kind(target: Target, form: AnswerForm, *, run_code: bool) -> dict[str, list[TargetRow]]:
    rows: dict[str, list[TargetRow]] = {"choice": [], "code": [], "generate": []}
    for row in target.test:
        if form.kind == "multiple_choice" and len(row.choices) > 1:
            rows["choice"].append(row)
        else:
            rows["code" if run_code and row.code is not None else "generate"].append(row)
    return rows


def _fitting(form: AnswerForm, rendering: Rendering, *, name: str) -> AnswerForm:
    """Return the form with no more new tokens than leave half of the model's length to the prompt."""
    most = rendering.max_length // 2
    if form.max_new_tokens <= most:
        return form
    logger.info("%s: generating %d tokens, half of the model's length", name, most)
    return form.model_copy(update={"max_new_tokens": most})


def _write(folder: Path, task: dict[str, Any], records: list[dict[str, Any]]) -> None:
    name = task["task"]
    lines = "".join(f"{json.dumps(record, ensure_ascii=False)}\n" for record in records)
    (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
    text = yaml.dump(task, Dumper=_TaskDumper, sort_keys=False, allow_unicode=True)
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


class _TaskDumper(yaml.SafeDumper):
    """Writes function names with the tag that lm-eval knows."""

    yaml_representers = {  # noqa: RUF012 - PyYAML reads it from the class
        **yaml.SafeDumper.yaml_representers,
        FunctionName: lambda dumper, name: dumper.represent_scalar("!function", str(name)),
    }


def _choice_record(row: TargetRow, rendering: Rendering) -> dict[str, Any]:
    prompt = rendering.prompt(row.messages[:-1])
    return {"row_id": row.row_id, "prompt": prompt, "choices": _options(row), "gold": row.answer_index}


def _generate_record(row: TargetRow, rendering: Rendering, form: AnswerForm) -> dict[str, Any]:
    text = row.messages[-1].content
    gold = form.extract(text)
    if gold is None:
        raise InvalidTarget(
            f"test row {row.row_id}: its gold text {text[-80:]!r} does not match {form.regex!r}; "
            "correct the row, or give the target another name than that of a bundled one"
        )
    return {"row_id": row.row_id, "prompt": rendering.prompt(row.messages[:-1]), "gold": gold}


def _code_record(row: TargetRow, rendering: Rendering) -> dict[str, Any]:
    assert row.code is not None, "rows without a test are of another kind"
    return {
        "row_id": row.row_id,
        "prompt": rendering.prompt(row.messages[:-1]),
        "gold": row.messages[-1].content,
        "code_prompt": next(turn.content for turn in reversed(row.messages) if turn.role == "user"),
        "test": row.code.test,
        "entry_point": row.code.entry_point,
    }


def _perplexity_record(row: TargetRow, rendering: Rendering) -> dict[str, Any] | None:
    exchange = rendering.exchange(row.messages)
    if exchange is None:
        return None
    prompt = exchange[0].rstrip()
    space = exchange[0][len(prompt) :]
    before, after = rendering.encode(prompt, space + exchange[1])
    if len(before) + len(after) > rendering.max_length:
        return None
    own = rendering.encode(prompt, space)[1] if space else []
    # a token of white space and answer together is the answer's, as it is where the loss is taken
    apart = bool(own) and after[: len(own)] == own
    texts = [space + exchange[1], *([space] if apart else [])]
    n_tokens = len(after) - (len(own) if apart else 0)
    return {"row_id": row.row_id, "prompt": prompt, "texts": texts, "gold": 0, "n_tokens": n_tokens}


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
        "generation_kwargs": _generation(form),
        "filter_list": [{"name": "answer", "filter": [extraction, {"function": "take_first"}]}],
        "metric_list": [_metric("exact_match") | {"regexes_to_ignore": list(form.ignore)}],
    }


def _code_task(name: str, form: AnswerForm) -> dict[str, Any]:
    running = {"function": "custom", "filter_fn": _function(scoring.run_answers)}
    return _shared_keys(name, "generate_until") | {
        "unsafe_code": True,  # so that lm-eval asks for its own flag, too
        "generation_kwargs": _generation(form),
        "filter_list": [{"name": "sandbox", "filter": [running, {"function": "take_first"}]}],
        "process_results": _function(scoring.pass_at_1),
        "metric_list": [_metric("pass@1")],
    }


def _perplexity_task(name: str) -> dict[str, Any]:
    metric = {"metric": "perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}
    return _shared_keys(name, "multiple_choice") | {
        "doc_to_choice": "texts",
        "process_results": _function(scoring.token_weighted),
        "metric_list": [metric],
    }


def _function(function: Callable[..., object]) -> FunctionName:
    return FunctionName(f"{function.__module__}.{function.__name__}")


def _generation(form: AnswerForm) -> dict[str, Any]:
    return {"until": list(form.stop), "do_sample": False, "max_gen_toks": form.max_new_tokens}


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
