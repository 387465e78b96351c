import json
import sys
from types import SimpleNamespace

import pytest
import yaml

from clusterucb_core.errors import InvalidPool
from clusterucb_core.stages.summary import SubjectSummary

PICKY = (
    "{% for m in messages %}{% if 'Add 1.' in m.content %}{{ raise_exception('no ones') }}{% endif %}"
    "{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)

BY_STATES = ["clusters.features=hidden_state", "selection.context=hidden_state"]


@pytest.fixture
def pipeline(monkeypatch):
    """Put a function in the place of the pipeline."""

    def replace(run):
        monkeypatch.setitem(sys.modules, "flows.pipeline", SimpleNamespace(run_pipeline=run))

    return replace


@pytest.fixture
def two_targets(config_file):
    """The configuration with a second target of one validation row."""
    (config_file.parent / "more.jsonl").write_text('{"prompt": "Add more.", "completion": "Done."}\n')
    tree = yaml.safe_load(config_file.read_text())
    tree["targets"] = [tree.pop("target"), {"name": "more", "validation": "more.jsonl"}]
    config_file.write_text(yaml.safe_dump(tree))
    return config_file


def result(**changes):
    subject = SubjectSummary(
        subject="selection",
        n_selected=3,
        sources={"sums": 3},
        captured_influence=0.75,
        recall=None,
        loss=1.5,
        loss_low=1.0,
        loss_high=2.0,
        gradient_evaluations=12,
        estimated_captured=0.9,
        captured_low=0.8,
        captured_high=0.95,
        estimated_recall=0.7,
        recall_low=0.6,
        recall_high=0.85,
    )
    target = SimpleNamespace(target="sums", selection_version=4, subjects=(subject,))
    fields = {
        "selection_version": 4,
        "targets": (target,),
        "pool_version": 1,
        "subjects": (subject,),
        "work": SimpleNamespace(gradient_evaluations=0, trainings=0),
        "seconds": 1.25,
        "warnings": ("target 'sums': it does not rank the pool",),
        "model_dump": lambda mode: {"selection_version": 4},
    }
    return SimpleNamespace(**{**fields, **changes})


def test_a_run_prints_what_each_stage_took_beside_full_selection(call, config_file, pipeline):
    cost = {
        "context": {"gradient_evaluations": 0, "flops": 1e9},
        "selection": {"gradient_evaluations": 1200, "flops": 3e9},
    }
    took = {"selection_flops": 4e9, "full_selection_flops": 1e10, "cost": cost, "gradient_evaluations": 1200}
    subject = result().subjects[0].model_copy(update=took)
    pipeline(lambda config, execution: result(subjects=(subject,)))
    lines = [line.split() for line in call("run", config_file).out.splitlines()]
    assert ["selection", "context", "0", "1.00e+09", "10.0", "%"] in lines
    assert ["selection", "selection", "1,200", "3.00e+09", "30.0", "%"] in lines
    assert ["selection", "total", "1,200", "4.00e+09", "40.0", "%"] in lines


@pytest.mark.parametrize("command", ["run", "check", "ingest"])
def test_a_missing_file_is_bad_usage(call, tmp_path, command):
    outcome = call(command, tmp_path / "absent.yaml")
    assert outcome.code == 2
    assert "absent.yaml does not exist" in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("selection.polcy=ucb1", "did you mean policy?"),
        ("selection.policy=ucb2", "did you mean 'ucb"),
        ("selection.budget_fraction=2", "value seen: 2"),
        ("selection.budget_fraction", "not of the form key.path=value"),
        ("mode.x=1", "not a section"),
        ("execution.runner=trains", "threads, processes, ray"),
        ("execution.runer=threads", "did you mean runner?"),
        ("execution.device=tpu", "cuda"),
        ("target.validation=absent.jsonl", "absent.jsonl"),
        ("model.base=/absent", "/absent"),
        ("pool.sources=[{path: absent.jsonl}]", "absent.jsonl"),
        ("selection={policy: linucb, context: proxy}", "selection.proxy_model names no model"),
        (
            "selection={policy: linucb, context: proxy, proxy_model: /absent}",
            "selection.proxy_model='/absent'",
        ),
        ("selection.audit_fraction=0.9", "certificate"),
        ("selection.top_fraction=0.5", "raise the budget"),
        ("selection={aggregate: round_robin, early_stop: 0.1}", "set early_stop to 0"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_a_configuration_that_cannot_work_is_refused(call, pipeline, config_file, command, override, wanted):
    pipeline(lambda *_: pytest.fail("the pipeline was started"))
    outcome = call(command, config_file, "--set", override)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert wanted in outcome.err
    assert outcome.out == ""


def test_a_finished_run_is_returned_without_the_pipeline(call, pipeline, config_file, monkeypatch):
    pipeline(lambda *_: pytest.fail("the pipeline was started"))
    monkeypatch.setattr("clusterucb_core.outcome.finished_result", lambda _: result())
    outcome = call("run", config_file)
    assert outcome.code == 0
    assert "selection version 4" in outcome.out


def test_flags_reach_the_pipeline(call, pipeline, config_file):
    seen = []
    pipeline(lambda config, execution: seen.append((config, execution)) or result())
    call("run", config_file, "--runner", "processes", "--set", "seed=7", "--set", "finetune.epochs=3")
    config, execution = seen[0]
    assert (execution.runner, config.seed, config.finetune.epochs) == ("processes", 7, 3)


def test_a_run_tells_its_result_and_where_to_look(call, pipeline, config_file):
    pipeline(lambda *_: result())
    outcome = call("run", config_file)
    assert outcome.code == 0
    assert "1.5000 [1.0000, 2.0000]" in outcome.out
    assert "this call computed 0 gradient evaluations, 0 trainings" in outcome.out
    estimates = "captured influence 0.9000 [0.8000, 0.9500], recall 0.7000 [0.6000, 0.8500]"
    assert f"estimated from the audit of selection [95 %]: {estimates}" in outcome.out
    assert "warning: target 'sums': it does not rank the pool" in outcome.out
    assert "clusterucb show 4" in outcome.out
    assert "mlflow ui --backend-store-uri sqlite:///" in outcome.out


def test_a_run_for_several_targets_has_a_table_for_each(call, pipeline, config_file):
    (first,), subjects = result().targets, result().subjects
    second = SimpleNamespace(target="dates", selection_version=7, subjects=subjects)
    pipeline(lambda *_: result(targets=(first, second)))
    out = call("run", config_file).out
    assert out.index("target sums, selection version 4") < out.index("target dates, selection version 7")
    assert out.count("1.5000 [1.0000, 2.0000]") == 2
    assert "selection versions 4, 7, pool version 1" in out


def test_json_is_all_that_a_run_writes_to_stdout(call, pipeline, config_file):
    def noisy(*_):
        print("a library's progress")  # noqa: T201
        return result()

    pipeline(noisy)
    outcome = call("run", config_file, "--json")
    assert json.loads(outcome.out) == {"selection_version": 4}
    assert "a library's progress" in outcome.err


@pytest.mark.parametrize("error", [InvalidPool("row 3 is lost"), RuntimeError("out of memory")])
def test_a_run_that_fails_ends_with_1(call, pipeline, config_file, error):
    def fail(*_):
        raise error

    pipeline(fail)
    outcome = call("run", config_file)
    assert outcome.code == 1
    assert str(error) in outcome.err
    assert "Traceback" not in outcome.err


def test_ingest_counts_rows_and_makes_one_version(call, config_file, home):
    first = json.loads(call("ingest", config_file, "--json").out)
    assert (first["pool_version"], first["created"], first["n_samples"]) == (1, True, 200)
    assert (first["counts"]["rows_read"], first["counts"]["duplicates"]) == (202, 1)
    assert first["counts"]["quarantined"] == {"invalid_json": 1}
    assert (home / "catalog.duckdb").is_file()
    again = call("ingest", config_file)
    assert again.code == 0
    assert "invalid_json 1" in again.out
    assert "pool version 1 unchanged: 200 samples" in again.out


@pytest.mark.parametrize(("api", "announced"), [("http://127.0.0.1:9/api", [1]), (None, [])])
def test_a_new_pool_version_is_announced_once_where_a_server_is_named(
    call, config_file, monkeypatch, api, announced
):
    found = []
    announce = SimpleNamespace(announce_pool=lambda version: found.append(version.pool_version))
    monkeypatch.setitem(sys.modules, "flows.events", announce)
    if api:
        monkeypatch.setenv("PREFECT_API_URL", api)
    assert call("ingest", config_file).code == 0
    assert call("ingest", config_file).code == 0
    assert found == announced


def test_ingest_of_files_without_a_known_shape_fails(call, config_file, tmp_path):
    (tmp_path / "pool.jsonl").write_text('{"x": 1}\n')
    outcome = call("ingest", config_file)
    assert outcome.code == 1
    assert "x" in outcome.err


@pytest.mark.parametrize("command", ["check", "run"])
def test_a_task_that_runs_code_without_leave_is_bad_usage(call, config_file, home, command):
    outcome = call(command, config_file, "--set", "evaluate.tasks=[adding_code]")
    assert outcome.code == 2
    assert "set evaluate.allow_code_execution=true to run it in a sandbox" in outcome.err
    assert not (home / "artifacts").exists()


def test_check_counts_gradients_by_stage_and_leaves_no_file(call, config_file, home):
    outcome = call("check", config_file, "--json", "--set", "selection.budget_fraction=0.3")
    found = json.loads(outcome.out)
    # 200 samples, 3 checkpoints: all once for the clusters, then 60 drawn at the two later checkpoints
    assert found["gradient_evaluations"] == {"clustering": 200, "selection": 120, "target": 6}
    assert found["full_gradient_evaluations"] == 600
    assert (found["n_selected"], found["budget_samples"], found["n_clusters"]) == (10, 60, 9)
    # the pass over pool and target at the first checkpoint keeps hidden states, too
    assert found["disk_bytes"]["features"] == (326 * found["feature_dim"] + 202 * 32) * 2
    assert [path for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        # dynamic: one full pass, then the budget of 40 at the checkpoint of period 2
        (["mode=dynamic"], {"clustering": 200, "selection": 40, "target": 4}),
        # the full baseline of a dynamic run shares the first period only
        (
            ["mode=dynamic", "evaluate.baselines=[full]"],
            {"clustering": 200, "selection": 40, "baseline full": 200, "target": 6},
        ),
        # that of a static run shares every checkpoint
        (
            ["evaluate.baselines=[full]"],
            {"clustering": 200, "selection": 80, "baseline full": 320, "target": 6},
        ),
        # hidden states: the budget at every checkpoint, the first one included, in either mode
        (BY_STATES, {"selection": 120, "target": 6}),
        ([*BY_STATES, "mode=dynamic"], {"selection": 80, "target": 4}),
        # without its own gradient pass, a dynamic run shares its first draws with the full baseline
        (
            [*BY_STATES, "mode=dynamic", "evaluate.baselines=[full]"],
            {"selection": 80, "baseline full": 360, "target": 6},
        ),
        # gradients as side information take their pass whatever clusters there are for cluster policies
        (["clusters.features=hidden_state"], {"clustering": 200, "selection": 80, "target": 6}),
        (["selection.policy=full"], {"selection": 600, "target": 6}),
        (["selection.policy=random"], {"target": 0}),
        (["pool.max_samples=100"], {"clustering": 100, "selection": 40, "target": 6}),
    ],
)
def test_check_knows_what_stages_share(call, config_file, overrides, wanted):
    flags = [flag for override in overrides for flag in ("--set", override)]
    assert json.loads(call("check", config_file, "--json", *flags).out)["gradient_evaluations"] == wanted


@pytest.mark.parametrize(
    ("overrides", "wanted", "full"),
    [
        # static: one pass, then at most all of 200 at each of two checkpoints
        ([], {"clustering": 200, "selection": 160, "target": 9}, 600),
        (["selection.budget_fraction=0.6"], {"clustering": 200, "selection": 400, "target": 9}, 600),
        # hidden states: both targets may draw the same at the first checkpoint, and in static mode at all
        (BY_STATES, {"selection": 240, "target": 9}, 600),
        ([*BY_STATES, "mode=dynamic"], {"selection": 160, "target": 6}, 600),
        # dynamic: one pass, then each target's own draws and own full selection at its own checkpoint
        (["mode=dynamic"], {"clustering": 200, "selection": 80, "target": 6}, 600),
        (
            ["mode=dynamic", "evaluate.baselines=[full]"],
            {"clustering": 200, "selection": 80, "baseline full": 400, "target": 9},
            600,
        ),
    ],
)
def test_check_knows_what_targets_share(call, two_targets, overrides, wanted, full):
    flags = [flag for override in overrides for flag in ("--set", override)]
    found = json.loads(call("check", two_targets, "--json", *flags).out)
    assert found["gradient_evaluations"] == wanted
    assert found["full_gradient_evaluations"] == full
    assert (found["n_targets"], found["n_validation"], found["n_test"]) == (2, 3, 3)


def test_check_warns_of_the_target_that_is_odd(call, two_targets):
    shown = call("check", two_targets, "--set", "model.max_length=3").out
    assert "warning: 1 of 1 validation rows of target 'more' are cut to model.max_length=3" in shown
    assert "warning: target 'more' has no test rows" in shown


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ([], {}),
        (BY_STATES, {"clustering": 200, "target": 2}),
        (["selection.context=hidden_state"], {"clustering": 200, "target": 2}),
        (["selection.policy=ucb_beta", "clusters.features=hidden_state"], {"clustering": 200}),
        (
            [BY_STATES[0], "selection.context=proxy", "selection.proxy_model=MODEL"],
            {"clustering": 200, "target": 2},
        ),
    ],
)
def test_check_counts_forward_passes_apart(call, config_file, model_folder, overrides, wanted):
    named = [override.replace("MODEL", str(model_folder)) for override in overrides]
    flags = [flag for override in named for flag in ("--set", override)]
    assert json.loads(call("check", config_file, "--json", *flags).out)["forward_passes"] == wanted
    assert ("forward passes" in call("check", config_file, *flags).out) == bool(wanted)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        (
            ["selection.policy=ucb_beta", "selection.context=proxy"],
            "selection.context=proxy is not used: ucb_beta draws from clusters",
        ),
        (["selection.proxy_model=model"], "selection.proxy_model is not used"),
    ],
)
def test_check_says_what_side_information_is_not_read(call, config_file, overrides, wanted):
    flags = [flag for override in overrides for flag in ("--set", override)]
    assert wanted in call("check", config_file, *flags).out
    assert "is not used" not in call("check", config_file, *(f for o in BY_STATES for f in ("--set", o))).out


def test_check_uses_a_pool_that_was_ingested(call, config_file, monkeypatch):
    call("ingest", config_file)
    monkeypatch.setattr("clusterucb_core.estimate.run_ingest", lambda *_: pytest.fail("ingested again"))
    assert "samples in the pool" in call("check", config_file).out


@pytest.mark.parametrize(
    ("override", "figures"),
    [
        (
            "selection={policy: ucb_beta, cold_start_fraction: 0.5}",
            ["budget of 40 samples", "less an audit of 8", "about 99 samples"],
        ),
        ("selection.top_fraction=0.001", ["0.001 of 200 samples selects none"]),
        ("clusters.k=300", ["clusters.k=300 does not fit 200 samples"]),
        (f"model.chat_template={json.dumps(PICKY)}", ["validation row 2", "no ones"]),
    ],
)
def test_check_refuses_what_a_run_would_fail_at(call, config_file, override, figures):
    outcome = call("check", config_file, "--set", override)
    assert outcome.code == 2
    assert all(figure in outcome.err for figure in figures)


def test_check_says_that_an_object_store_can_be_used_and_leaves_nothing_there(call, config_file, tmp_path):
    root = f"file://{tmp_path}/bucket/prefix"
    shown = call("check", config_file, "--set", f"execution.storage_root={root}").out
    assert f"{root} can be written and read" in shown
    assert not (tmp_path / "bucket").exists()
    assert "can be written" not in call("check", config_file).out


@pytest.mark.parametrize(
    ("root", "wanted"),
    [
        ("file://{tmp}/bucket", "a probe could not be written"),
        ("s3://key:hidden@bucket", "credentials into the environment"),
        ("s4://bucket", "'s4' is no protocol of an object store"),
        ("gs://bucket", "pip install gcsfs"),
    ],
)
@pytest.mark.parametrize("command", ["run", "check"])
def test_an_object_store_that_cannot_be_used_is_refused(
    call, pipeline, config_file, tmp_path, command, root, wanted
):
    pipeline(lambda *_: pytest.fail("the pipeline was started"))
    (tmp_path / "bucket").write_text("no folder")
    outcome = call(command, config_file, "--set", f"execution.storage_root={root.format(tmp=tmp_path)}")
    assert outcome.code == 2
    assert wanted in outcome.err
    assert "hidden" not in outcome.err


def test_check_warns_of_batches_above_what_they_are_taken_from(call, config_file):
    shown = call(
        "check", config_file, "--set", "finetune.batch_size=128", "--set", "warmup.batch_size=64"
    ).out
    assert "warning: finetune.batch_size=128 is above the 10 selected samples" in shown
    assert "warning: warmup.batch_size=64 is above the 10 samples of the warmup" in shown
    assert "the configuration can be run" in shown


def test_check_warns_of_target_rows_that_are_cut(call, config_file):
    shown = call("check", config_file, "--set", "model.max_length=3").out
    assert "warning: 2 of 2 validation rows are cut to model.max_length=3 tokens" in shown
    assert "warning: 3 of 3 test rows are cut" in shown


def test_check_warns_where_there_is_no_test_loss_to_measure(call, config_file):
    tree = yaml.safe_load(config_file.read_text())
    del tree["target"]["test"]
    config_file.write_text(yaml.safe_dump(tree))
    assert "no test rows" in call("check", config_file).out


def test_a_state_folder_that_cannot_be_made_is_refused(call, config_file, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CLUSTERUCB_HOME", str(tmp_path / "file" / "home"))
    outcome = call("ingest", config_file)
    assert outcome.code == 2
    assert "set CLUSTERUCB_HOME" in outcome.err
