import json
from dataclasses import replace

import pytest


@pytest.fixture
def draft(new_draft):
    """Make a draft for one of several targets of a run."""

    def make(run_id, ids, target):
        return replace(new_draft(run_id, ids), target=target, selection_key=f"{run_id}/{target}")

    return make


def test_list_without_a_catalog_says_so_and_succeeds(call, home):
    outcome = call("list")
    assert outcome.code == 0
    assert outcome.out.startswith("no selections yet")
    assert not home.exists()
    assert json.loads(call("list", "--json").out) == []


@pytest.mark.parametrize("arguments", [["show"], ["diff", "1", "2"], ["export", "1", "out.jsonl"]])
def test_without_a_catalog_the_others_fail(call, arguments):
    outcome = call(*arguments)
    assert outcome.code == 1
    assert "run `clusterucb run` first" in outcome.err


def test_list_has_one_line_a_version(call, catalog):
    lines = call("list").out.splitlines()
    assert [line.split()[0] for line in lines] == ["version", "1", "2"]
    assert [row["selection_version"] for row in json.loads(call("list", "--json").out)] == [1, 2]


def test_show_means_the_latest_version_without_a_number(call, catalog):
    for arguments in (["show", "--json"], ["show", "latest", "--json"], ["show", "2", "--json"]):
        assert json.loads(call(*arguments).out)["selection"]["selection_version"] == 2


@pytest.mark.parametrize("arguments", [["show", "--json"], ["export", "latest", "out.jsonl", "--json"]])
def test_the_latest_of_several_targets_is_the_first_ones_and_the_others_are_named(
    call, catalog, draft, arguments, tmp_path, monkeypatch
):
    from clusterucb_core.store import list_selections, open_catalog, publish_selections

    monkeypatch.chdir(tmp_path)
    with open_catalog(catalog) as con:
        publish_selections(
            con, [draft("both", ["s01", "s02", "s03"], target=name) for name in ("sums", "talk")]
        )
        assert len(list_selections(con)) == 4
    outcome = call(*arguments)
    found = json.loads(outcome.out)
    assert (found["version"] if "version" in found else found["selection"]["selection_version"]) == 3
    assert "version 3 (sums) is taken; the others are 4 (talk)" in outcome.err


def test_show_tells_cost_sources_evaluations_and_the_first_samples(call, catalog):
    out = call("show", "2").out
    assert "full selection, to compare" in out
    assert out.index("sums  ") < out.index("talk  ")
    assert "100.0 %" in out
    assert "33.3 %" in out
    assert "1.2500 [1.0000, 1.5000]" in out
    assert "question 3" in out


def test_show_tells_the_differences_to_the_baselines_and_which_is_better(call, catalog):
    lines = [" ".join(line.split()) for line in call("show", "2").out.splitlines()]
    assert "sums loss zero_shot selection -1.2500 [-1.5000, -1.0000] 10 1" in lines
    assert "sums loss random – -0.1000 [-0.3000, 0.1000] 10 3" in lines, "an interval with 0 tells nothing"
    assert "selection less" not in call("show", "1").out
    shown = json.loads(call("show", "--json").out)["comparisons"]
    assert [(row["baseline"], row["n_seeds"]) for row in shown] == [("random", 3), ("zero_shot", 1)]


@pytest.mark.parametrize(
    ("ends", "higher", "better"),
    [
        ((0.2, 0.1, 0.3), True, "selection"), ((0.2, 0.1, 0.3), False, "full"),
        ((-0.2, -0.3, -0.1), True, "full"), ((0.2, 0.1, 0.3), None, None),
        ((0.2, -0.1, 0.3), True, None), ((0.2, None, None), True, None),
    ],
)  # fmt: skip
def test_the_better_side_follows_sign_and_direction(ends, higher, better, capsys):
    import polars as pl

    from flows.commands.selection_tables import print_comparisons

    row = dict(zip(("difference", "low", "high"), ends, strict=True)) | {"higher_is_better": higher}
    named = {"task": "t", "metric": "m", "baseline": "full", "n": 5, "n_seeds": 1}
    print_comparisons(pl.DataFrame([named | row], strict=False))
    cells = capsys.readouterr().out.splitlines()[-1].split()
    assert cells[3] == (better or "–")


def test_show_tells_what_an_early_stop_left_of_the_budget(call, catalog):
    facts = dict(line.split("  ", 1) for line in call("show", "2").out.splitlines()[:12])
    assert (facts["budget"].strip(), facts["unspent"].strip()) == ("6", "2")


def test_show_warns_of_a_target_that_does_not_separate_the_pool(call, catalog):
    checked, unchecked = call("show", "2").out, call("show", "1").out
    assert "warning: target 'sums': it does not rank the pool better than its own words" in checked
    assert "p = 0.4" in checked
    assert "warning" not in unchecked
    assert "not checked" in unchecked


def test_hostile_text_is_shown_as_text(call, catalog):
    out = call("show", "1").out
    assert "[bold red]not markup[/bold red] :smile: [2Jcleared gnp" in out
    assert "\x1b" not in out


def test_show_as_json_holds_messages_and_baselines(call, catalog):
    shown = json.loads(call("show", "--json").out)
    assert [sample["sample_id"] for sample in shown["samples"]] == ["s02", "s03", "s00"]
    assert shown["samples"][0]["messages"][0] == {"role": "user", "content": "question 2"}
    assert [row["subject"] for row in shown["evaluations"]] == ["selection", "zero_shot"]
    assert shown["selection"]["cost"]["full"]["gradient_evaluations"] == 36


@pytest.mark.parametrize("arguments", [["show", "7"], ["diff", "1", "7"], ["export", "7", "out.jsonl"]])
def test_an_unknown_version_fails_and_the_known_ones_are_listed(call, catalog, arguments):
    outcome = call(*arguments)
    assert outcome.code == 1
    assert "no selection version 7" in outcome.err
    assert "1 (sums), 2 (sums)" in outcome.err


@pytest.mark.parametrize("text", ["two", "-1", "1.0", "²"])
def test_a_version_that_is_no_number_is_bad_usage(call, catalog, text):
    outcome = call("show", "--", text)
    assert outcome.code == 2
    assert "give a number" in outcome.err


def test_diff_counts_and_names_the_changes(call, catalog):
    out = call("diff", "1", "latest").out
    assert out.startswith("from version 1 to version 2: 1 added, 1 removed, 2 kept")
    changed = {line.split()[1]: line.split()[0] for line in out.splitlines()[3:]}
    assert changed == {"s03": "added", "s01": "removed"}
    shown = json.loads(call("diff", "1", "2", "--json").out)
    assert (shown["added"], shown["removed"], shown["kept"], len(shown["samples"])) == (1, 1, 2, 4)


def test_diff_of_a_version_with_itself_has_no_table(call, catalog):
    assert call("diff", "2", "2").out == "from version 2 to version 2: 0 added, 0 removed, 3 kept\n"
