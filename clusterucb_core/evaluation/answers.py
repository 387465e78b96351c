"""How the answers of a target are scored: the block `answer` of the target's bundled YAML file.

The block is read here and not handed over by `clusterucb_core.targets`, since the two are siblings.
"""

import re
from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field, PositiveInt, ValidationError, field_validator

from clusterucb_core.errors import InvalidTarget
from clusterucb_core.frozen import Frozen

BUNDLED_FOLDER = Path(__file__).parents[1] / "targets"


class AnswerForm(Frozen):
    """How an answer is drawn from the model and compared with the gold one.

    `kind`: `multiple_choice` compares log-likelihoods where a row carries choices and generates elsewhere;
    `generation` generates everywhere. `regex`: its last match is the answer, in the gold text and in the
    generated one; without it the whole text is. `ignore`: patterns removed from both before the comparison.
    `stop`: texts that end a generation, beside the end of the model's turn.
    """

    kind: Literal["generation", "multiple_choice"] = "multiple_choice"
    regex: str | None = None
    ignore: tuple[str, ...] = ()
    max_new_tokens: PositiveInt = 256
    stop: tuple[str, ...] = Field(default=())

    @field_validator("regex")
    @classmethod
    def _one_group_at_most(cls, pattern: str | None) -> str | None:
        if pattern is not None and _compiled(pattern).groups > 1:
            raise ValueError(f"{pattern!r} has more than one group; keep one and make the others (?:...)")
        return pattern

    @field_validator("ignore")
    @classmethod
    def _patterns(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            _compiled(pattern)
        return patterns

    def extract(self, text: str) -> str | None:
        """Return the answer in a text, or None where the pattern does not match."""
        if self.regex is None:
            return text.strip()
        matches = re.findall(self.regex, text)
        return matches[-1].strip() if matches else None


def answer_form(target_name: str, *, folder: Path = BUNDLED_FOLDER) -> AnswerForm:
    """Return the bundled answer form of a target, or the default one where none is bundled.

    Raises:
        InvalidTarget: the bundled file has no usable block `answer`.
    """
    path = folder / f"{target_name}.yaml"
    if not path.is_file():
        return AnswerForm()
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        block = document.get("answer", {}) if isinstance(document, dict) else document
        return AnswerForm.model_validate(block)
    except (ValidationError, yaml.YAMLError) as error:
        raise InvalidTarget(f"the block answer of {path} cannot be used: {error}; correct it") from error


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error
