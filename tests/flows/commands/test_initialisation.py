"""`init`: a file that passes `check`, from flags, from answers at a terminal, from what lies in a folder."""

import json
import os
import sys
import threading

import pytest
import yaml

from clusterucb_core.config import load_config


@pytest.fixture
def folder(tmp_path, config_file, model_folder, monkeypatch):
    """A working folder with a pool, a target and a model, and without a configuration."""
    config_file.unlink()
    (tmp_path / "tiny").symlink_to(model_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FLAGS = ["--pool", "pool.jsonl", "--validation", "target.jsonl", "--test", "target.jsonl", "--model", "tiny"]


def test_what_flags_say_passes_check_and_runs_no_pipeline(call, folder):
    outcome = call("init", *FLAGS, "--mode", "static", "--top-fraction", 0.1, "--policy", "ucb_beta")
    assert outcome.code == 0, outcome.err
    text = (folder / "run.yaml").read_text()
    assert yaml.safe_load(text)["model"]["base"] == "tiny"
    config, _ = load_config(folder / "run.yaml")
    assert (config.mode, config.selection.top_fraction, config.selection.policy) == (
        "static",
        0.1,
        "ucb_beta",
    )
    assert config.all_targets[0].name == "target"
    checked = call("check", "run.yaml", "--json")
    assert checked.code == 0
    assert json.loads(checked.out)["n_selected"] == 20


def test_it_tells_how_each_source_is_read_and_what_comes_next(call, folder):
    out = call("init", *FLAGS).out
    lines = [line.split() for line in out.splitlines()]
    assert ["pool", "prompt_completion", "202", "200", "1", "1"] in lines
    assert "target target: 2 validation rows, 3 test rows" in out
    assert "written to run.yaml" in out
    assert lines[-2] == ["what", "it", "takes", "clusterucb", "check", "run.yaml"]
    assert lines[-1] == ["to", "run", "it", "clusterucb", "run", "run.yaml"]


def test_the_limit_of_tokens_is_what_the_model_reads(call, folder):
    outcome = call("init", *FLAGS)
    assert "model.max_length is set to 128, the most tokens that the model reads" in outcome.err
    assert load_config(folder / "run.yaml")[0].model.max_length == 128
    call("init", *FLAGS, "--force", "--set", "model.max_length=64")
    assert load_config(folder / "run.yaml")[0].model.max_length == 64


def test_paths_are_relative_to_the_file_where_they_were_given_so(call, folder):
    (folder / "configs").mkdir()
    flags = ["--pool", f"{folder}/pool.jsonl", "--pool", "p*l.jsonl", "--validation", "./target.jsonl"]
    assert call("init", "configs/run.yaml", *flags, "--model", "tiny").code == 0
    tree = yaml.safe_load((folder / "configs" / "run.yaml").read_text())
    paths = [source["path"] for source in tree["pool"]["sources"]]
    assert paths == [f"{folder}/pool.jsonl", "../p*l.jsonl"]
    assert (tree["target"]["validation"], tree["model"]["base"]) == ("../target.jsonl", "../tiny")
    assert call("check", "configs/run.yaml").code == 0


def test_variables_stay_variables_and_other_dollars_are_kept(call, folder, monkeypatch):
    monkeypatch.setenv("DATA", str(folder))
    (folder / "cost$.jsonl").write_bytes((folder / "pool.jsonl").read_bytes())
    flags = ["--pool", "$DATA/pool.jsonl", "--pool", "cost$.jsonl", "--validation", "${DATA}/target.jsonl"]
    assert call("init", *flags, "--model", "$DATA/tiny").code == 0
    tree = yaml.safe_load((folder / "run.yaml").read_text())
    assert [source["path"] for source in tree["pool"]["sources"]] == ["$DATA/pool.jsonl", "cost$$.jsonl"]
    assert tree["model"]["base"] == "$DATA/tiny"


def test_any_setting_can_be_given(call, folder):
    assert call("init", *FLAGS, "--set", "finetune.epochs=2", "--set", "execution.device=cpu").code == 0
    config, execution = load_config(folder / "run.yaml")
    assert (config.finetune.epochs, execution.device) == (2, "cpu")


def test_a_file_is_replaced_only_if_that_is_asked_for(call, folder):
    (folder / "run.yaml").write_text("mine")
    outcome = call("init", *FLAGS)
    assert outcome.code == 2
    assert outcome.err == ("error: run.yaml exists; name another file, or give --force to replace it\n")
    assert (folder / "run.yaml").read_text() == "mine"
    assert call("init", *FLAGS, "--force").code == 0
    assert (folder / "run.yaml").read_text() != "mine"


@pytest.mark.parametrize(
    ("flags", "named"),
    [([], "--pool, --validation, --model"), (["--pool", "pool.jsonl", "--model", "tiny"], "--validation")],
)
def test_without_a_terminal_missing_flags_are_named(call, folder, flags, named):
    outcome = call("init", *flags)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: init needs {named}: there is no terminal to ask at; ")
    assert not (folder / "run.yaml").exists()


def test_what_lies_in_the_folder_is_taken_if_that_is_asked_for(call, folder):
    (folder / "run.yaml").write_text("old")
    assert call("init", "--yes").code == 0
    tree = yaml.safe_load((folder / "run.yaml").read_text())
    assert tree["pool"]["sources"] == [{"path": "pool.jsonl"}]
    assert tree["target"] == {"name": "target", "validation": "target.jsonl", "test": "target.jsonl"}
    assert tree["model"]["base"] == "tiny"


def test_what_is_not_in_the_folder_cannot_be_taken(call, folder):
    (folder / "tiny").unlink()
    outcome = call("init", "--yes")
    assert outcome.code == 2
    assert (
        outcome.err == "error: init needs --model: nothing in this folder looks like them; give the flags\n"
    )


@pytest.mark.parametrize(
    ("changed", "wanted"),
    [
        (["--pool", "absent/*.jsonl"], "absent/*.jsonl' matches no file"),
        (["--pool", "tiny/config.json"], "no reader knows the shape of its rows"),
        (["--validation", "absent.jsonl"], "absent.jsonl cannot be read"),
        (["--validation", "pool.jsonl"], "line 202: not JSON"),
        (["--model", "./absent"], "model.base='./absent' does not exist"),
        (["--mode", "dynamc"], "did you mean dynamic?"),
        (["--policy", "ucb_bta"], "did you mean 'ucb_beta'?"),
        (["--budget-fraction", "2"], "selection.budget_fraction: Input should be less than or equal to 1"),
        (["--set", "finetune.epoch=2"], "unknown key finetune.epoch; did you mean epochs?"),
        (["--set", "execution.runner=treads"], "did you mean threads?"),
        (["--target-name", "two words"], "target.name: String should match pattern"),
    ],
)
def test_what_check_refuses_is_refused_and_nothing_is_written(call, folder, changed, wanted):
    flags = dict(zip(FLAGS[::2], FLAGS[1::2], strict=True)) | {changed[0]: changed[1]}
    outcome = call("init", *(word for pair in flags.items() for word in pair))
    assert outcome.code == 2
    assert wanted in outcome.err
    assert not (folder / "run.yaml").exists()


@pytest.mark.parametrize(
    ("out", "wanted"),
    [
        ("tiny", "tiny is a folder; name the file to write"),
        ("absent/run.yaml", "absent is no folder; make it"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(call, folder, out, wanted):
    outcome = call("init", out, *FLAGS)
    assert outcome.code == 2
    assert wanted in outcome.err


@pytest.fixture
def answer(monkeypatch):
    """Sit at a pseudo-terminal: give each answer once a question stands there, and collect what was said."""

    def run(main, answers):
        ours, theirs = os.openpty()
        monkeypatch.setattr(sys, "stdin", os.fdopen(os.dup(theirs), "r"))
        monkeypatch.setattr(sys, "stderr", os.fdopen(theirs, "w"))
        monkeypatch.setenv("TERM", "dumb")
        said, waiting = bytearray(), list(answers)

        def sit():
            while True:
                try:
                    said.extend(os.read(ours, 4096))
                except OSError:
                    return
                if waiting and said.endswith(b": "):
                    os.write(ours, waiting.pop(0).encode())

        user = threading.Thread(target=sit)
        user.start()
        code = main()
        sys.stdin.close()
        sys.stderr.close()
        user.join()
        os.close(ours)
        return code, said.decode().replace("\r\n", "\n")

    return run


def test_questions_propose_what_was_found_and_are_asked_again(folder, answer, capsys):
    from flows.cli import main

    answers = ["absent.jsonl\n", "pool.jsonl\n", "\n", "\n", "sums\n", "\n", "sttic\n", "static\n"]
    answers += ["3\n", "0.3\n", "\n"]
    code, said = answer(lambda: main(["init", "--json"]), answers)
    assert code == 0, said
    assert "Pool files, several with spaces between [pool.jsonl]: absent.jsonl\nError: pool source" in said
    assert "pool.jsonl: 1 file, prompt_completion\n" in said
    assert "validation rows [target.jsonl]: \n  target.jsonl: 2 validation rows\n" in said
    assert "- for none [target.jsonl]: \n  target.jsonl: 3 test rows\n" in said
    assert "Base model, a folder or a hub id [tiny]: \n  tiny: a folder\n" in said
    assert "Error: mode 'sttic' is unknown; did you mean static? known: dynamic, static\n" in said
    assert "Error: 3 is no share; give a number above 0, at most 1\n" in said
    assert json.loads(capsys.readouterr().out)["targets"] == ["sums"]
    config, _ = load_config(folder / "run.yaml")
    assert (config.mode, config.selection.budget_fraction) == ("static", 0.3)


def test_what_flags_give_is_not_asked_for(folder, answer):
    from flows.cli import main

    flags = [*FLAGS, "--target-name", "x", "--mode", "static", "--budget-fraction", "0.2"]
    code, said = answer(lambda: main(["init", *flags]), ["\n"])
    assert code == 0, said
    assert "Share of the pool to select [0.05]: " in said
    assert "Pool files" not in said


def test_answers_that_are_refused_can_be_given_again_as_flags(folder, answer):
    from flows.cli import main

    code, said = answer(lambda: main(["init", *FLAGS[:6]]), ["sums\n", "\n", "static\n", "\n", "0.5\n"])
    assert code == 2
    flags = "--target-name sums --validation target.jsonl --test target.jsonl --model tiny --mode static"
    assert f"as flags: clusterucb init run.yaml --pool pool.jsonl {flags} --budget-fraction 0.2" in said
    assert "raise the budget" in said


def test_to_end_the_questions_writes_nothing(folder, answer):
    from flows.cli import main

    code, said = answer(lambda: main(["init"]), ["\x04"])
    assert code == 130
    assert "interrupted" in said
    assert not (folder / "run.yaml").exists()
