import pytest

from clusterucb_core.errors import InvalidConfig
from clusterucb_core.evaluation import check_task_names
from clusterucb_core.evaluation.names import shipped_names


def test_the_target_and_its_own_tasks_are_known_names():
    names = ["target", "target_perplexity", "sums_choice"]
    assert shipped_names([*names, "arc_easy"], ["sums_choice"]) == ["arc_easy"]
    assert check_task_names(names, ["sums_choice"]) is None


@pytest.mark.slow
def test_an_unknown_task_lists_near_matches():
    with pytest.raises(InvalidConfig, match=r"unknown task 'arc_eazy'; did you mean (.*, )?arc_easy"):
        check_task_names(["arc_easy", "arc_eazy"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["humaneval", "humaneval_64_instruct", "mbpp"])
def test_a_task_whose_code_lm_eval_would_run_is_refused_before_it_is_loaded(name):
    with pytest.raises(InvalidConfig, match=rf"names '{name}', for which lm-eval runs code .* in a sandbox"):
        check_task_names([name])
