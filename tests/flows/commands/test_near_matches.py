"""What is unknown is answered with what may have been meant."""

import pytest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["exprot", "1", "x"], "No such command 'exprot'. Did you mean 'export'?"),
        (["list", "--jsn"], "No such option: --jsn (Possible options: --json)"),
        (["run", "x.yaml", "--runer", "ray"], "No such option: --runer (Possible options: --runner)"),
        (["init", "--valdation", "x"], "No such option: --valdation (Possible options: --validation)"),
        (["--verbos", "list"], "No such option: --verbos (Possible options: --verbose"),
        (["show", "lastest"], "VERSION is 'lastest'; did you mean latest?"),
        (["diff", "1", "two"], "VERSION is 'two'; give a number that `clusterucb list` shows, or latest"),
        (
            ["export", "1", "out", "--format", "parqet"],
            "did you mean parquet? known formats: jsonl, parquet, alpaca",
        ),
    ],
)
def test_words_of_the_command_line(call, catalog, arguments, message):
    outcome = call(*arguments)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert message in outcome.err


@pytest.mark.parametrize("arguments", [["show", "7"], ["diff", "1", "7"], ["export", "7", "out.jsonl"]])
def test_an_unknown_version_is_told_the_newest(call, catalog, arguments):
    outcome = call(*arguments)
    assert outcome.err == (
        "error: the catalog holds no selection version 7; known versions: 1 (sums), 2 (sums); "
        "the newest is 2\n"
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selction.policy=ucb1", "unknown key selction; did you mean selection?"),
        ("selection.polcy=ucb1", "unknown key selection.polcy; did you mean policy?"),
        ("model.lora.alfa=4", "unknown key model.lora.alfa; did you mean alpha?"),
        ("execution.worker=2", "execution: unknown key worker; did you mean workers?"),
        ("pool.sources=[{path: pool.jsonl, nmae: x}]", "unknown key pool.sources.0.nmae; did you mean name?"),
        ("mode=dynmic", '(value seen: "dynmic"); did you mean dynamic?'),
        ("clusters.features=gradent", '(value seen: "gradent"); did you mean gradient?'),
        ("features.projection=rol", '(value seen: "rol"); did you mean roll?'),
        ("clusters.k=atuo", '(value seen: "atuo"); did you mean auto?'),
        ("evaluate.baselines=[ful]", "evaluate.baselines.0: Input should be"),
        ("evaluate.baselines=[ful]", '(value seen: "ful"); did you mean full?'),
        ("selection.policy=linucbb", "unknown policy 'linucbb'; did you mean 'linucb'? known: ucb_beta"),
        ("compare.policies=[rndom]", "unknown policy 'rndom'; did you mean 'random'?"),
        ("execution.runner=treads", "execution.runner='treads' is unknown; did you mean threads? known:"),
        ("target={name: gsm8}", "did you mean gsm8k? set target.validation, or use one of bbh, gsm8k"),
        ("execution.device=gpu", "device='gpu' is unknown; use auto, cpu, cuda or cuda:<number>"),
    ],
)
def test_keys_and_values_of_a_configuration(call, config_file, override, message):
    outcome = call("check", config_file, "--set", override)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.out == ""
