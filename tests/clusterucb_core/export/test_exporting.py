import json
import shutil
from pathlib import Path

import polars as pl
import pytest

from clusterucb_core.artifacts import file_digest
from clusterucb_core.errors import InvalidConfig, MissingArtifact, UnknownVersion
from clusterucb_core.export import ExportOptions, export_selection, renew_export
from clusterucb_core.export.sample_files import sample_file
from clusterucb_core.store import (
    exports_holding,
    open_catalog,
    publish_selections,
    withdraw_samples,
)
from clusterucb_core.store.statements import run

HOSTILE = 'quote " and \' end\nnext line\r\n\t back\\slash \u2028 漢字 🙂 {"a": [1]}, "b"'


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    spoken = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


SUFFIXES = {"jsonl": ".jsonl", "parquet": ".parquet", "alpaca": ".json", "sharegpt": ".json", "datasets": ""}
EVERYTHING = ExportOptions(order="random", seed=3, weights=True, provenance=True, trainers=("llama-factory",))


def tree(folder: Path) -> dict[Path, bytes]:
    """Return the content of every file below a folder."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


SINGLE = turns("2 + 2?", "4")
MULTI = turns("2 + 2?", "4", "and + 1?", "5", system="Be brief.")


def test_jsonl_has_one_conversation_a_line_in_rank_order(catalog, tmp_path):
    out = tmp_path / "deep" / "folder" / "out.jsonl"
    result = export_selection(catalog(MULTI, SINGLE), 1, out)
    lines = out.read_text(encoding="utf-8").split("\n")
    assert [json.loads(line) for line in lines[:-1]] == [{"messages": MULTI}, {"messages": SINGLE}]
    assert lines[-1] == ""
    assert (result.path, result.n, result.format, result.version) == (str(out), 2, "jsonl", 1)


def test_jsonl_is_read_by_polars(catalog, tmp_path):
    export_selection(catalog(SINGLE, turns(HOSTILE, HOSTILE)), 1, tmp_path / "out.jsonl")
    found = pl.read_ndjson(tmp_path / "out.jsonl")
    assert found["messages"].to_list() == [SINGLE, turns(HOSTILE, HOSTILE)]


def test_parquet_keeps_rank_score_and_structure(catalog, tmp_path):
    export_selection(catalog(MULTI, SINGLE), 1, tmp_path / "out.parquet", format="parquet")
    found = pl.read_parquet(tmp_path / "out.parquet")
    assert found.columns == ["rank", "sample_id", "influence", "cluster", "source", "messages"]
    assert found["messages"].to_list() == [MULTI, SINGLE]
    assert found.drop("messages").rows() == [(1, "id9", 1.0, 1, "gsm8k"), (2, "id8", 0.5, 2, "gsm8k")]


def test_alpaca_has_history_and_system_only_where_there_are_any(catalog, tmp_path):
    export_selection(catalog(MULTI, SINGLE), 1, tmp_path / "out.json", format="alpaca")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == [
        {
            "instruction": "and + 1?",
            "input": "",
            "output": "5",
            "system": "Be brief.",
            "history": [["2 + 2?", "4"]],
        },
        {"instruction": "2 + 2?", "input": "", "output": "4"},
    ]


def test_sharegpt_has_human_and_gpt_by_turns(catalog, tmp_path):
    export_selection(catalog(MULTI, SINGLE), 1, tmp_path / "out.json", format="sharegpt")
    first, second = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert first["system"] == "Be brief."
    assert [turn["from"] for turn in first["conversations"]] == ["human", "gpt", "human", "gpt"]
    assert second == {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}


def test_turns_that_do_not_alternate_are_brought_into_form(catalog, tmp_path):
    odd = [
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": "one"},
        {"role": "user", "content": "two"},
        {"role": "system", "content": "late"},
        {"role": "assistant", "content": "three"},
        {"role": "user", "content": "unanswered"},
    ]
    export_selection(catalog(odd), 1, tmp_path / "out.json", format="alpaca")
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8")) == [
        {
            "instruction": "one\n\ntwo",
            "input": "",
            "output": "three",
            "system": "late",
            "history": [["", "hello"]],
        }
    ]


@pytest.mark.parametrize("shape", ["alpaca", "sharegpt", "jsonl", "parquet"])
def test_a_hostile_text_survives_every_format(catalog, tmp_path, shape):
    out = tmp_path / "out"
    export_selection(catalog(turns(HOSTILE, "fine")), 1, out, format=shape)
    if shape == "parquet":
        text = pl.read_parquet(out)["messages"][0][0]["content"]
    else:
        row = json.loads(out.read_text(encoding="utf-8"))
        row = row if shape == "jsonl" else row[0]
        first = row.get("messages", row.get("conversations", [{}]))[0]
        text = row.get("instruction", first.get("content", first.get("value")))
    assert text == HOSTILE


def test_no_version_means_the_latest(catalog, new_selection, tmp_path):
    path = catalog(MULTI, SINGLE)
    with open_catalog(path) as con:
        publish_selections(con, [new_selection(["id8"], selection_key="two", run_id="two")])
    result = export_selection(path, None, tmp_path / "out.jsonl")
    assert (result.version, result.n) == (2, 1)
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8")) == {"messages": SINGLE}


@pytest.mark.parametrize("shape", ["alpaca", "sharegpt", "jsonl", "parquet"])
def test_an_empty_selection_gives_an_empty_file(catalog, new_selection, tmp_path, shape):
    path = catalog(SINGLE)
    with open_catalog(path) as con:
        publish_selections(
            con, [new_selection([], selection_key="none", run_id="none", samples=pl.DataFrame())]
        )
    out = tmp_path / "out"
    assert export_selection(path, 2, out, format=shape).n == 0
    if shape == "parquet":
        assert pl.read_parquet(out).is_empty()
    else:
        assert json.loads(out.read_text(encoding="utf-8") or "[]") == []


def test_erased_samples_are_left_out_with_a_warning(catalog, tmp_path, caplog):
    path = catalog(MULTI, SINGLE)
    with open_catalog(path) as con:
        run(con, "UPDATE samples SET messages = NULL WHERE sample_id = 'id9'")
    result = export_selection(path, 1, tmp_path / "out.parquet", format="parquet")
    assert result.n == 1
    assert pl.read_parquet(tmp_path / "out.parquet")["rank"].to_list() == [2]
    assert "1 erased samples of version 1" in caplog.text


def test_withdrawn_samples_are_left_out_with_a_warning(catalog, tmp_path, caplog):
    path = catalog(MULTI, SINGLE)
    with open_catalog(path) as con:
        withdraw_samples(con, ["id8"], reason="asked for")
    assert export_selection(path, 1, tmp_path / "out.parquet", format="parquet").n == 1
    assert pl.read_parquet(tmp_path / "out.parquet")["sample_id"].to_list() == ["id9"]
    assert "1 withdrawn samples of version 1" in caplog.text


def test_an_export_is_recorded_under_its_absolute_path(catalog, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = catalog(SINGLE)
    export_selection(path, 1, Path("out.json"), format="alpaca")
    with open_catalog(path, read_only=True) as con:
        (record,) = exports_holding(con, ["id9"])
    assert (record.path, record.selection_version, record.format) == (str(tmp_path / "out.json"), 1, "alpaca")
    assert record.digest == file_digest(tmp_path / "out.json")


@pytest.mark.parametrize("options", [ExportOptions(), EVERYTHING])
@pytest.mark.parametrize("shape", ["jsonl", "parquet", "alpaca", "sharegpt", "datasets"])
def test_a_renewed_export_lacks_what_was_erased_since(catalog, tmp_path, shape, options):
    path = catalog(MULTI, SINGLE, turns("3 + 3?", "6"))
    out = tmp_path / "exports" / f"out{SUFFIXES[shape]}"
    export_selection(path, 1, out, format=shape, options=options)
    before = tree(out.parent)
    with open_catalog(path) as con:
        run(con, "UPDATE samples SET messages = NULL WHERE sample_id = 'id9'")
        (record,) = exports_holding(con, ["id9"])
    assert [renew_export(path, record) for _ in range(2)] == ["rewritten"] * 2
    new = tmp_path / "new" / out.name
    export_selection(path, 1, new, format=shape, options=options)
    assert tree(out.parent) == tree(new.parent)
    assert tree(out.parent).keys() == before.keys()
    assert sample_file(out, shape).read_bytes() != before[sample_file(out, shape).relative_to(out.parent)]


def test_a_changed_export_is_not_renewed_and_a_lost_one_is_not_made_again(catalog, tmp_path):
    path = catalog(MULTI, SINGLE)
    export_selection(path, 1, tmp_path / "out")
    with open_catalog(path) as con:
        (record,) = exports_holding(con, ["id9"])
    (tmp_path / "out").write_text("mine")
    assert renew_export(path, record) == "changed"
    assert (tmp_path / "out").read_text() == "mine"
    (tmp_path / "out").unlink()
    assert renew_export(path, record) == "gone"
    assert not [item for item in tmp_path.iterdir() if item.name == "out" or item.suffix == ".tmp"]


def test_an_old_file_is_replaced_and_nothing_else_left(catalog, tmp_path):
    out = tmp_path / "exports" / "out.jsonl"
    out.parent.mkdir()
    out.write_text("old")
    export_selection(catalog(SINGLE), 1, out)
    assert [path.name for path in out.parent.iterdir()] == ["out.jsonl"]
    assert "old" not in out.read_text(encoding="utf-8")


def test_a_failed_export_keeps_the_old_file(catalog, tmp_path, monkeypatch):
    out = tmp_path / "exports" / "out.jsonl"
    out.parent.mkdir()
    out.write_text("old")

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("clusterucb_core.export.sample_files._write_lines", fail)
    with pytest.raises(OSError, match="disk full"):
        export_selection(catalog(SINGLE), 1, out)
    assert [(path.name, path.read_text()) for path in out.parent.iterdir()] == [("out.jsonl", "old")]


def test_an_unknown_format_lists_the_known(catalog, tmp_path):
    with pytest.raises(
        InvalidConfig, match="'csv' is unknown; known formats: jsonl, parquet, alpaca, sharegpt, datasets"
    ):
        export_selection(catalog(SINGLE), 1, tmp_path / "out.csv", format="csv")
    assert not (tmp_path / "out.csv").exists()


def test_a_folder_is_not_overwritten(catalog, tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidConfig, match="is a folder; name the file to write"):
        export_selection(catalog(SINGLE), 1, tmp_path / "folder")


def test_an_unknown_version_and_an_absent_catalog_say_so(catalog, tmp_path):
    with pytest.raises(UnknownVersion, match=r"no selection version 3; known versions: 1 \(gsm8k\)"):
        export_selection(catalog(SINGLE), 3, tmp_path / "new" / "out.jsonl")
    with pytest.raises(MissingArtifact, match="no catalog at"):
        export_selection(tmp_path / "absent.duckdb", 1, tmp_path / "new" / "out.jsonl")
    assert not (tmp_path / "new").exists()


PROVENANCE = {
    "sample_id": "id9",
    "source": "gsm8k",
    "rank": 1,
    "influence": 1.0,
    "cluster": 1,
    "selection_version": 1,
    "pool_version": 1,
}


@pytest.mark.parametrize("shape", ["jsonl", "alpaca", "sharegpt", "parquet", "datasets"])
def test_provenance_and_weights_are_columns_beside_the_conversation(catalog, tmp_path, shape):
    out = tmp_path / f"out{SUFFIXES[shape]}"
    options = ExportOptions(provenance=True, weights=True)
    export_selection(catalog(MULTI, SINGLE), 1, out, format=shape, options=options)
    if shape in ("parquet", "datasets"):
        row = pl.read_parquet(sample_file(out, shape)).row(0, named=True)
    else:
        text = out.read_text(encoding="utf-8")
        row = json.loads(text.splitlines()[0]) if shape == "jsonl" else json.loads(text)[0]
    assert {name: row[name] for name in PROVENANCE} == PROVENANCE
    assert row["weight"] == pytest.approx(1 / 0.75)


def test_a_row_has_nothing_but_messages_unless_asked(catalog, tmp_path):
    path = catalog(SINGLE)
    export_selection(path, 1, tmp_path / "out.jsonl", options=ExportOptions(order="source"))
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8")) == {"messages": SINGLE}
    export_selection(path, 1, tmp_path / "out", format="datasets")
    assert pl.read_parquet(tmp_path / "out" / "data" / "*.parquet").columns == ["messages"]


def test_a_datasets_folder_holds_rows_and_a_card_and_is_recorded_by_its_rows(catalog, tmp_path):
    path, out = catalog(MULTI, SINGLE), tmp_path / "exports" / "out"
    result = export_selection(path, 1, out, format="datasets")
    assert sorted(map(str, tree(out))) == ["README.md", "data/train-00000-of-00001.parquet"]
    assert result.files == (str(out / "README.md"),)
    with open_catalog(path, read_only=True) as con:
        (record,) = exports_holding(con, ["id9"])
    assert (record.path, record.format) == (str(out), "datasets")
    assert record.digest == file_digest(sample_file(out, "datasets"))


def test_a_folder_of_an_earlier_export_is_written_again_with_others_words_in_its_card(catalog, tmp_path):
    path, out = catalog(MULTI, SINGLE), tmp_path / "out"
    export_selection(path, 1, out, format="datasets")
    card = out / "README.md"
    card.write_text(card.read_text(encoding="utf-8").replace("pretty_name", "license: mit\npretty_name"))
    (out / "notes.txt").write_text("mine")
    with open_catalog(path) as con:
        withdraw_samples(con, ["id9"], reason="asked for")
    assert export_selection(path, 1, out, format="datasets").n == 1
    assert "license: mit" in card.read_text(encoding="utf-8")
    assert "1 conversations to fine-tune on" in card.read_text(encoding="utf-8")
    assert (out / "notes.txt").read_text() == "mine"


def test_a_clone_with_nothing_to_see_is_written_into(catalog, tmp_path):
    (tmp_path / "out" / ".git").mkdir(parents=True)
    (tmp_path / "out" / ".gitattributes").write_text("")
    assert export_selection(catalog(SINGLE), 1, tmp_path / "out", format="datasets").n == 1


@pytest.mark.parametrize("name", ["README.md", "data.csv"])
def test_a_folder_of_others_is_not_written_into(catalog, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(InvalidConfig, match="holds files that no export wrote"):
        export_selection(catalog(SINGLE), 1, out, format="datasets")
    assert {str(path): content for path, content in tree(out).items()} == {name: b"mine"}


def test_a_folder_cannot_take_the_place_of_a_file(catalog, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InvalidConfig, match="is a file; format datasets writes a folder"):
        export_selection(catalog(SINGLE), 1, tmp_path / "out", format="datasets")


@pytest.mark.parametrize("shape", ["jsonl", "datasets"])
def test_what_cannot_be_described_is_not_written(catalog, tmp_path, shape):
    path, out = catalog(SINGLE), tmp_path / "exports" / f"out{SUFFIXES[shape]}"
    out.parent.mkdir()
    (out.parent / "dataset_info.json").write_text("{broken")
    with pytest.raises(InvalidConfig, match="no JSON"):
        export_selection(path, 1, out, format=shape, options=ExportOptions(trainers=("llama-factory",)))
    assert [item.name for item in out.parent.iterdir()] == ["dataset_info.json"]
    with open_catalog(path, read_only=True) as con:
        assert exports_holding(con, ["id9"]) == []


def test_an_export_cannot_be_its_own_description(catalog, tmp_path):
    out = tmp_path / "exports" / "dataset_info.json"
    with pytest.raises(InvalidConfig, match="cannot be it"):
        export_selection(catalog(SINGLE), 1, out, options=ExportOptions(trainers=("llama-factory",)))


def renewed(path: Path) -> str:
    """Erase the first sample and write the only export again."""
    with open_catalog(path) as con:
        run(con, "UPDATE samples SET messages = NULL WHERE sample_id = 'id9'")
        (record,) = exports_holding(con, ["id9"])
    return renew_export(path, record)


def test_a_column_that_left_with_a_sample_is_not_described_any_more(catalog, tmp_path):
    path, info = catalog(MULTI, SINGLE), tmp_path / "dataset_info.json"
    info.write_text('{"theirs": {"file_name": "x.json"}}')
    options = ExportOptions(trainers=("llama-factory",))
    export_selection(path, 1, tmp_path / "out.json", format="sharegpt", options=options)
    assert json.loads(info.read_text())["out"]["columns"]["system"] == "system"
    assert renewed(path) == "rewritten"
    assert json.loads(info.read_text()) == {
        "theirs": {"file_name": "x.json"},
        "out": {
            "file_name": "out.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations"},
        },
    }


@pytest.mark.parametrize("kept", ['{"theirs": {"file_name": "x.json"}}', "{broken", None])
def test_a_description_that_others_took_over_stays_while_the_samples_go(catalog, tmp_path, kept, caplog):
    path, info = catalog(MULTI, SINGLE), tmp_path / "dataset_info.json"
    options = ExportOptions(trainers=("llama-factory",))
    export_selection(path, 1, tmp_path / "out.jsonl", options=options)
    if kept is None:
        info.unlink()
    else:
        info.write_text(kept)
    assert renewed(path) == "rewritten"
    assert (info.read_text() if info.is_file() else None) == kept
    assert json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8")) == {"messages": SINGLE}
    assert ("is left as it is" in caplog.text) is (kept == "{broken")


def test_an_edited_card_hinders_no_erasure(catalog, tmp_path, caplog):
    path, out = catalog(MULTI, SINGLE), tmp_path / "out"
    export_selection(path, 1, out, format="datasets")
    (out / "README.md").write_text("all mine")
    assert renewed(path) == "rewritten"
    assert (out / "README.md").read_text() == "all mine"
    assert len(pl.read_parquet(sample_file(out, "datasets"))) == 1
    assert "README.md is left as it is" in caplog.text


def test_changed_rows_of_a_folder_are_left_and_a_lost_folder_is_not_made_again(catalog, tmp_path):
    path, out = catalog(MULTI, SINGLE), tmp_path / "out"
    export_selection(path, 1, out, format="datasets")
    sample_file(out, "datasets").write_bytes(b"mine")
    assert renewed(path) == "changed"
    assert sample_file(out, "datasets").read_bytes() == b"mine"
    shutil.rmtree(out)
    assert renewed(path) == "gone"
    assert not out.exists()
