"""lm-eval as its documentation runs it, on task files and an adapter folder, with nothing of ours around it.

As a script, in the folder of the task files: `python lm_eval_by_hand.py BASE ADAPTER TASK [TASK ...]`; prints
the results and the samples as JSON.
"""

import contextlib
import json
import sys

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager


def by_hand(base: str, adapter: str, tasks: list[str]) -> dict[str, object]:
    report = simple_evaluate(
        model="hf",
        model_args={"pretrained": base, "peft": adapter, "dtype": "float32"},
        tasks=tasks,
        task_manager=TaskManager(include_path=".", include_defaults=False),
        batch_size=8,
        device="cpu",
        bootstrap_iters=0,
    )
    assert report is not None
    samples = {
        task: [
            {"row": sample["doc_id"], "responses": sample["resps"], "answers": sample["filtered_resps"]}
            for sample in of_task
        ]
        for task, of_task in report["samples"].items()
    }
    return {"results": report["results"], "samples": samples}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        found = by_hand(sys.argv[1], sys.argv[2], sys.argv[3:])
    sys.stdout.write(json.dumps(found))
