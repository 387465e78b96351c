import pytest

from clusterucb_core.errors import InvalidConfig, InvalidTarget, NoSandbox
from clusterucb_core.evaluation import EvaluateSettings
from clusterucb_core.records import CodeTest, Message, Target, TargetRow
from clusterucb_core.stages import evaluable
from clusterucb_core.stages.evaluable import check_tasks

TURNS = (Message("user", "q"), Message("assistant", "a"))
PLAIN = Target("sums", (), (TargetRow("r1", "s", TURNS),))
CODE = Target("code", (), (TargetRow("r1", "s", TURNS, code=CodeTest("f", "def check(f): ...")),))


@pytest.fixture
def sandbox(monkeypatch):
    """Count the checks of the sandbox."""
    calls = []
    monkeypatch.setattr(evaluable, "check_sandbox", lambda: calls.append(1))
    return calls


def settings(*tasks, run_code=False):
    return EvaluateSettings(tasks=tasks, allow_code_execution=run_code)


@pytest.mark.parametrize(
    "tasks", [(), ("target",), ("target_perplexity",), ("sums_generate",), ("sums_perplexity", "target")]
)
def test_own_tasks_need_nothing_else(tasks, sandbox):
    check_tasks(settings(*tasks), [PLAIN])
    assert sandbox == []


def test_tasks_of_test_rows_need_test_rows():
    with pytest.raises(InvalidTarget, match=r"names target, but target 'empty' has no test rows"):
        check_tasks(settings("target"), [Target("empty", (), ())])
    check_tasks(settings(), [Target("empty", (), ())])


def test_code_is_refused_without_the_flag_and_without_a_test(sandbox):
    with pytest.raises(InvalidConfig, match=r"'code_code', which runs code .*allow_code_execution=true"):
        check_tasks(settings("code_code"), [CODE])
    with pytest.raises(InvalidConfig, match=r"'sums_code', .*give its test rows the keys `test`"):
        check_tasks(settings("sums_code", run_code=True), [PLAIN])
    check_tasks(settings("target"), [CODE])
    assert sandbox == [], "compared as text, as long as nobody allows more"


@pytest.mark.parametrize(
    ("tasks", "checks"), [(("target",), 1), (("code_code",), 1), (("target_perplexity",), 0)]
)
def test_the_sandbox_is_tried_where_code_will_be_run(sandbox, tasks, checks):
    check_tasks(settings(*tasks, run_code=True), [CODE])
    assert len(sandbox) == checks


def test_a_machine_without_a_sandbox_is_found_out_before_anything_runs(monkeypatch):
    def refuse():
        raise NoSandbox("no")

    monkeypatch.setattr(evaluable, "check_sandbox", refuse)
    with pytest.raises(NoSandbox):
        check_tasks(settings("target", run_code=True), [CODE])


@pytest.mark.slow
def test_a_task_of_one_target_is_none_of_another():
    with pytest.raises(InvalidConfig, match=r"unknown task 'sums_generate'"):
        check_tasks(settings("sums_generate"), [PLAIN, CODE])
