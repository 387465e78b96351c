"""On the real pool, the separation check is silent on GSM8K and BBH and fires on copies of shuffled text."""

import gzip
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from clusterucb_core.config import load_config
from clusterucb_core.lm.loading import load_tokenizer
from clusterucb_core.planning import plan_run
from clusterucb_core.separation import LEVEL, chance_warning
from clusterucb_core.stages.intake import TokensSpec, candidate_ids, run_target, run_tokens, target_spec
from clusterucb_core.stages.scores import plain_space
from clusterucb_core.stages.separation import SeparationCheck, check_separation
from clusterucb_core.stages.training import checkpoint_refs
from clusterucb_core.targets.catalog import TargetSettings

DATA, MODELS = os.environ.get("CLUSTERUCB_DATA"), os.environ.get("CLUSTERUCB_MODELS")
EXAMPLE = Path(__file__).parents[2] / "examples" / "gsm8k_tiny_llama.yaml"
SMALL = ("pool.max_samples=400", "selection.policy=full")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        DATA is None or MODELS is None,
        reason="CLUSTERUCB_DATA and CLUSTERUCB_MODELS name no folders with the real pool and the tiny Llama",
    ),
]


@dataclass(frozen=True)
class Warm:
    """A run after its warmup, with the features of its pool."""

    plan: object
    inputs: object
    space: object


@pytest.fixture(scope="module")
def warm(plain, tmp_path_factory):
    plan = plan_run(*load_config(EXAMPLE, SMALL, variables=os.environ), home=tmp_path_factory.mktemp("home"))
    (inputs,) = plain.prepare(plan)
    checkpoint = checkpoint_refs(plain.warmup(plan, inputs, later_steps=40))[-1]
    space = plain.space_of(plan, checkpoint)
    ids = tuple(candidate_ids(inputs.candidates))
    whole = plain.FeaturePass(space=space, tokens=inputs.tokens, sample_ids=ids)
    plain.featurize(plan, whole, first=space)
    return Warm(plan, inputs, space)


def shuffled_text(text, kind, rng, tokenizer):
    if kind == "words":
        return " ".join(rng.permutation(text.split()).tolist())
    if kind == "characters":
        return "".join(rng.permutation(list(text)).tolist())
    ids = np.array(tokenizer(text, add_special_tokens=False)["input_ids"])
    return tokenizer.decode(rng.permutation(ids).tolist())


def target_file(name, kind, folder, tokenizer):
    text = gzip.decompress(Path(f"{DATA}/targets/{name}.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    rng, path = np.random.default_rng(0), folder / f"{name}-{kind}.jsonl"
    lines = []
    for row in (row for row in rows if row["split"] == "validation"):
        texts = {key: row[key] for key in ("prompt", "completion")}
        if kind is not None:
            texts = {key: shuffled_text(text, kind, rng, tokenizer) for key, text in texts.items()}
        lines.append(json.dumps({"subtask": row["subtask"], **texts}))
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def separation_of(warm, plain, path):
    plan, space = warm.plan, warm.space
    spec = target_spec(TargetSettings(name=path.stem, validation=str(path)), path.parent)
    target = run_target(spec, plan.workspace)
    tokens = run_tokens(TokensSpec(source=target, split="validation", model=plan.model), plan.workspace)
    ids = tuple(plain.validation_ids(target))
    rows = plain.FeaturePass(space=plain_space(space), tokens=tokens, sample_ids=ids)
    plain.featurize(plan, rows, first=space)
    check = SeparationCheck(target=target, space=space, seed=0, run_id="")
    ids = candidate_ids(warm.inputs.candidates)
    return check_separation(check, ids, workspace=plan.workspace, execution=plan.execution)


@pytest.mark.parametrize("name", ["gsm8k", "bbh"])
def test_a_real_target_separates_the_pool(warm, plain, tmp_path, name):
    found = separation_of(warm, plain, target_file(name, None, tmp_path, None))
    assert found.p <= LEVEL / 5
    assert chance_warning(found.p) is None


@pytest.mark.parametrize("kind", ["words", "characters", "tokens"])
@pytest.mark.parametrize("name", ["gsm8k", "bbh"])
def test_a_target_of_shuffled_text_is_told(warm, plain, tmp_path, name, kind):
    tokenizer = load_tokenizer(warm.plan.model.settings)
    found = separation_of(warm, plain, target_file(name, kind, tmp_path, tokenizer))
    assert found.p > LEVEL
    assert chance_warning(found.p) is not None
