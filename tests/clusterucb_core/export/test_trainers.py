"""The descriptions for LLaMA-Factory and Axolotl, read as the documentation of each says they are read."""

import json
from pathlib import Path

import polars as pl
import pytest
import yaml

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.export import ExportOptions, export_selection
from clusterucb_core.export.exchanges import Survey
from clusterucb_core.export.trainers import Described, axolotl_text, dataset_info, names_export


def turns(*texts: str, system: str | None = None) -> list[dict[str, str]]:
    roles = ("user", "assistant")
    spoken = [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


PLAIN = [turns("2 + 2?", "4"), turns("3 + 3?", "6")]
LONG = [*PLAIN, turns("2 + 2?", "4", "and + 1?", "5", system="Be brief.")]
PLACES = {
    "jsonl": "out.jsonl",
    "parquet": "out.parquet",
    "alpaca": "out.json",
    "sharegpt": "out.json",
    "datasets": "out",
}


def rows_of(path: Path) -> list[dict]:
    """Return rows that all have all columns, as `datasets` gives them."""
    if path.suffix == ".parquet":
        return pl.read_parquet(path).to_dicts()
    text = path.read_text(encoding="utf-8")
    rows = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    return [dict.fromkeys(key for row in rows for key in row) | row for row in rows]


def as_llama_factory(folder: Path, name: str) -> list[list[dict[str, str]]]:
    """Read by a description: of `columns` and `tags`, where they are there, what is not named is off."""
    entry = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))[name]
    columns = entry["columns"]
    tags = entry.get("tags", {"role_tag": "from", "content_tag": "value", "user_tag": "human"})
    rows = rows_of(folder / entry["file_name"])
    found = []
    for row in rows:
        system = row[columns["system"]] if "system" in columns else None
        if entry["formatting"] == "alpaca":
            earlier = (row[columns["history"]] or []) if "history" in columns else []
            last = ("\n".join(filter(None, (row[columns["prompt"]], row[columns["query"]]))), row["output"])
            spoken = [text for pair in [*earlier, last] for text in pair]
        else:
            messages = row[columns["messages"]]
            if messages[0][tags["role_tag"]] == tags.get("system_tag", "system"):
                system, *messages = messages[0][tags["content_tag"]], *messages[1:]
            speakers = [turn[tags["role_tag"]] == tags["user_tag"] for turn in messages]
            assert speakers == [True, False] * (len(messages) // 2)
            spoken = [turn[tags["content_tag"]] for turn in messages]
        found.append(turns(*spoken, system=system))
    return found


def as_axolotl(path: Path) -> list[list[dict[str, str]]]:
    """Read by the only entry of a configuration; a column `system` opens a conversation that has none."""
    (entry,) = yaml.safe_load(path.read_text(encoding="utf-8"))["datasets"]
    place = Path(entry["path"])
    if place.is_dir():
        assert entry["split"] == "train"
        place = place / "data" / "train-00000-of-00001.parquet"
    else:
        assert entry["ds_type"] == {".parquet": "parquet"}.get(place.suffix, "json")
    if entry["type"] == "alpaca":
        return [turns(row["instruction"], row["output"]) for row in rows_of(place)]
    assert entry["type"] == "chat_template"
    names = {"human": "user", "gpt": "assistant"}
    role, content = (entry["message_property_mappings"][key] for key in ("role", "content"))
    found = []
    for row in rows_of(place):
        read = [
            {"role": names.get(turn[role], turn[role]), "content": turn[content]}
            for turn in row[entry["field_messages"]]
        ]
        system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
        found.append(read if read[0]["role"] == "system" else system + read)
    return found


@pytest.mark.parametrize("conversations", [PLAIN, LONG])
@pytest.mark.parametrize("shape", PLACES)
def test_llama_factory_finds_the_conversations_by_the_description(catalog, tmp_path, shape, conversations):
    options = ExportOptions(trainers=("llama-factory",), provenance=True, weights=True)
    out = tmp_path / "exports" / PLACES[shape]
    result = export_selection(catalog(*conversations), 1, out, format=shape, options=options)
    assert str(out.with_name("dataset_info.json")) in result.files
    assert as_llama_factory(out.parent, "out") == conversations


@pytest.mark.parametrize("conversations", [PLAIN, LONG])
@pytest.mark.parametrize("shape", PLACES)
def test_axolotl_finds_the_conversations_by_the_snippet(catalog, tmp_path, shape, conversations):
    options = ExportOptions(trainers=("axolotl",), provenance=True, weights=True)
    out = tmp_path / "exports" / PLACES[shape]
    path = catalog(*conversations)
    if shape == "alpaca" and conversations is LONG:
        with pytest.raises(InvalidConfig, match=r"1 and 1 conversations have.*jsonl or sharegpt"):
            export_selection(path, 1, out, format=shape, options=options)
        assert not out.parent.exists() or not list(out.parent.iterdir())
        return
    export_selection(path, 1, out, format=shape, options=options)
    assert as_axolotl(out.with_name("out.axolotl.yaml")) == conversations


def described(name="out.jsonl", shape="jsonl", systems=0):
    return Described(Path("exports") / name, shape, Survey(systems, 0, 0))


def test_the_snippet_trains_on_the_assistant_alone_and_names_the_path_as_it_was_given():
    (entry,) = yaml.safe_load(axolotl_text(described()))["datasets"]
    assert entry["path"] == "exports/out.jsonl"
    assert (entry["roles_to_train"], entry["train_on_eos"]) == (["assistant"], "turn")


def test_other_entries_and_what_others_added_to_ours_stay():
    old = {
        "theirs": {"hf_hub_url": "x/y", "columns": {"prompt": "é"}},
        "out": {"file_name": "out.jsonl", "num_samples": 5, "columns": {"system": "system"}},
    }
    found = json.loads(dataset_info(described(), json.dumps(old)))
    assert list(found) == ["theirs", "out"]
    assert found["theirs"] == old["theirs"]
    assert found["out"]["num_samples"] == 5
    assert found["out"]["columns"] == {"messages": "messages"}


def test_a_repeat_changes_nothing():
    first = dataset_info(described(), None)
    assert dataset_info(described(), first) == first
    assert names_export(first, described())
    assert not names_export(first, described(name="other.jsonl"))


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ('{"out": {"file_name": "elsewhere.json"}}', r"has an entry 'out' for 'elsewhere.json'.*otherwise"),
        ('{"out": {"hf_hub_url": "x/y"}}', "has an entry 'out' for None"),
        ("{broken", "dataset_info.json is no JSON"),
        ("[]", "dataset_info.json is no JSON object"),
    ],
)
def test_a_file_that_the_entry_does_not_fit_into_is_refused(old, message):
    with pytest.raises(InvalidConfig, match=message):
        dataset_info(described(), old)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("out", "jsonl"), ("out.txt", "sharegpt"), ("out.parquet", "alpaca"), ("out.json", "parquet")],
)
def test_a_suffix_that_llama_factory_reads_otherwise_is_refused(name, shape):
    with pytest.raises(InvalidConfig, match="must end in"):
        dataset_info(described(name, shape), None)


def test_a_column_that_no_row_has_is_not_named():
    for shape in ("alpaca", "sharegpt"):
        with_system, without = (
            json.loads(dataset_info(described("out.json", shape, systems), None))["out"]["columns"]
            for systems in (1, 0)
        )
        assert with_system == without | {"system": "system"}
