"""A configuration file with comments: it means what is set, before and after any default is uncommented."""

import re

import pytest
import yaml
from pydantic import BaseModel

from clusterucb_core.complaints import model_in
from clusterucb_core.config import RunConfig, config_of
from clusterucb_core.config_file import WIDTH, commented_config
from clusterucb_core.execution import ExecutionSettings

SHORTEST = {
    "pool": {"sources": [{"path": "data/*.jsonl"}]},
    "target": {"name": "gsm8k", "validation": "target.jsonl"},
    "model": {"base": "some/model"},
}
FULLER = {
    "pool": {"sources": [{"path": "a: b #c.jsonl"}, {"path": "d.csv", "name": "no"}], "max_samples": 7},
    "targets": [{"name": "x", "validation": "x.jsonl"}, {"name": "y", "validation": "y.jsonl", "test": "z"}],
    "model": {"base": "$MODELS/é", "max_length": 512, "lora": {"r": 4, "target_modules": ["c_attn"]}},
    "mode": "static",
    "warmup": {"learning_rate": 1e-05},
    "selection": {"policy": "ucb_beta", "proxy_model": None},
    "evaluate": {"tasks": ["target"], "baselines": []},
    "execution": {"workers": 2, "device": "cpu"},
}
DEFAULT = re.compile(r"^( *(?:- )?)#(?=\S)")


def meaning(text, tmp_path):
    return config_of(yaml.safe_load(text), tmp_path / "run.yaml", variables={"MODELS": "/models"})


def settings_of(kind: type[BaseModel]):
    """Yield each setting below a model with its field, sections before what they hold."""
    for name, field in kind.model_fields.items():
        yield name, field
        section = model_in(field.annotation)
        if section is not None:
            yield from settings_of(section)


@pytest.fixture(params=[SHORTEST, FULLER], ids=["shortest", "fuller"])
def tree(request):
    return request.param


@pytest.fixture
def text(tree):
    return commented_config(tree, origin="Written by a test.")


def test_the_file_means_what_is_set(tree, text, tmp_path):
    assert meaning(text, tmp_path) == meaning(yaml.safe_dump(tree), tmp_path)


def test_to_uncomment_every_default_changes_nothing(text, tmp_path):
    every = "".join(DEFAULT.sub(r"\1", line) for line in text.splitlines(keepends=True))
    assert every != text
    assert meaning(every, tmp_path) == meaning(text, tmp_path)


def test_to_uncomment_one_default_changes_nothing(text, tmp_path):
    lines, wanted = text.splitlines(), meaning(text, tmp_path)
    places = [number for number, line in enumerate(lines) if DEFAULT.match(line)]
    assert len(places) > 40
    for number in places:
        one = [*lines[:number], DEFAULT.sub(r"\1", lines[number]), *lines[number + 1 :]]
        assert meaning("\n".join(one), tmp_path) == wanted, lines[number]


def test_uncommented_defaults_name_every_setting_there_is(tmp_path):
    text = commented_config(SHORTEST, origin="Written by a test.")
    every = "".join(DEFAULT.sub(r"\1", line) for line in text.splitlines(keepends=True))
    config, execution = meaning(text, tmp_path)
    found = yaml.safe_load(every)
    assert found.pop("execution") == execution.model_dump(mode="json")
    named = config.model_dump(mode="json") | {key: found[key] for key in ("pool", "target", "model")}
    assert found == named
    assert set(found["pool"]["sources"][0]) == {"path", "format", "name"}
    assert set(found["target"]) == {"name", "validation", "test"}


def test_every_setting_is_described_in_the_words_of_its_model():
    words = " ".join(re.sub(r"(?m)^ *# ?", "", commented_config(SHORTEST, origin="x")).split())
    for kind in (RunConfig, ExecutionSettings):
        for name, field in settings_of(kind):
            if field.description is not None:
                assert " ".join(field.description.split()) in words, name


def test_every_setting_has_a_description_or_a_section_that_has_one():
    for kind in (RunConfig, ExecutionSettings):
        for name, field in settings_of(kind):
            section = model_in(field.annotation)
            assert field.description or (section is not None and section.__doc__), name


@pytest.mark.parametrize(
    ("line", "before"),
    [
        ("  #batch_size: auto", "A number, or auto."),
        ("  #baselines: [zero_shot, random]", "Any of zero_shot, random, full."),
        ("  #policy: linucb", "One of ucb_beta, ucb1,"),
        ("#mode: dynamic", "dynamic: select again before each epoch. static: select once."),
    ],
)
def test_choices_that_a_description_leaves_out_are_named(line, before):
    lines = commented_config(SHORTEST, origin="x").splitlines()
    at = len(lines) - 1 - lines[::-1].index(line)
    comment = " ".join(text.strip(" #") for text in lines[at - 4 : at])
    assert before in comment


def test_comments_are_of_a_readable_width(text):
    assert max(len(line) for line in text.splitlines() if line.lstrip().startswith("# ")) <= WIDTH
    assert text.startswith("# Written by a test.\n")
