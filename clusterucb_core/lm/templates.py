"""Chat templates: which one applies, and the text that it makes of a conversation."""

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import jinja2

from clusterucb_core.errors import InvalidConfig, InvalidModel
from clusterucb_core.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The layout of open-instruct, for a base model that brings no template.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] | trim }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)

# Some templates write today's date into the system turn; a fixed day keeps tokens the same on every day.
TEMPLATE_DATE = datetime.date(2024, 7, 26)
_DATE_CALL = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")


class RenderError(Exception):
    """A template could not render one conversation, or not in a way whose assistant turns can be told apart.

    Attributes:
        reason: a short name for counting, `template_error` or `unstable_template`.
    """

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer with the chat template that applies to it.

    Attributes:
        tokenizer: a fast tokenizer.
        template: Jinja source.
        source: where the template came from.
        head: token ids that the tokenizer puts before every text (its BOS), often empty.
        control: matches the special tokens of the tokenizer in a text.
        special_ids: the ids of those tokens.
    """

    tokenizer: "PreTrainedTokenizerBase"
    template: str
    source: Literal["config", "tokenizer", "default"]
    head: tuple[int, ...]
    control: re.Pattern[str]
    special_ids: frozenset[int]


def chat_format(tokenizer: "PreTrainedTokenizerBase", template: str | None) -> ChatFormat:
    """Return the chat format of a tokenizer.

    Args:
        tokenizer: a fast tokenizer.
        template: a Jinja template or the path of a file that holds one; None for the tokenizer's own, or the
            plain default where it has none.

    Raises:
        InvalidConfig: the template is neither Jinja nor a readable file, or renders no conversation.
        InvalidModel: the tokenizer reports no character offsets, or its own template cannot be used.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InvalidModel(
            f"the tokenizer {type(tokenizer).__name__} reports no character offsets, which the loss mask "
            "needs; use a model that comes with a tokenizer.json"
        )
    text, source = _choose_template(tokenizer, template)
    special = {id_: token.content for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    longest_first = sorted((content for content in special.values() if content), key=len, reverse=True)
    chat = ChatFormat(
        tokenizer=tokenizer,
        template=_DATE_CALL.sub(lambda call: repr(TEMPLATE_DATE.strftime(call[2])), text),
        source=source,
        head=_head(tokenizer),
        control=re.compile("|".join(map(re.escape, longest_first)) or "(?!)"),
        special_ids=frozenset(special),
    )
    _try_template(chat)
    return chat


def read_template(template: str | None) -> str | None:
    """Return the Jinja source that the configuration names: the text itself, or the content of the file.

    Raises:
        InvalidConfig: it looks like no Jinja text and no such file can be read.
    """
    if template is None or "{{" in template or "{%" in template:
        return template
    try:
        return Path(template).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise InvalidConfig(
            f"chat_template={template[:200]!r} is neither a Jinja template nor a readable UTF-8 file "
            f"({error}); give a template with {{ ... }}, the path of a file that holds one, or null"
        ) from error


def render(chat: ChatFormat, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
    """Return the text of a conversation.

    Args:
        chat: tokenizer and template.
        messages: the turns, at least one.
        generation_prompt: also open the assistant's next turn, where the template supports it.

    Raises:
        RenderError: the template refuses the conversation.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = chat.tokenizer.apply_chat_template(
            turns,
            chat_template=chat.template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            date_string=TEMPLATE_DATE.strftime("%d %b %Y"),
        )
    except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
        raise RenderError("template_error", f"the chat template refused the conversation: {error}") from error
    return str(text)


def _choose_template(
    tokenizer: "PreTrainedTokenizerBase", template: str | None
) -> tuple[str, Literal["config", "tokenizer", "default"]]:
    configured = read_template(template)
    if configured is not None:
        return configured, "config"
    own = tokenizer.chat_template
    if isinstance(own, dict):
        named: dict[str, str] = own
        if "default" not in named:
            raise InvalidModel(
                f"the tokenizer names the chat templates {sorted(named)} and none is 'default'; "
                "set model.chat_template"
            )
        return named["default"], "tokenizer"
    return (own, "tokenizer") if own else (PLAIN_TEMPLATE, "default")


def _head(tokenizer: "PreTrainedTokenizerBase") -> tuple[int, ...]:
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    full = list(tokenizer("a")["input_ids"])
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return tuple(full[:start])
    return ()


def _try_template(chat: ChatFormat) -> None:
    # One plain exchange is what every template must render; a syntax error shows here, not per sample.
    try:
        text = render(chat, (Message("user", "Hello"), Message("assistant", "Hi")))
    except RenderError as failure:
        text, problem = "", str(failure)
    else:
        problem = "the assistant's words are missing from its output"
    if "Hi" in text:
        return
    if chat.source == "config":
        raise InvalidConfig(f"model.chat_template cannot be used: {problem}; correct the template")
    raise InvalidModel(f"the tokenizer's chat template cannot be used: {problem}; set model.chat_template")
