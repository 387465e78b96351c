"""A sample taken out of a whole run: its text is found everywhere before, and nowhere after."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from clusterucb_core.demo import write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.erasure import ErasureResult, erase_samples
from clusterucb_core.export import export_selection
from clusterucb_core.export.sample_files import DATASETS_FILE
from clusterucb_core.pool.ingest import ingest_counts
from clusterucb_core.report import write_report
from clusterucb_core.stages.features import open_store
from clusterucb_core.stages.intake import candidate_ids, read_target
from clusterucb_core.stages.models import open_chat
from clusterucb_core.store import (
    backup_catalog,
    catalog_backups,
    open_catalog,
    pool_messages,
    pool_sample_ids,
    pool_version,
    rewrite_catalog,
    rewriting,
    selection_samples,
    withdraw_samples,
)
from clusterucb_core.store.statements import run

RECIPE = TinyModelRecipe(vocabulary=300, hidden=16, layers=1, heads=2, steps=2, batch_samples=4)
SMALL = ("pool.max_samples=300", "warmup.epochs=2", "finetune.epochs=1", "clusters.k=4")


@dataclass(frozen=True)
class Erased:
    """A run before and after one of its selected samples was erased, and a second run."""

    sample_id: str
    texts: list[str]
    home: Path
    exports: Path
    before: dict[str, list[str]]
    raw_before: set[str]
    after: dict[str, list[str]]
    raw_after: set[str]
    raw_others: set[str]
    decoded_before: list[str]
    feature_bytes: list[bytes]
    holding_features_before: list[str]
    result: ErasureResult
    first: object
    second: object


@pytest.fixture(scope="module")
def plain_bytes():
    """Let rewritten catalogs hold text as it is: compressed, no search of raw bytes would find it before."""
    attached = rewriting._attached

    def uncompressed(path):
        con = attached(path)
        run(con, "PRAGMA force_compression = 'uncompressed'")
        return con

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rewriting, "_attached", uncompressed)
        yield


@pytest.fixture(scope="module")
def erased(plain, plain_bytes, find_text, tmp_path_factory) -> Erased:
    folder = tmp_path_factory.mktemp("erasure")
    config = write_demo(folder / "demo", recipe=RECIPE).config
    home, exports = folder / "home", folder / "exports"
    first = plain.run_plain(config, home, *SMALL)
    workspace = first.plan.workspace
    for shape in ("jsonl", "parquet", "datasets"):
        export_selection(workspace.catalog, 1, exports / f"out.{shape}", format=shape)
    write_report(workspace, 1, exports / "report.html")
    backup_catalog(workspace)
    for path in (workspace.catalog, *catalog_backups(workspace)):
        rewrite_catalog(path, lambda con: None)
    sample_id, texts = rare_selected(first)
    before, raw = find_text(texts, home, exports), set(raw_files(texts, home, exports))
    decoded = holding_tokens(home, first, texts)
    features = feature_bytes(first, sample_id)
    holding = holding_bytes(home, features)
    with open_catalog(workspace.catalog) as con:
        every = withdraw_samples(con, [sample_id], reason="asked for")
    result = erase_samples(every, workspace, reason="asked for")
    after = find_text(texts, home, exports)
    raw_after, raw_others = (set(raw_files(said, home)) for said in (texts, [other_text(first, sample_id)]))
    second = plain.run_plain(config, home, *SMALL)
    return Erased(
        sample_id=sample_id,
        texts=texts,
        home=home,
        exports=exports,
        before=before,
        raw_before=raw,
        after=after,
        raw_after=raw_after,
        raw_others=raw_others,
        decoded_before=decoded,
        feature_bytes=features,
        holding_features_before=holding,
        result=result,
        first=first,
        second=second,
    )


def rare_selected(run) -> tuple[str, list[str]]:
    """Return a selected sample with a prompt that no other sample and no target row holds, and the prompt."""
    with open_catalog(run.plan.workspace.catalog, read_only=True) as con:
        ids = selection_samples(con, 1)["sample_id"].to_list()
        every = pool_messages(con, pool_sample_ids(con, 1))
    texts = dict(zip(every["sample_id"], every["messages"], strict=True))
    target = json.dumps(
        [[m.content for m in row.messages] for row in read_target(run.inputs.target).validation]
    )
    for sample_id in ids:
        prompt = json.loads(texts[sample_id])[0]["content"]
        escaped = json.dumps(prompt, ensure_ascii=False)[1:-1]
        others = [name for name, text in texts.items() if escaped in text and name != sample_id]
        if not others and escaped not in target and len(prompt) > 12:
            return sample_id, [prompt]
    raise AssertionError("the demo selects no sample with a prompt of its own")


def other_text(run, sample_id: str) -> str:
    """Return the prompt of another sample."""
    with open_catalog(run.plan.workspace.catalog, read_only=True) as con:
        every = pool_messages(con, pool_sample_ids(con, 1))
    others = every.filter(pl.col("sample_id") != sample_id)["messages"]
    prompts = (json.loads(text)[0]["content"] for text in others)
    return next(prompt for prompt in prompts if json.dumps(prompt)[1:-1] == prompt)  # nothing to escape


def raw_files(texts: list[str], *folders: Path) -> list[str]:
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(path) for path in files if any(text.encode() in path.read_bytes() for text in texts)]


def holding_tokens(home: Path, run, texts: list[str]) -> list[str]:
    """Return the token files below a folder whose numbers decode to one of the texts."""
    tokenizer = open_chat(run.plan.model).tokenizer
    return [
        str(path)
        for path in sorted(home.rglob("input_ids.npy"))
        if any(text in tokenizer.decode(np.load(path).tolist()) for text in texts)
    ]


def feature_bytes(run, sample_id: str) -> list[bytes]:
    """Return the stored rows of a sample in every space that holds it."""
    found = []
    for path in Path(run.plan.workspace.artifacts).glob("features/*/*/manifest.json"):
        ids = json.loads(path.read_text())["sample_ids"]
        if sample_id in ids:
            found.append(np.load(path.with_name("features.npy"))[ids.index(sample_id)].tobytes())
    return found


def holding_bytes(folder: Path, rows: list[bytes]) -> list[str]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(path) for path in files if any(row in path.read_bytes() for row in rows)]


def test_the_search_finds_the_text_and_the_features_before(erased):
    names = {Path(path).name for path in erased.before}
    assert names >= {
        "catalog.duckdb",
        "samples.parquet",
        "out.jsonl",
        "out.parquet",
        Path(DATASETS_FILE).name,
        "report.html",
    }
    assert any(name.startswith("catalog-") for name in names), "the backup"
    catalogs = [erased.home / "catalog.duckdb", *(erased.home / "backups").iterdir()]
    assert erased.raw_before >= {str(path) for path in catalogs}
    assert erased.decoded_before
    assert len(erased.feature_bytes) >= 3
    assert len(erased.holding_features_before) >= 3


def test_the_search_finds_nothing_after_and_nothing_after_the_next_run(erased, find_text):
    assert erased.after == {}
    assert erased.raw_after == set()
    catalogs = [erased.home / "catalog.duckdb", *(erased.home / "backups").iterdir()]
    assert erased.raw_others >= {str(path) for path in catalogs}, "the search finds no other text either"
    assert find_text(erased.texts, erased.home, erased.exports) == {}
    assert holding_tokens(erased.home, erased.first, erased.texts) == []
    assert holding_bytes(erased.home, erased.feature_bytes) == []


def test_the_old_version_still_tells_the_id_without_a_text(erased):
    with open_catalog(erased.home / "catalog.duckdb", read_only=True) as con:
        samples = selection_samples(con, 1)
    row = samples.row(by_predicate=pl.col("sample_id") == erased.sample_id, named=True)
    assert row["messages"] is None
    assert row["influence"] is not None
    assert samples["messages"].null_count() == 1


def test_exports_lack_the_sample_and_keep_their_ranks(erased):
    table = pl.read_parquet(erased.exports / "out.parquet")
    assert erased.sample_id not in table["sample_id"].to_list()
    assert (len(table), table["rank"].max()) == (14, 15)
    assert len((erased.exports / "out.jsonl").read_text().splitlines()) == 14
    assert len(pl.read_parquet(erased.exports / "out.datasets" / DATASETS_FILE)) == 14
    assert "14 conversations to fine-tune on" in (erased.exports / "out.datasets" / "README.md").read_text()


def test_the_weights_that_learned_from_it_and_its_source_row_are_named(erased):
    last = erased.first.chosen.trainings[-1]
    assert last.path in [training.path for training in erased.result.trainings if training.how == "sample"]
    assert [origin.sample_id for origin in erased.result.origins] == [erased.sample_id]
    assert erased.result.origins[0].row_number >= 1


def test_the_next_run_is_without_the_sample(erased, find_text, tmp_path):
    second, sample_id = erased.second, erased.sample_id
    assert ingest_counts(second.inputs.pool).withdrawn >= 1
    assert sample_id not in candidate_ids(second.inputs.candidates)
    with open_catalog(second.plan.workspace.catalog, read_only=True) as con:
        version = pool_version(con)
        assert (version.pool_version, version.n_removed) == (2, 1)
        assert sample_id not in pool_sample_ids(con, 2)
        (new,) = second.result.versions
        assert sample_id not in selection_samples(con, new)["sample_id"].to_list()
        for table in ("pulls", "selection_samples"):
            query = f"SELECT count(*) FROM {table} WHERE selection_version = ? AND sample_id = ?"
            assert con.execute(query, [new, sample_id]).fetchall() == [(0,)]
        assert con.execute(
            "SELECT count(*) FROM feature_rows WHERE sample_id = ?", [sample_id]
        ).fetchall() == [(0,)]
    for space in second.chosen.periods[0].spec.spaces:
        assert sample_id not in open_store(space, second.plan.workspace).known
    export_selection(second.plan.workspace.catalog, new, tmp_path / "exports" / "out.jsonl")
    assert find_text(erased.texts, tmp_path / "exports") == {}


@pytest.mark.slow
def test_prefect_and_mlflow_hold_no_text_either(find_text, tmp_path):
    config, home = write_demo(tmp_path / "demo", recipe=RECIPE).config, tmp_path / "home"
    overrides = [part for change in (*SMALL, "evaluate.baselines=[]") for part in ("--set", change)]
    assert clusterucb(home, "run", config, *overrides)["versions"] == [1]
    (sample, *_) = clusterucb(home, "show", "1")["samples"]
    prompt = sample["messages"][0]["content"]
    assert {"catalog.duckdb", "samples.parquet"} <= {Path(path).name for path in find_text([prompt], home)}
    assert (home / "prefect" / "prefect.db").is_file()
    assert (home / "mlflow.db").is_file()
    shown = clusterucb(home, "withdraw", sample["sample_id"], "--reason", "asked for", "--erase")
    assert shown["erasure"]["sample_ids"] == [sample["sample_id"]]
    assert find_text([prompt], home) == {}
    assert clusterucb(home, "run", config, *overrides)["pool_version"] == 2
    assert find_text([prompt], home) == {}


def clusterucb(home: Path, *arguments: object) -> Any:
    line = [sys.executable, "-m", "flows", *map(str, arguments), "--json"]
    environment = os.environ | {"CLUSTERUCB_HOME": str(home)}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)
