"""What an export writes, the project's own readers read again: which samples come back as the same ones."""

import json
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clusterucb_core.export import export_selection
from clusterucb_core.export.exchanges import alternates
from clusterucb_core.export.sample_files import sample_file, write_samples
from clusterucb_core.pool.conversations import content_id, conversation
from clusterucb_core.pool.formats import read_file
from clusterucb_core.pool.ingest import PoolSettings, ingest, read_samples
from clusterucb_core.pool.quarantine import Unusable
from clusterucb_core.records import Message

PLACES = {
    "jsonl": "out.jsonl",
    "parquet": "out.parquet",
    "alpaca": "out.json",
    "sharegpt": "out.json",
    "datasets": "out",
}
HOSTILE = 'quote " and \' end\nnext line\r\n\t back\\slash \u2028 漢字 🙂 {"a": [1]}, "b"'
ROLES = {"s": "system", "u": "user", "a": "assistant"}


def turns(*texts: str) -> list[dict[str, str]]:
    """Make turns of texts such as `u:2 + 2?`."""
    return [{"role": ROLES[text[0]], "content": text[2:]} for text in texts]


ALTERNATING = [
    turns("u:2 + 2?", "a:4"),
    turns("s:Be brief.", "u:2 + 2?", "a:4", "u:and + 1?", "a:5"),
    turns("s:" + HOSTILE, "u:" + HOSTILE, "a:" + HOSTILE),
    turns("u:n/a", "a:none", "u:<no input>", "a:an answer"),
]
OTHERS = {
    "two users": turns("u:one", "u:two", "a:three"),
    "two answers": turns("u:one", "a:two", "a:three"),
    "a late system message": turns("u:one", "a:two", "s:late", "u:three", "a:four"),
    "two system messages": turns("s:first", "s:second", "u:one", "a:two"),
}
JOINED = {
    "two users": turns("u:one\n\ntwo", "a:three"),
    "two answers": turns("u:one", "a:two\n\nthree"),
    "a late system message": turns("s:late", "u:one", "a:two", "u:three", "a:four"),
    "two system messages": turns("s:first\n\nsecond", "u:one", "a:two"),
}


def ids_of(conversations: list[list[dict[str, str]]]) -> list[str]:
    return [content_id([Message(**turn) for turn in found]) for found in conversations]


def ids_read(path: Path) -> list[str]:
    rows = list(read_file(path, source="again"))
    assert not [bad for row in rows for bad in row.bad]
    return [sample.sample_id for row in rows for sample in row.samples]


@pytest.mark.parametrize("beside", [{}, {"provenance": True, "weights": True}])
@pytest.mark.parametrize("shape", PLACES)
def test_alternating_conversations_come_back_as_the_same_samples(catalog, tmp_path, shape, beside):
    from clusterucb_core.export import ExportOptions

    out = tmp_path / "exports" / PLACES[shape]
    path = catalog(*ALTERNATING, by_content=True)
    result = export_selection(path, 1, out, format=shape, options=ExportOptions(**beside))
    assert result.reshaped == 0
    assert ids_read(sample_file(out, shape)) == ids_of(ALTERNATING)


@pytest.mark.parametrize("shape", PLACES)
def test_which_conversations_come_back_as_other_samples(catalog, tmp_path, shape, caplog):
    every = [*ALTERNATING, *OTHERS.values()]
    out = tmp_path / "exports" / PLACES[shape]
    result = export_selection(catalog(*every, by_content=True), 1, out, format=shape)
    holds_all = shape in ("jsonl", "parquet", "datasets")
    wanted = every if holds_all else [*ALTERNATING, *JOINED.values()]
    assert ids_read(sample_file(out, shape)) == ids_of(wanted)
    assert result.reshaped == (0 if holds_all else len(OTHERS))
    assert ("4 conversations do not alternate" in caplog.text) is not holds_all


@pytest.mark.parametrize("shape", PLACES)
def test_a_pool_of_an_export_has_the_ids_of_the_selection(catalog, tmp_path, shape):
    out = tmp_path / "exports" / PLACES[shape]
    export_selection(catalog(*ALTERNATING, by_content=True), 1, out, format=shape)
    pattern = sample_file(out, shape).relative_to(tmp_path).as_posix()
    pool = PoolSettings.model_validate({"sources": [{"path": pattern}]})
    ref = ingest(pool, base_folder=tmp_path, artifact_root=tmp_path / "artifacts")
    assert sorted(sample.sample_id for sample in read_samples(ref)) == sorted(ids_of(ALTERNATING))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("samples")


# What a pool can hold: the readers quarantine a NUL and a lone surrogate.
TEXTS = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]), max_size=12)


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), TEXTS),
        min_size=2,
        max_size=7,
    )
)
@settings(max_examples=60, deadline=None)
def test_every_conversation_of_a_pool_comes_back_unless_the_format_has_no_place_for_it(folder, drawn):
    try:
        messages = conversation([Message(role, text) for role, text in drawn], min_chars=1)
    except Unusable:
        return
    found = [{"role": message.role, "content": message.content} for message in messages]
    samples = pl.DataFrame({"messages": [json.dumps(found)]})
    for shape, place in PLACES.items():
        if shape == "parquet":  # the same writer as for datasets
            continue
        path = folder / ("out.parquet" if shape == "datasets" else place)
        write_samples(samples, path, shape=shape, added=())
        holds = alternates(found) or shape in ("jsonl", "datasets")
        assert (ids_read(path) == [content_id(messages)]) is holds, shape
