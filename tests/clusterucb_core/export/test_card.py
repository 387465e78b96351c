from dataclasses import replace

import pytest
import yaml

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.export.card import BEGIN, END, CardFacts, card_text, is_ours
from clusterucb_core.export.options import ExportOptions
from clusterucb_core.store import open_catalog, publish_selections, selection_summary

AUDITED = {
    "estimated_recall": 0.8,
    "recall_low": 0.64,
    "recall_high": 0.99,
    "estimated_captured": 0.9,
    "captured_low": 0.75,
    "captured_high": 1.0,
    "config": {"model": {"base": "/folders/of/someone/tiny-llama"}},
    "config_digest": "abcdef",
}


@pytest.fixture
def facts(catalog, new_selection) -> CardFacts:
    """Of a version with a certificate."""
    path = catalog([{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}])
    with open_catalog(path) as con:
        (version,) = publish_selections(
            con, [new_selection(["id9"], selection_key="two", run_id="two", **AUDITED)]
        )
        summary = selection_summary(con, version)
    counts = {"gsm8k": 2, "a|b\n## heading": 1}
    return CardFacts("selected", summary, pool_samples=2_002, counts=counts, options=ExportOptions())


def header_of(card: str) -> dict:
    _, header, _ = card.split("---\n", 2)
    return yaml.safe_load(header)


def test_the_header_names_size_and_rows(facts):
    header = header_of(card_text(facts, None))
    assert header["pretty_name"] == "selected"
    assert header["size_categories"] == ["n<1K"]
    (config,) = header["configs"]
    assert config["data_files"] == [{"split": "train", "path": "data/train-00000-of-00001.parquet"}]
    assert "license" not in header


@pytest.mark.parametrize(
    ("n", "wanted"),
    [(999, "n<1K"), (1_000, "1K<n<10K"), (10_000, "10K<n<100K"), (999_999, "100K<n<1M"), (2e6, "1M<n<10M")],
)
def test_the_size_is_that_of_the_hub(facts, n, wanted):
    card = card_text(replace(facts, counts={"a": int(n)}), None)
    assert header_of(card)["size_categories"] == [wanted]


def test_the_body_tells_what_was_selected_from_what_and_how_well(facts):
    card = card_text(facts, None)
    assert "3 conversations to fine-tune on, selected for the target gsm8k out of 2,002" in card
    assert "| selection version | 2, of 20" in card
    assert "| pool version | 1 (2,002 samples) |" in card
    assert "| policy | full, static mode, period 1 |" in card
    assert "recall of the true top 1 between 0.64 and 0.99 (95 %), estimate 0.80" in card
    assert "captured influence between 0.75 and 1.00" in card
    assert "| configuration | abcdef |" in card
    assert "| gsm8k | 2 |" in card


def test_no_folder_of_whoever_selected_is_told(facts):
    assert "| model | tiny-llama |" in card_text(facts, None)
    assert "someone" not in card_text(facts, None)


def test_a_name_cannot_leave_its_cell(facts):
    assert "| a\\|b ## heading | 1 |" in card_text(facts, None)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<img src=x onerror=alert(1)>", "&lt;img src=x onerror=alert(1)&gt;"),
        ("[mine](javascript:alert(1))", "\\[mine\\](javascript:alert(1))"),
        ("![](http://host/seen.png)", "!\\[\\](http://host/seen.png)"),
        ("a\\|b", "a\\\\\\|b"),
        ("<!-- clusterucb: end -->", "&lt;!-- clusterucb: end --&gt;"),
        ("a\x1b[2J\u202eb", "a \\[2J b"),
    ],
)
def test_a_name_is_shown_as_text_and_nothing_else(facts, name, shown):
    assert f"| {shown} | 1 |" in card_text(replace(facts, counts={name: 1}), None)


def test_columns_and_order_follow_the_options(facts):
    plain = card_text(facts, None)
    full = card_text(
        replace(facts, options=ExportOptions(provenance=True, weights=True, order="random")), None
    )
    assert [line for line in plain.splitlines() if line.startswith("| `")] == [
        "| `messages` | the conversation: a list of `role` (system, user, assistant) and `content` |"
    ]
    assert sum(line.startswith("| `") for line in full.splitlines()) == 9
    assert "Their order: by rank" in plain
    assert "Their order: at random" in full


def test_what_others_wrote_into_a_card_stays(facts):
    card = card_text(facts, None)
    mine = card.replace("pretty_name: selected", "pretty_name: Mine\nlicense: mit\nlanguage: [en]")
    mine = mine.replace("# selected", "# Mine\n\nMy words: --- and \\1.") + "\nMore words.\n"
    renewed = card_text(replace(facts, counts={"gsm8k": 5_000}), mine)
    header = header_of(renewed)
    assert (header["license"], header["language"], header["pretty_name"]) == ("mit", ["en"], "Mine")
    assert header["size_categories"] == ["1K<n<10K"]
    assert "# Mine\n\nMy words: --- and \\1.\n" in renewed
    assert renewed.endswith("\nMore words.\n")
    assert "5,000 conversations" in renewed
    assert "3 conversations" not in renewed
    assert card_text(replace(facts, counts={"gsm8k": 5_000}), renewed) == renewed


def test_a_card_without_a_header_gets_one(facts):
    renewed = card_text(facts, f"# Mine\n{BEGIN}\n{END}\n")
    assert header_of(renewed)["size_categories"] == ["n<1K"]
    assert "# Mine\n" in renewed


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("# A card of another\n", "was not written by an export, or its marks"),
        (f"---\na: [\n---\n{BEGIN}{END}", "is no YAML"),
        (f"---\n- a\n---\n{BEGIN}{END}", "is no YAML mapping"),
    ],
)
def test_a_card_that_cannot_be_merged_is_refused(facts, old, message):
    with pytest.raises(InvalidConfig, match=message):
        card_text(facts, old)


def test_a_card_is_ours_by_its_marks():
    assert is_ours(f"x {BEGIN} y {END}")
    assert not is_ours(f"x {END} y {BEGIN}")
