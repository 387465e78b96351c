"""A run's id: what changes it, what does not, and what is refused before a stage runs."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from clusterucb_core.config import load_config
from clusterucb_core.demo import DemoFiles, write_demo
from clusterucb_core.demo.tiny_model import TinyModelRecipe
from clusterucb_core.errors import BudgetError, InvalidConfig, InvalidModel, InvalidPool, InvalidTarget
from clusterucb_core.planning import RunPlan, check_evaluation, plan_comparison, plan_run
from clusterucb_core.store import open_catalog
from clusterucb_core.store.statements import run
from clusterucb_core.workspace import stage_key

RECIPE = TinyModelRecipe(
    vocabulary=300, tokenizer_texts=60, hidden=16, layers=1, heads=2, steps=2, batch_samples=4
)


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> DemoFiles:
    return write_demo(tmp_path_factory.mktemp("demo"), recipe=RECIPE)


def plan_of(config: Path, *overrides: str, home: Path = Path("/home")) -> RunPlan:
    return plan_run(*load_config(config, overrides), home=home)


@pytest.fixture(scope="module")
def plan(demo) -> RunPlan:
    return plan_of(demo.config)


def test_the_same_inputs_give_the_same_run(demo, plan):
    again = plan_of(demo.config, home=Path("/elsewhere"))
    assert (again.run_id, again.selection_keys) == (plan.run_id, plan.selection_keys)
    assert again.workspace.catalog == Path("/elsewhere/catalog.duckdb")


def test_the_same_content_at_another_path_is_the_same_run(demo, plan, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(demo.config.parent, moved)
    (moved / "model").rename(moved / "base")
    (moved / "target.jsonl").rename(moved / "goal.jsonl")
    shutil.move(moved / "pool", tmp_path / "files")
    text = (moved / "demo.yaml").read_text().replace("path: pool/", "path: ../files/")
    (moved / "demo.yaml").write_text(
        text.replace("base: model", "base: base").replace("target.jsonl", "goal.jsonl")
    )
    found = plan_of(moved / "demo.yaml")
    assert found.config.all_targets[0].validation == str(moved / "goal.jsonl")
    assert (found.run_id, found.selection_keys) == (plan.run_id, plan.selection_keys)
    assert found.config_digest != plan.config_digest


@pytest.mark.parametrize(
    "override",
    [
        "execution.workers=3", "execution.shard_samples=7", "execution.max_batch_tokens=256", "execution.device=cpu",  # noqa: E501
        "execution.storage_root=/shared", "execution.runner=processes", "execution.when_tracking_is_down=fail",  # noqa: E501
        "compare.seeds=9", "model.dtype=float32",
    ],
)  # fmt: skip
def test_how_a_run_is_executed_changes_nothing(demo, plan, override):
    found = plan_of(demo.config, override)
    assert (found.run_id, found.selection_keys) == (plan.run_id, plan.selection_keys)


@pytest.mark.parametrize(
    "override",
    [
        "evaluate.limit=3", "evaluate.baselines=[]", "evaluate.tasks=[target]", "evaluate.random_seeds=1",
        "evaluate.allow_code_execution=true",
    ],
)  # fmt: skip
def test_what_is_evaluated_changes_the_run_but_not_its_selection(demo, plan, override):
    found = plan_of(demo.config, override)
    assert found.run_id != plan.run_id
    assert found.selection_keys == plan.selection_keys


def test_what_cannot_be_evaluated_is_refused_before_a_stage_runs(demo):
    check_evaluation(plan_of(demo.config, "evaluate.tasks=[target, target_perplexity]"), load=True)
    check_evaluation(plan_of(demo.config), load=True)
    with pytest.raises(InvalidConfig, match=r"unit_conversion_code.*allow_code_execution=true"):
        check_evaluation(plan_of(demo.config, "evaluate.tasks=[unit_conversion_code]"), load=True)


@pytest.mark.parametrize(
    "override",
    [
        "seed=1", "mode=dynamic", "warmup.epochs=2", "features.projection_dim=64", "clusters.k=5",
        "selection.beta=2", "finetune.epochs=1", "pool.max_samples=100", "pool.dedupe=content", "pool.min_chars=9",  # noqa: E501
        "model.lora.r=4", "model.max_length=128", "model.dtype=bfloat16",
        "model.chat_template='{% for m in messages %}{{ m.content }}{% endfor %}'",
    ],
)  # fmt: skip
def test_what_is_computed_changes_the_run_and_its_selection(demo, plan, override):
    found = plan_of(demo.config, override)
    assert found.run_id != plan.run_id
    assert found.selection_keys != plan.selection_keys


PROXY = "selection={{policy: linucb, context: proxy, proxy_model: {}}}"


def test_a_proxy_counts_by_its_content_wherever_it_lies(demo, plan, copy):
    here, there = (
        plan_of(demo.config, PROXY.format("model")),
        plan_of(copy / "demo.yaml", PROXY.format("model")),
    )
    assert here.config.selection.proxy_model != there.config.selection.proxy_model
    assert here.proxy.digest == there.proxy.digest
    assert (here.run_id, here.selection_keys) == (there.run_id, there.selection_keys)
    path = copy / "model" / "model.safetensors"
    path.write_bytes(path.read_bytes() + b" ")
    changed = plan_of(demo.config, PROXY.format(copy / "model"))
    assert changed.run_id != here.run_id
    assert changed.selection_keys != here.selection_keys


def test_a_proxy_that_no_policy_reads_is_not_even_looked_for(demo, plan):
    found = plan_of(demo.config, "selection.proxy_model=./nowhere")
    assert found.proxy is None
    assert (found.run_id, found.selection_keys) == (plan.run_id, plan.selection_keys)


def test_a_proxy_reads_no_more_than_its_positions_and_takes_no_adapter(demo, copy):
    settings = json.loads((copy / "model" / "config.json").read_text()) | {"max_position_embeddings": 64}
    (copy / "model" / "config.json").write_text(json.dumps(settings))
    found = plan_of(demo.config, PROXY.format(copy / "model"))
    assert found.proxy.settings.max_length == 64
    assert found.model.settings.max_length > 64
    assert found.proxy.n_lora_parameters == 0
    assert found.proxy.n_parameters == found.model.n_parameters


@pytest.fixture
def copy(demo, tmp_path) -> Path:
    return Path(shutil.copytree(demo.config.parent, tmp_path / "copy"))


def test_a_changed_pool_file_is_another_run(plan, copy):
    path = copy / "pool" / "unit_conversion.jsonl"
    path.write_text(path.read_text(errors="surrogateescape")[:-1], errors="surrogateescape")
    found = plan_of(copy / "demo.yaml")
    assert stage_key(found.ingest) != stage_key(plan.ingest)
    assert found.run_id != plan.run_id


def test_what_was_withdrawn_is_read_from_the_catalog_and_makes_another_run(demo, plan, tmp_path):
    with open_catalog(tmp_path / "catalog.duckdb") as con:
        assert plan_of(demo.config).run_id == plan.run_id
        run(con, "INSERT INTO withdrawals (sample_id, reason) VALUES ('b', 'asked for'), ('a', 'asked for')")
    found = plan_of(demo.config, home=tmp_path)
    assert found.ingest.withdrawn == ("a", "b")
    assert stage_key(found.ingest) != stage_key(plan.ingest)
    assert found.run_id != plan.run_id
    assert plan.ingest.withdrawn == ()


def test_a_changed_target_row_is_another_run(plan, copy):
    rows = (copy / "target.jsonl").read_text().splitlines()
    changed = json.loads(rows[0]) | {"completion": "another answer"}
    (copy / "target.jsonl").write_text("\n".join([json.dumps(changed), *rows[1:]]))
    found = plan_of(copy / "demo.yaml")
    assert stage_key(found.targets[0]) != stage_key(plan.targets[0])
    assert found.run_id != plan.run_id


def test_a_template_counts_by_its_text_wherever_it_stands(copy):
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
    first = copy / "first.jinja"
    first.write_text(template)
    (copy / "second.jinja").write_text(template)
    in_file = plan_of(copy / "demo.yaml", "model.chat_template=first.jinja")
    elsewhere = plan_of(copy / "demo.yaml", "model.chat_template=second.jinja")
    inline = plan_of(copy / "demo.yaml", f"model.chat_template={json.dumps(template)}")
    assert in_file.model.digest == elsewhere.model.digest == inline.model.digest
    first.write_text(template.replace("<", "["))
    assert plan_of(copy / "demo.yaml", "model.chat_template=first.jinja").run_id != in_file.run_id


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("selection={policy: linucb, context: proxy}", InvalidConfig, "selection.proxy_model names no model"),
        (PROXY.format("pool"), InvalidModel, "pool cannot be loaded"),
        (PROXY.format("./no"), InvalidModel, "selection.proxy_model='./no'"),
        ("selection.audit_fraction=0.5", BudgetError, "not below budget_fraction"),
        ("selection.top_fraction=0.5", BudgetError, "only drawn samples can be selected"),
        ("pool.sources=[{path: nothing.jsonl}]", InvalidPool, "matches no file"),
        ("target.validation=nothing.jsonl", InvalidTarget, "nothing.jsonl"),
        ("model.base=pool", InvalidModel, "pool"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_is_computed(demo, tmp_path, override, error, message):
    with pytest.raises(error, match=message):
        plan_of(demo.config, override, home=tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_target_among_several_is_selected_for_as_alone(plan, copy):
    (copy / "other.jsonl").write_bytes((copy / "target.jsonl").read_bytes())
    other = {"name": "other", "validation": "other.jsonl", "test": "other.jsonl"}
    one = yaml.safe_load((copy / "demo.yaml").read_text())["target"]
    both, turned = (
        plan_of(copy / "demo.yaml", "target=null", f"targets={json.dumps(targets)}")
        for targets in ([one, other], [other, one])
    )
    assert [target.settings.name for target in both.targets] == [one["name"], "other"]
    assert both.selection_keys == turned.selection_keys
    assert (
        both.selection_keys[one["name"]] == plan.selection_keys[one["name"]] != both.selection_keys["other"]
    )
    assert len({plan.run_id, both.run_id, turned.run_id}) == 3


def comparison_of(config: Path, *overrides: str) -> RunPlan:
    return plan_comparison(*load_config(config, overrides), home=Path("/home"))


def test_a_comparison_is_no_run_and_what_it_compares_makes_it_another(demo, plan):
    first = comparison_of(demo.config)
    assert first.run_id == comparison_of(demo.config).run_id != plan.run_id
    for override in ("compare.seeds=9", "compare.finetune=true", "seed=1", "selection.beta=2"):
        assert comparison_of(demo.config, override).run_id != first.run_id


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [((), None), (("compare.max_samples=50",), 50), (("pool.max_samples=60",), 60),
     (("compare.max_samples=70", "pool.max_samples=60"), 60)],
)  # fmt: skip
def test_a_comparison_is_made_on_the_smaller_part_of_the_pool(demo, overrides, wanted):
    assert comparison_of(demo.config, *overrides).config.pool.max_samples == wanted


def test_a_comparison_needs_a_selection_that_policies_make_in_ways_of_their_own(demo):
    with pytest.raises(InvalidConfig, match=r"finetune.epochs=1 in dynamic mode is one selection"):
        comparison_of(demo.config, "mode=dynamic", "finetune.epochs=1")
    with pytest.raises(BudgetError, match=r"compare.budget_fractions, ucb_beta: .*0.01"):
        comparison_of(demo.config, "compare.budget_fractions=[0.01]")
