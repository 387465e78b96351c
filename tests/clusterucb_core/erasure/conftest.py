"""Small artifacts that hold the samples a, b and c."""

import json

import numpy as np
import polars as pl
import pytest

from clusterucb_core.artifacts import new_artifact
from clusterucb_core.features.gradients import FeatureBatch
from clusterucb_core.features.shards import RowSource, Shard, shard_fingerprint, write_rows
from clusterucb_core.lm.tokens import STAGE
from clusterucb_core.records import ArtifactRef, TokenizedSample

TOKENS = {"a": [11, 12], "b": [21, 22, 23], "c": [31]}
SPACE = "space"


@pytest.fixture
def root(tmp_path):
    return tmp_path / "home" / "artifacts"


@pytest.fixture
def tokens(root) -> ArtifactRef:
    """Tokens of a, b and c; d has none."""
    manifest = {"n": 3, "excluded": 1, "truncated": 0, "tokens": 6, "supervised_tokens": 3}
    with new_artifact(root, STAGE, "key", manifest) as folder:
        flat = [token for row in TOKENS.values() for token in row]
        np.save(folder / "input_ids.npy", np.array(flat, dtype=np.int32))
        np.save(folder / "supervised.npy", np.array([0, 1, 0, 0, 1, 1], dtype=np.bool_))
        np.save(folder / "offsets.npy", np.array([0, 2, 5, 6], dtype=np.int64))
        (folder / "sample_ids.json").write_text('["a", "b", "c"]')
        row = '[{"sample_id": "d", "stage": "tokenize", "reason": "template_error", "detail": "says secret"}]'
        (folder / "exclusions.json").write_text(row)
    return ArtifactRef(stage=STAGE, fingerprint="key", path=str(root / STAGE / "key"))


@pytest.fixture
def shard(root) -> ArtifactRef:
    """Features of a, b and c in one shard; there was none for x."""
    ids = ("a", "b", "c", "x")
    samples = [TokenizedSample(name, np.array([1]), np.array([1])) for name in ids]
    features = np.eye(3, 5, dtype=np.float32)
    batch = FeatureBatch(
        indices=np.arange(3), features=features, states=features, excluded=((3, "nan", "secret"),)
    )
    source = RowSource(samples, width=lambda: 5, hidden=lambda: 5, rows=lambda samples, batches: [batch])
    whole = Shard(shard_fingerprint(SPACE, ids), ids, ((0, 1, 2, 3),))
    return write_rows(root, SPACE, whole, source=source)


def conversation(name: str) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"What does the sample that is called {name} say to those who read it?"},
        {"role": "assistant", "content": f"answer of {name}"},
    ]


@pytest.fixture
def pool(root) -> ArtifactRef:
    """An ingested pool of a, b and c, and a broken copy of a in quarantine."""
    names = list(TOKENS)
    samples = {
        "sample_id": names,
        "source": ["s"] * 3,
        "messages": [json.dumps(conversation(name)) for name in names],
        "n_chars": [80] * 3,
        "path": ["pool.jsonl"] * 3,
        "row_number": [1, 2, 3],
    }
    raws = [json.dumps({"prompt": conversation("a")[0]["content"]})[:-5], "{"]
    bad = {
        "source": ["s"] * 2,
        "row_number": [4, 5],
        "reason": ["invalid_json"] * 2,
        "detail": ["pool.jsonl: no object"] * 2,
        "raw": raws,
    }
    with new_artifact(root, "ingest", "key", {"counts": {"n_samples": 3}}) as folder:
        pl.DataFrame(samples).write_parquet(folder / "samples.parquet")
        pl.DataFrame(bad).write_parquet(folder / "quarantine.parquet")
    return ArtifactRef(stage="ingest", fingerprint="key", path=str(root / "ingest" / "key"))
