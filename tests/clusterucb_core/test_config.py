"""Configurations: defaults as the public contract has them, what is refused and how, paths, overrides."""

from pathlib import Path

import pytest
import yaml

from clusterucb_core.config import RunConfig, config_digest, load_config, validated
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.execution import ExecutionSettings

# The defaults that users rely on, as they are published, save for the policy: the one that the benchmark of
# selections finds best.
CONTRACT = """
pool:      {sources: [{path: data/*.jsonl.gz, format: auto, name: gsm8k}], min_chars: 1, dedupe: prompt, max_samples: null}
target:    {name: gsm8k, validation: path, test: path}
model:     {base: hub/id, dtype: auto, max_length: 2048, lora: {r: 128, alpha: 512, dropout: 0.1, target_modules: [q_proj, k_proj, v_proj, o_proj]}, chat_template: null}
mode:      dynamic
warmup:    {fraction: 0.05, epochs: 4, steps: 20, learning_rate: 2.0e-5, batch_size: 128}
features:  {projection: auto, projection_dim: 8192, max_excluded_fraction: 0.01}
clusters:  {features: gradient, k: auto, drift_limit: auto}
selection: {policy: linucb, beta: 1.0, top_share: 0.25, explore_fraction: 0.1, context: gradient, proxy_model: null, budget_fraction: 0.2, cold_start_fraction: 0.05, audit_fraction: 0.04, top_fraction: 0.05, early_stop: 0.0, cost_limit: 1.05, round_samples: 64, aggregate: max}
finetune:  {epochs: 4, learning_rate: 2.0e-5, batch_size: 128}
evaluate:  {tasks: [], baselines: [zero_shot, random], random_seeds: 3, batch_size: auto, limit: null}
compare:   {policies: [], budget_fractions: [0.05, 0.1, 0.2], seeds: 3, max_samples: null, finetune: false}
seed: 0
execution: {runner: threads, workers: auto, ray_address: null, device: auto, gpus_per_task: auto, shard_samples: 4096, max_batch_tokens: auto, storage_root: null, when_tracking_is_down: buffer}
"""  # noqa: E501

SHORTEST = {
    "pool": {"sources": [{"path": "pool.jsonl"}]},
    "target": {"name": "gsm8k", "validation": "target.jsonl"},
    "model": {"base": "some/model"},
}


@pytest.fixture
def write(tmp_path):
    """Write a configuration: a tree, or the shortest one with some keys changed."""

    def written(tree=None, **changes) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump((SHORTEST if tree is None else tree) | changes), encoding="utf-8")
        return path

    return written


def test_the_defaults_are_those_of_the_contract(write):
    contract = yaml.safe_load(CONTRACT)
    config, execution = load_config(write())
    assert execution.model_dump(mode="json") == contract["execution"]
    found = config.model_dump(mode="json")
    # added since, with the value that keeps what the contract says
    assert found["evaluate"].pop("allow_code_execution") is False
    assert found["model"].pop("trusted_code") == []
    for section in ("mode", "warmup", "features", "clusters", "selection", "finetune", "evaluate", "seed"):
        assert found[section] == contract[section], section
    assert found["compare"] == contract["compare"]
    assert {**found["model"], "base": "hub/id"} == contract["model"]
    assert {**found["pool"], "sources": []} == {**contract["pool"], "sources": []}


def test_the_configuration_of_the_contract_can_be_loaded(write):
    config, execution = load_config(write(yaml.safe_load(CONTRACT)))
    assert config.all_targets[0].name == "gsm8k"
    assert execution == ExecutionSettings()


def test_execution_is_no_part_of_the_configuration(write):
    first, _ = load_config(write())
    second, execution = load_config(write(execution={"workers": 3, "device": "cpu"}))
    assert (execution.workers, execution.device) == (3, "cpu")
    assert config_digest(first) == config_digest(second)
    assert "execution" not in RunConfig.model_fields


def test_every_setting_changes_the_digest(write):
    plain, _ = load_config(write())
    for override in ("seed=1", "mode=static", "selection.beta=2", "evaluate.limit=5", "model.lora.r=4"):
        changed, _ = load_config(write(), [override])
        assert config_digest(changed) != config_digest(plain), override


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"selektion": {}}, "unknown key selektion; did you mean selection?"),
        ({"seeds": 0}, "unknown key seeds; did you mean seed?"),
        ({"warmup": {"learnin_rate": 1}}, "unknown key warmup.learnin_rate; did you mean learning_rate?"),
        (
            {"target": {"name": "a", "validaton": "x"}},
            "unknown key target.validaton; did you mean validation?",
        ),
        ({"pool": {"sources": [{"pth": "x"}]}}, "unknown key pool.sources.0.pth; did you mean path?"),
        (
            {"model": {"base": "a", "lora": {"rnk": 4}}},
            "unknown key model.lora.rnk; known: r, alpha, dropout",
        ),
        ({"execution": {"worker": 2}}, "execution: unknown key worker; did you mean workers?"),
    ],
)
def test_an_unknown_key_is_named_with_a_near_match(write, changes, message):
    with pytest.raises(InvalidConfig) as caught:
        load_config(write(**changes))
    assert message in str(caught.value)
    assert "run.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "mode=dynamc",
            "mode: Input should be 'dynamic' or 'static' (value seen: \"dynamc\"); did you mean dynamic?",
        ),
        ("clusters.k=atuo", "or Input should be 'auto' (value seen: \"atuo\"); did you mean auto?"),
        ("evaluate.baselines=[zeroshot]", '(value seen: "zeroshot"); did you mean zero_shot?'),
        ("pool.sources=[{path: a, format: alpacca}]", "did you mean alpaca?"),
        ("execution.when_tracking_is_down=bufer", "did you mean buffer?"),
        ("selection.policy=ucb", "unknown policy 'ucb'; did you mean 'ucb1'? known: ucb_beta, ucb1"),
        ("warmup.fraction=0", "warmup.fraction: Input should be greater than 0 (value seen: 0)"),
        ("features.projection=fold", "features.projection: Input should be 'auto', 'none', 'roll'"),
        ("seed=many", "seed: Input should be a valid integer"),
        ("compare.policies=[ucb1, best]", "unknown policy 'best'"),
        ("compare.budget_fractions=[0.1, 3]", "compare.budget_fractions.1"),
        ("target=null", "no target: give `target: {name: ..., validation: ..., test: ...}`"),
        ("pool.sources=[]", "pool.sources: Tuple should have at least 1 item"),
        ("execution.shard_samples=0", "execution: shard_samples: Input should be greater than or equal to 1"),
    ],
)
def test_a_value_out_of_range_is_shown(write, override, message):
    with pytest.raises(InvalidConfig) as caught:
        load_config(write(), [override])
    assert message in str(caught.value)


def test_all_complaints_come_at_once(write):
    with pytest.raises(InvalidConfig, match=r"seed.*; .*mode|mode.*; .*seed"):
        load_config(write(), ["seed=-1", "mode=both"])


def test_a_missing_key_is_named(write):
    with pytest.raises(InvalidConfig, match="model is missing"):
        load_config(write({name: SHORTEST[name] for name in ("pool", "target")}))


def test_several_targets_keep_their_order(write, tmp_path):
    targets = [{"name": "b", "validation": "b.jsonl"}, {"name": "a", "validation": "a.jsonl"}]
    config, _ = load_config(write(target=None, targets=targets))
    assert [target.name for target in config.all_targets] == ["b", "a"]
    assert [target.validation for target in config.all_targets] == [
        str(tmp_path / f"{name}.jsonl") for name in ("b", "a")
    ]


def test_targets_of_one_name_are_refused(write):
    targets = [{"name": name, "validation": f"{number}.jsonl"} for number, name in enumerate("aba")]
    with pytest.raises(InvalidConfig, match=r"several targets are named 'a' \(targets: a, b, a\)"):
        load_config(write(target=None, targets=targets))


def test_a_target_beside_a_list_of_targets_is_refused(write):
    with pytest.raises(InvalidConfig, match=r"both target \(gsm8k\) and targets \(b\) are given"):
        load_config(write(targets=[{"name": "b", "validation": "b.jsonl"}]))


def test_a_list_of_one_target_is_a_target(write, tmp_path):
    config, _ = load_config(write(target=None, targets=[{"name": "a", "validation": "a.jsonl"}]))
    assert config.all_targets[0].name == "a"
    assert config.all_targets[0].validation == str(tmp_path / "a.jsonl")


def test_relative_paths_start_at_the_file(write, tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    sources = [{"path": "data/*.jsonl"}, {"path": "/elsewhere/b.csv"}]
    path = write(
        pool={"sources": sources},
        model={"base": "model", "chat_template": "chat.jinja"},
        selection={"proxy_model": "model"},
    )
    monkeypatch.chdir("/")
    config, _ = load_config(path)
    assert [source.path for source in config.pool.sources] == [
        str(tmp_path / "data/*.jsonl"),
        "/elsewhere/b.csv",
    ]
    assert config.all_targets[0].validation == str(tmp_path / "target.jsonl")
    assert config.model.base == config.selection.proxy_model == str(tmp_path / "model")
    assert config.model.chat_template == str(tmp_path / "chat.jinja")


@pytest.mark.parametrize("template", ["{% for m in messages %}$5{% endfor %}", "x" * 9000, None])
def test_a_hub_id_and_a_template_text_are_left_alone(write, template):
    model = {"base": "some/model", "chat_template": template}
    config, _ = load_config(write(model=model, selection={"proxy_model": "some/model"}))
    assert config.model.base == config.selection.proxy_model == "some/model"
    assert config.model.chat_template == template


def test_variables_stand_in_paths(write, tmp_path):
    path = write(
        pool={"sources": [{"path": "$DATA/pool/*.gz"}, {"path": "cost$$.csv"}]},
        target={"name": "a", "validation": "${DATA}/a.jsonl", "test": "b.jsonl"},
        model={"base": "$MODELS/tiny"},
    )
    (tmp_path / "models" / "tiny").mkdir(parents=True)
    config, _ = load_config(path, variables={"DATA": "/data", "MODELS": str(tmp_path / "models")})
    assert [source.path for source in config.pool.sources] == ["/data/pool/*.gz", str(tmp_path / "cost$.csv")]
    assert config.all_targets[0].validation == "/data/a.jsonl"
    assert config.model.base == str(tmp_path / "models" / "tiny")


@pytest.mark.parametrize(
    ("base", "advice"),
    [
        ("$NOWHERE/model", "export NOWHERE"),
        ("${NOWHERE}", "export NOWHERE"),
        ("cost$/model", "write $$ for one"),
    ],
)
def test_a_variable_that_is_not_set_is_named(write, base, advice):
    with pytest.raises(InvalidConfig) as caught:
        load_config(write(model={"base": base}), variables={})
    assert str(caught.value).startswith(f"model.base: {base} ")
    assert advice in str(caught.value)


def test_overrides_are_read_as_yaml(write, tmp_path):
    overrides = (
        "warmup.learning_rate=1e-3", "clusters.k=12", "evaluate.tasks=[target]", "target.test=t=1.jsonl",
        "model.lora.r=4", "pool.max_samples=null", "execution.workers=2", "selection.policy=full",
    )  # fmt: skip
    config, execution = load_config(write(), overrides)
    assert (config.warmup.learning_rate, config.clusters.k, config.model.lora.r) == (1e-3, 12, 4)
    assert config.evaluate.tasks == ("target",)
    assert config.all_targets[0].test == str(tmp_path / "t=1.jsonl")
    assert (execution.workers, config.selection.policy, config.pool.max_samples) == (2, "full", None)


def test_a_section_of_which_nothing_is_set_has_its_defaults(tmp_path):
    (tmp_path / "run.yaml").write_text(
        "pool: {sources: [{path: a.jsonl}]}\ntarget: {name: a, validation: a.jsonl}\n"
        "model:\n  base: some/model\n  lora:\nwarmup:\nselection:\nexecution:\n"
    )
    config, execution = load_config(tmp_path / "run.yaml")
    assert config.warmup == RunConfig.model_fields["warmup"].default
    assert (config.model.lora.r, execution) == (128, ExecutionSettings())
    overrides = ["selection.beta=2", "model.lora.r=4", "execution.workers=2"]
    changed, execution = load_config(tmp_path / "run.yaml", overrides)
    assert (changed.selection.beta, changed.model.lora.r, execution.workers) == (2, 4, 2)


def test_a_section_that_must_be_set_is_not_empty(write):
    with pytest.raises(InvalidConfig, match="model: Input should be a valid dictionary"):
        load_config(write(model=None))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set 'seed' is not of the form key.path=value"),
        ("=3", "is not of the form key.path=value"),
        ("model.base.name=3", "--set 'model.base.name=3': base is 'some/model', not a section"),
        ("seed=[1", "the value is no valid YAML"),
        ("sed=1", "unknown key sed; did you mean seed?"),
    ],
)
def test_an_override_that_cannot_work_is_explained(write, override, message):
    with pytest.raises(InvalidConfig) as caught:
        load_config(write(), [override])
    assert message in str(caught.value)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(InvalidConfig, match=r"none\.yaml does not exist; give the path"):
        load_config(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [("- a\n", "holds list; a configuration is a mapping"), ("a: [1\n", "YAML"), ("", "holds NoneType")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(InvalidConfig, match=message):
        load_config(tmp_path / "run.yaml")


def test_a_configuration_survives_json(write):
    config, _ = load_config(write())
    assert validated(RunConfig, config.model_dump(mode="json"), where="json") == config
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


def test_every_setting_has_a_title_for_the_form():
    schema = RunConfig.model_json_schema()
    sections = [schema, *schema["$defs"].values()]
    untitled = [
        f"{section['title']}.{name}"
        for section in sections
        for name, field in section.get("properties", {}).items()
        if not field.get("title")
    ]
    assert untitled == []


SECRETS = [
    "HF_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "MLFLOW_TRACKING_PASSWORD",
    "PREFECT_API_KEY",
    "my_api_key",
    "TOKEN",
]


@pytest.mark.parametrize("name", SECRETS)
def test_a_variable_that_holds_a_secret_is_refused_in_a_path_without_its_value(write, name):
    for changes in (
        {"pool": {"sources": [{"path": f"data/${{{name}}}/pool.jsonl"}]}},
        {"target": {"name": "t", "validation": f"${name}"}},
        {"model": {"base": f"${name}"}},
        {"selection": {"proxy_model": f"${name}"}},
    ):
        with pytest.raises(InvalidConfig, match=f"names {name}, which holds a secret by its name") as refused:
            load_config(write(**changes), variables={name: "hidden"})
        assert "hidden" not in str(refused.value)


@pytest.mark.parametrize("name", ["DATA", "TOKENIZERS", "AUTHOR", "KEYS", "PASSAGES"])
def test_a_variable_of_another_kind_may_stand_in_a_path(write, name):
    config, _ = load_config(
        write(target={"name": "t", "validation": f"${name}/t"}), variables={name: "/data"}
    )
    assert config.target.validation == "/data/t"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"base": "m" * 5000}}, "model.base: 'mmm"),
        ({"pool": {"sources": [{"path": "~nobody-of-this-name/a.jsonl"}]}}, "is in no known home folder"),
        ({"pool": {"sources": list(range(60))}}, "; and 11 more"),
    ],
)
def test_what_only_looks_like_a_path_or_comes_in_crowds_is_told_in_short(write, changes, message):
    with pytest.raises(InvalidConfig) as caught:
        load_config(write(**changes))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 20_000
