"""The lint that keeps pickles and foreign code out finds each form of them, and its exceptions are needed."""

import runpy
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "import pickle": "pickle",
    "import pickle as p\np.loads(b'')": "pickle",
    "from pickle import loads": "pickle",
    "from _pickle import Unpickler": "_pickle",
    "import dill, os": "dill",
    "import cloudpickle": "cloudpickle",
    "from ray import cloudpickle": "ray.cloudpickle",
    "import joblib\njoblib.load('f')": "joblib",
    "import shelve": "shelve",
    "def read():\n    import marshal": "marshal",
    "import importlib\nimportlib.import_module('pickle')": "pickle",
    "from importlib import import_module\nimport_module('pickle')": "pickle",
    "__import__('dill')": "dill",
    "import torch\ntorch.load('f')": "torch.load without weights_only",
    "import torch as t\nt.load('f', map_location='cpu')": "torch.load without weights_only",
    "from torch import load\nload('f')": "torch.load without weights_only",
    "import torch\ntorch.load('f', weights_only=False)": "weights_only=False",
    "import torch\ntorch.load('f', weights_only=trusted)": "weights_only=trusted",
    "import torch.hub\ntorch.hub.load('owner/name', 'model')": "torch.hub.load",
    "import numpy as np\nnp.load('f', allow_pickle=True)": "allow_pickle=True",
    "import numpy as np\nnp.load('f', allow_pickle=1 == 1)": "allow_pickle=1 == 1",
    "from numpy.lib.format import read_array\nread_array(f)": "numpy.lib.format.read_array",
    "import pandas as pd\npd.read_pickle('f')": "pandas.read_pickle",
    "frames().read_pickle('f')": "?.read_pickle",
    "import mlflow\nmlflow.pyfunc.load_model('m')": "mlflow.pyfunc.load_model",
    "import yaml\nyaml.load(text, Loader=yaml.SafeLoader)": "yaml.load",
    "import yaml\nyaml.unsafe_load(text)": "yaml.unsafe_load",
    "import yaml\nclass Own(yaml.FullLoader): pass": "yaml.FullLoader",
    "from yaml import UnsafeLoader": "yaml.UnsafeLoader",
    "from transformers import AutoModel\nAutoModel.from_pretrained('m', trust_remote_code=True)": (
        "trust_remote_code=True"
    ),
}
ALLOWED = [
    "import torch\ntorch.load('f', weights_only=True)",
    "import numpy as np\nnp.load('f'); np.load('f', allow_pickle=False)",
    "import json\njson.load(file)",
    "import yaml\nyaml.safe_load(text)",
    "AutoModel.from_pretrained('m', trust_remote_code=False)",
    "from .pickle import jars",
    "texts = 'import pickle'",
]


@pytest.fixture(scope="module")
def lint() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "infra" / "forbidden_calls.py"))


@pytest.mark.parametrize("source", FORBIDDEN)
def test_each_form_is_found(lint, source):
    assert FORBIDDEN[source] in [found.name for found in lint["findings_in"](source, "file.py")]


@pytest.mark.parametrize("source", ALLOWED)
def test_what_reads_data_only_is_allowed(lint, source):
    assert list(lint["findings_in"](source, "file.py")) == []


@pytest.mark.parametrize("folder", ["clusterucb_core", "flows", "tasks", "infra", "benchmarks", "tests"])
def test_a_pickle_anywhere_in_the_tree_fails_and_its_line_is_named(lint, tmp_path, capsys, folder):
    (tmp_path / folder / "deep").mkdir(parents=True)
    (tmp_path / folder / "deep" / "read.py").write_text("x = 1\nimport pickle\n")
    assert lint["main"]([str(tmp_path)]) == 1
    assert f"{folder}/deep/read.py:2: pickle can run code that it reads" in capsys.readouterr().out


def test_an_exception_that_nothing_needs_fails(lint, tmp_path, capsys):
    (tmp_path / "flows").mkdir()
    (tmp_path / "flows" / "ray_cluster.py").write_text("x = 1\n")
    assert lint["main"]([str(tmp_path)]) == 1
    assert (
        "flows/ray_cluster.py: the exception for ray.cloudpickle is needed no more" in capsys.readouterr().out
    )


def test_every_exception_is_of_a_file_that_is_there_and_has_a_reason(lint):
    for (path, _), reason in lint["EXCEPTIONS"].items():
        assert (ROOT / path).is_file()
        assert len(reason.split()) >= 4
