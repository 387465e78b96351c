import types

import pytest

from clusterucb_core.errors import InvalidConfig, InvalidModel
from clusterucb_core.lm.templates import PLAIN_TEMPLATE, chat_format, render
from clusterucb_core.records import Message

OWN = "{% for m in messages %}own {{ m.content }}</s>{% endfor %}"
GIVEN = "{% for m in messages %}given {{ m.content }}</s>{% endfor %}"


def test_the_configured_template_goes_before_the_tokenizers_and_that_before_the_plain_one(make_tokenizer):
    assert chat_format(make_tokenizer(template=OWN), GIVEN).template == GIVEN
    assert chat_format(make_tokenizer(template=OWN), None).template == OWN
    assert chat_format(make_tokenizer(), None).template == PLAIN_TEMPLATE


def test_a_template_can_be_a_file(make_tokenizer, tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(GIVEN, encoding="utf-8")
    chat = chat_format(make_tokenizer(), str(path))
    assert (chat.template, chat.source) == (GIVEN, "config")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("no/such/file.jinja", "neither a Jinja template nor a readable UTF-8 file"),
        ("x" * 5000, "neither a Jinja template nor a readable UTF-8 file"),
        ("{% for m in messages %}{{ m.content }}", "refused the conversation"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "assistant's words are missing"),
    ],
)
def test_a_template_that_cannot_work_is_a_configuration_error(make_tokenizer, template, message):
    with pytest.raises(InvalidConfig, match=message):
        chat_format(make_tokenizer(), template)


def test_a_tokenizers_own_broken_template_is_the_models_fault(make_tokenizer):
    with pytest.raises(InvalidModel, match=r"set model\.chat_template"):
        chat_format(make_tokenizer(template="{{ messages[7].content }}"), None)


def test_a_tokenizer_without_offsets_is_refused():
    with pytest.raises(InvalidModel, match="reports no character offsets"):
        chat_format(types.SimpleNamespace(is_fast=False), None)


def test_a_template_that_writes_the_date_writes_the_same_one_every_day(make_tokenizer):
    template = "{{ strftime_now('%d %b %Y') }} {% for m in messages %}{{ m.content }}</s>{% endfor %}"
    chat = chat_format(make_tokenizer(), template)
    assert render(chat, [Message("user", "x")]) == "26 Jul 2024 x</s>"


@pytest.mark.parametrize(
    "escape",
    [
        "{{ cycler.__init__.__globals__.os.mkdir('MARKER') }}",
        "{{ messages.__class__.__mro__[-1].__subclasses__() }}",
        "{% set f = 'a'.__class__.__base__.__subclasses__ %}{{ f() }}",
        "{{ raise_exception.__globals__['os'].mkdir('MARKER') }}",
        "{{ messages.append('MARKER') }}",
    ],
)
def test_a_models_own_template_cannot_leave_its_sandbox(make_tokenizer, tmp_path, escape):
    marker = tmp_path / "marker"
    with pytest.raises(InvalidModel, match=r"cannot be used: the chat template refused the conversation"):
        chat_format(make_tokenizer(template=escape.replace("MARKER", str(marker)) + OWN), None)
    assert not marker.exists()
