import time

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.yaml_text import MAX_CHARS, parse_yaml

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 2024-13-45", "a value cannot be read (month must be in 1..12); put it in quotes"),
        ("seed: " + "9" * 5000, "line 1: a number of 5000 characters; no setting takes such a one"),
        ("seed: 1" + ":1" * 3000, "a number of 6001 characters"),
        ("seed: !!int ''", "a value cannot be read"),
        ("seed: !!bool maybe", "a value cannot be read"),
        ("seed: 2001-12-14t21:59:43.10-99:99", "a value cannot be read"),
        ("a: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("seed: 1\npool: {}\nseed: 2", "line 3: the key 'seed' is there twice"),
        ("pool: {a: 1, a: 2}", "line 1: the key 'a' is there twice"),
        ("2020-01-01: x", "the key '2020-01-01' is no text; put it in quotes"),
        ("? [a, b]\n: x", "is no text"),
        ("&a [*a]", "a value holds itself"),
        ("a: &a {b: *a}", "a value holds itself"),
        (LAUGHS, "more than 100000 values with all aliases written out"),
        ("#" * (MAX_CHARS + 1), "more than 1000000 characters"),
        ("a: !!python/object/apply:os.system [echo]", "no valid YAML"),
        ("a: \x00", "no valid YAML"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_configuration_is_refused_with_a_sentence(text: str, message: str) -> None:
    began = time.process_time()
    with pytest.raises(InvalidConfig) as caught:
        parse_yaml(text, where="run.yaml")
    assert str(caught.value).startswith("run.yaml")
    assert message in str(caught.value)
    assert time.process_time() - began < 5


def test_anchors_and_merges_that_stay_small_are_written_out() -> None:
    text = "base: &base {r: 8, alpha: 16}\nlora: {<<: *base, r: 4}\nlist: [*base, *base]"
    assert parse_yaml(text, where="x") == {
        "base": {"r": 8, "alpha": 16},
        "lora": {"r": 4, "alpha": 16},
        "list": [{"r": 8, "alpha": 16}] * 2,
    }
    assert parse_yaml("", where="x") is None


TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@given(tree=TREES)
def test_whatever_yaml_writes_of_plain_values_is_read_back(tree: object) -> None:
    assert parse_yaml(yaml.safe_dump(tree), where="x") == tree
