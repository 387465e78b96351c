"""Each of the five additions takes one file: made in a copy of the packages, it is accepted and used there.

A test edits or adds exactly one file of the copy and runs a script on it in a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("clusterucb_core", "flows", "tasks")
CONFIG = """\
pool: {sources: [{path: pool.jsonl}]}
target: {name: sums, validation: rows.jsonl}
model: {base: some/model}
"""


@pytest.fixture
def copy(tmp_path):
    """A copy of the packages, to be changed in one file."""
    folder = tmp_path / "copy"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def with_edit(file: Path, anchor: str, replacement: str) -> None:
    """Replace the one place of a file that reads `anchor`."""
    text = file.read_text("utf-8")
    count = text.count(anchor)
    assert count == 1, f"{file.name} has {anchor!r} {count} times: write this test's edit anew for the file"
    file.write_text(text.replace(anchor, replacement), "utf-8")


def changed_files(copy: Path) -> list[str]:
    """Return the files of the copy that differ from ours or are not among them."""
    paths = [path for path in copy.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    names = [path.relative_to(copy) for path in paths]
    return [
        name.as_posix()
        for name in names
        if not (ROOT / name).is_file() or (ROOT / name).read_bytes() != (copy / name).read_bytes()
    ]


def result_of(script: str, copy: Path):
    """Run a script in the copy's parent folder and return the JSON value that it prints."""
    head = (
        "import sys, json, pathlib\n"
        "def ours(module):\n"
        f"    assert pathlib.Path(module.__file__).is_relative_to({str(copy)!r}), module.__file__\n"
        "    return module\n"
    )
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    line = [sys.executable, "-c", head + script]
    done = subprocess.run(
        line, cwd=copy.parent, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_the_helper_says_which_anchor_is_gone(tmp_path):
    (tmp_path / "module.py").write_text("a = 1\n", "utf-8")
    with pytest.raises(AssertionError, match=r"module\.py has 'b = 1' 0 times"):
        with_edit(tmp_path / "module.py", "b = 1", "b = 2")


def test_a_pool_format_takes_its_file_only(copy):
    file = copy / "clusterucb_core/pool/formats.py"
    variant = (
        "@dataclass(frozen=True, slots=True)\nclass Riddle:\n"
        '    """A riddle and its solution."""\n\n'
        '    name: ClassVar[str] = "riddle"\n'
        '    needs: ClassVar[Keys] = (("riddle",), ("solution",))\n'
        "    reads: ClassVar[tuple[str, ...]] = ()\n\n\n"
    )
    shapes = "# The first one that fits a row wins.\nShape = "
    with_edit(file, shapes, variant + shapes + "Riddle | ")
    with_edit(file, 'FormatName = Literal[\n    "auto",', 'FormatName = Literal[\n    "auto",\n    "riddle",')
    case = '            return [pair(first_text(row, "riddle"), first_text(row, "solution"))]\n'
    start = "    match shape:\n        case Messages():"
    with_edit(file, start, f"    match shape:\n        case Riddle():\n{case}        case Messages():")
    assert changed_files(copy) == ["clusterucb_core/pool/formats.py"]
    rows = [{"riddle": "What has keys?", "solution": "A piano."}, {"riddle": "What is wet?", "solution": ""}]
    (copy.parent / "pool.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = result_of(RIDDLES, copy)
    assert found["auto"] == found["riddle"] == [["What has keys?", "A piano."]]
    assert sum(found["quarantined"].values()) == 1
    assert "riddle" in found["form"]


RIDDLES = """
from pathlib import Path
from clusterucb_core.pool import formats
from clusterucb_core.pool.ingest import PoolSettings, ingest, ingest_counts, read_samples

ours(formats)
found = {}
for name in ("auto", "riddle"):
    settings = PoolSettings.model_validate({"sources": [{"path": "pool.jsonl", "format": name}]})
    ref = ingest(settings, base_folder=Path.cwd(), artifact_root=Path("artifacts"))
    found[name] = [[turn.content for turn in sample.messages] for sample in read_samples(ref)]
found["quarantined"] = ingest_counts(ref).quarantined
schema = PoolSettings.model_json_schema()
found["form"] = schema["$defs"]["SourceSettings"]["properties"]["format"]["enum"]
print(json.dumps(found))
"""


def test_a_bandit_policy_with_a_number_of_its_own_takes_its_file_only(copy):
    file = copy / "clusterucb_core/bandit/policies.py"
    variant = (
        "class MeanPlus(Frozen):\n"
        '    """Draw the arm with the largest sum of its mean and a bonus a place."""\n\n'
        '    kind: Literal["mean_plus"] = "mean_plus"\n'
        "    bonus: float = 0.0\n\n\n"
    )
    with_edit(file, "class PolicySettings(Frozen):", variant + "class PolicySettings(Frozen):")
    with_edit(
        file,
        '    policy: str = "ucb_beta"\n',
        '    policy: str = "ucb_beta"\n    bonus: float = Field(default=0.0, title="Bonus")\n',
    )
    with_edit(file, "Policy = Annotated[UcbBeta | ", "Policy = Annotated[MeanPlus | UcbBeta | ")
    bounds = "            bounds = state.means + policy.bonus * np.arange(len(state.means))"
    with_edit(
        file, "        case UcbBeta():\n", f"        case MeanPlus():\n{bounds}\n        case UcbBeta():\n"
    )
    with_edit(file, "        case UcbBeta() | Ucb1():", "        case MeanPlus() | UcbBeta() | Ucb1():")
    assert changed_files(copy) == ["clusterucb_core/bandit/policies.py"]
    (copy.parent / "run.yaml").write_text(CONFIG + "selection: {policy: mean_plus, bonus: 2.5}\n", "utf-8")
    found = result_of(MEAN_PLUS, copy)
    assert found["policy"] == {"kind": "mean_plus", "bonus": 2.5}
    assert {"mean_plus", "ucb_beta", "full"} <= set(found["form"])
    # arm 0 pays 1 a sample and arm 1 pays 0: the bonus of 2.5, and nothing else, makes arm 1 the better one
    assert found["arms"] == [0, 1, 1, 1, 1]
    assert found["without"] == [0, 1, 0, 0, 0]


MEAN_PLUS = """
from pathlib import Path
import numpy as np
from clusterucb_core import selection
from clusterucb_core.bandit import policies
from clusterucb_core.bandit.pulls import pull_arms
from clusterucb_core.config import RunConfig, load_config

ours(policies)
config, _ = load_config(Path("run.yaml"))
arms = [np.arange(5), np.arange(5, 10)]

def drawn(settings):
    policy = selection.bandit_policy(settings)
    log = pull_arms(
        arms, lambda rows: (rows < 5) * 1.0, policy=policy, budget_samples=5, rng=np.random.default_rng(0)
    )
    return log.arms.tolist()

selection.check_selection(config.selection)
schema = RunConfig.model_json_schema()["$defs"]["SelectionSettings"]["properties"]
print(json.dumps({
    "policy": selection.bandit_policy(config.selection).model_dump(),
    "form": schema["policy"]["enum"],
    "arms": drawn(config.selection),
    "without": drawn(config.selection.model_copy(update={"bonus": 0.0})),
}))
"""


def test_a_target_task_takes_its_file_only(copy):
    (copy / "clusterucb_core/targets/capitals.yaml").write_text(
        "description: capitals of countries\n"
        "subtask_field: continent\n"
        f"validation: {copy.parent / 'rows.jsonl'}\n"
        f"test: {copy.parent / 'rows.jsonl'}\n"
        "answer: {kind: generation, regex: '= (.*)', max_new_tokens: 9}\n",
        "utf-8",
    )
    assert changed_files(copy) == ["clusterucb_core/targets/capitals.yaml"]
    rows = [
        {"prompt": "Oslo?", "completion": "= Norway", "continent": "Europe", "split": "validation"},
        {"prompt": "Lima?", "completion": "= Peru", "continent": "Americas", "split": "validation"},
        {"prompt": "Rome?", "completion": "= Italy", "continent": "Europe", "split": "test"},
    ]
    (copy.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    found = result_of(CAPITALS, copy)
    assert "capitals" in found["known"]
    assert found["subtasks"] == {"by name": ["Americas", "Europe"], "own rows": ["Americas", "Europe"]}
    assert (found["test"], found["max_new_tokens"], found["answer"]) == (1, 9, "Norway")
    assert "did you mean capitals?" in found["near"]


CAPITALS = """
from pathlib import Path
from clusterucb_core.errors import InvalidTarget
from clusterucb_core.evaluation.answers import answer_form
from clusterucb_core.targets import catalog
from clusterucb_core.targets.catalog import TargetSettings, load_target

ours(catalog)
target = load_target(TargetSettings(name="capitals"), Path("elsewhere"))
mine = load_target(TargetSettings(name="capitals", validation="rows.jsonl"), Path.cwd())
try:
    load_target(TargetSettings(name="capitls"), Path.cwd())
except InvalidTarget as error:
    near = str(error)
form = answer_form(target.name)
print(json.dumps({
    "known": catalog.available_targets(),
    "subtasks": {"by name": catalog.subtask_index(target)[0], "own rows": catalog.subtask_index(mine)[0]},
    "test": len(target.test),
    "max_new_tokens": form.max_new_tokens,
    "answer": form.extract(target.validation[0].messages[-1].content),
    "near": near,
}))
"""


def test_a_projection_takes_its_file_only(copy):
    file = copy / "clusterucb_core/features/projections.py"
    variant = (
        "class FirstSums(Frozen):\n"
        '    """Coordinate i is added to place i modulo `dim`."""\n\n'
        '    kind: Literal["first_sums"] = "first_sums"\n'
        "    dim: int = Field(ge=1)\n    seed: int\n\n\n"
    )
    with_edit(
        file,
        "Projection = Annotated[RollSketch |",
        f"{variant}Projection = Annotated[FirstSums | RollSketch |",
    )
    with_edit(file, 'Literal["auto", "none", "roll",', 'Literal["auto", "none", "first_sums", "roll",')
    start = "        match self.projection:\n"
    case = "                out.index_add_(1, torch.arange(gradients.shape[1]) % out.shape[1], gradients)\n"
    with_edit(file, start, f"{start}            case FirstSums():\n{case}")
    assert changed_files(copy) == ["clusterucb_core/features/projections.py"]
    (copy.parent / "run.yaml").write_text(
        CONFIG + "features: {projection: first_sums, projection_dim: 8}\n", "utf-8"
    )
    found = result_of(FIRST_SUMS, copy)
    assert found["configured"] == {"kind": "first_sums", "dim": 8, "seed": 3}
    assert {"auto", "none", "first_sums", "roll"} <= set(found["form"])
    assert found["shape"] == [3, 8]
    assert found["error"] < 1e-5, f"{found['error']}: the features are not the folded sums of the gradients"


FIRST_SUMS = """
from pathlib import Path
import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM
from clusterucb_core.config import RunConfig, load_config
from clusterucb_core.features import projections
from clusterucb_core.features.gradients import gradient_features
from clusterucb_core.records import TokenizedSample

ours(projections)
settings = load_config(Path("run.yaml"))[0].features
projection = projections.resolve_projection(
    settings.projection, dim=settings.projection_dim, n_parameters=10**6, seed=3
)
sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
torch.manual_seed(0)
base = LlamaForCausalLM(LlamaConfig(vocab_size=31, max_position_embeddings=32, **sizes))
model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
for parameter in model.parameters():
    if parameter.requires_grad:
        torch.nn.init.normal_(parameter, std=0.1)
rng = np.random.default_rng(0)
samples = []
for i in range(3):
    ids = rng.integers(0, 31, 9 + i)
    samples.append(TokenizedSample(str(i), ids, ids.copy()))
raw = gradient_features(model, samples)
found = gradient_features(model, samples, projection=projection)
starts = np.cumsum([0, *(p.numel() for p in model.parameters() if p.requires_grad)])
expected = np.zeros((3, 8))
for start, stop in zip(starts, starts[1:]):
    for i in range(start, stop):
        expected[:, (i - start) % 8] += raw[:, i]
expected /= np.linalg.norm(expected, axis=1, keepdims=True)
schema = RunConfig.model_json_schema()["$defs"]["FeatureSettings"]["properties"]
print(json.dumps({
    "configured": projection.model_dump(),
    "form": schema["projection"]["enum"],
    "shape": list(found.shape),
    "error": float(np.abs(found - expected).max()),
}))
"""


def test_an_executor_takes_its_file_only(copy):
    file = copy / "flows/runners.py"
    variant = (
        "class OneByOne(Frozen):\n"
        '    """One shard task at a time."""\n\n'
        '    kind: Literal["one_by_one"] = "one_by_one"\n'
        "    workers: int\n\n\n"
    )
    with_edit(file, "Runner = Annotated[Threads |", f"{variant}Runner = Annotated[OneByOne | Threads |")
    case = "        case OneByOne():\n            return ThreadPoolTaskRunner(max_workers=1)\n"
    with_edit(file, "        case Threads():", f"{case}        case Threads():")
    assert changed_files(copy) == ["flows/runners.py"]
    found = result_of(ONE_BY_ONE, copy)
    assert found == {
        "runner": {"kind": "one_by_one", "workers": 5},
        "task_runner": ["ThreadPoolTaskRunner", 1],
        "known": True,
    }


ONE_BY_ONE = """
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.execution import ExecutionSettings
from flows import runners

ours(runners)
chosen = runners.choose_runner(ExecutionSettings(runner="one_by_one", workers=5), 0)
prefect_runner = runners.task_runner(chosen)
try:
    runners.choose_runner(ExecutionSettings(runner="two_by_two"), 0)
except InvalidConfig as error:
    message = str(error)
print(json.dumps({
    "runner": chosen.model_dump(),
    "task_runner": [type(prefect_runner).__name__, prefect_runner._max_workers],
    "known": "one_by_one" in message,
}))
"""
