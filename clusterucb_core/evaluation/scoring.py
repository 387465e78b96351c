"""What the task files name with `!function`: how lm-eval scores perplexity and code.

lm-eval imports this module by its name, in a run of ours and in one by hand alike.
"""

import logging
import re
from collections.abc import Sequence
from typing import Any

from clusterucb_core.evaluation.sandbox import PASSED, run_program
from clusterucb_core.pacing import Pace, paced

logger = logging.getLogger(__name__)

_FENCED = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)

Row = dict[str, Any]


def token_weighted(row: Row, results: Sequence[tuple[float, bool]]) -> dict[str, tuple[float, int]]:
    """Return the log-likelihood of a row's gold answer in nats, with its tokens as the weight.

    Args:
        row: a row of a perplexity task, with `n_tokens`.
        results: the log-likelihood of the answer, and of the white space before it where there is some, each
            with whether it is the greedy text.
    """
    answer, *space = (log_likelihood for log_likelihood, _ in results)
    return {"perplexity": (answer - sum(space), row["n_tokens"])}


def run_answers(responses: Sequence[Sequence[str]], rows: Sequence[Row]) -> list[list[str]]:
    """Run the program of each answer in the sandbox, and return what became of it.

    Args:
        responses: the answers of the model to each row.
        rows: rows of a code task, with `code_prompt`, `test` and `entry_point`.
    """
    pairs = list(zip(responses, rows, strict=True))
    pace = Pace(logger, "running programs", "rows", len(pairs))
    return [[run_program(program_text(row, text)) for text in texts] for texts, row in paced(pairs, pace)]


def program_text(row: Row, answer: str) -> str:
    """Return the program that tests an answer: the prompt, the answer, the test and its call.

    Of an answer with a fenced block only the first block counts. An answer may go on where the prompt ends or
    define the whole function anew.
    """
    fenced = _FENCED.search(answer)
    body = fenced.group(1) if fenced else answer
    return f"{row['code_prompt']}{body}\n\n{row['test']}\n\ncheck({row['entry_point']})\n"


def pass_at_1(row: Row, results: Sequence[str]) -> dict[str, float]:
    """Return 1 where the program of a row passed its test, else 0."""
    return {"pass@1": float(results[0] == PASSED)}
