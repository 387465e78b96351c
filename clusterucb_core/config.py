"""The run configuration: composed of the settings of every stage, loaded from YAML.

Reads the configuration file and the files that it names for relative paths.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any, Literal, TypeGuard, TypeVar, cast

from pydantic import BaseModel, Field, ValidationError, model_validator

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.clustering import ClusterSettings
from clusterucb_core.complaints import complaints
from clusterucb_core.errors import InvalidConfig
from clusterucb_core.evaluation import EvaluateSettings
from clusterucb_core.execution import ExecutionSettings
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.pool.ingest import PoolSettings
from clusterucb_core.selection import SelectionSettings
from clusterucb_core.stages.comparison import CompareSettings
from clusterucb_core.stages.features import FeatureSettings
from clusterucb_core.stages.pool_change import ReselectSettings
from clusterucb_core.stages.training import FinetuneSettings, WarmupSettings
from clusterucb_core.targets.catalog import TargetSettings
from clusterucb_core.yaml_text import MAX_CHARS, parse_yaml

# Variables that by their name hold what nobody may read: paths are kept in tables, in MLflow and in Prefect.
SECRET = re.compile(
    "(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|CREDENTIALS?|API_?KEY|ACCESS_KEY|PRIVATE_KEY|AUTH)(_|$)",
    re.IGNORECASE,
)
Model = TypeVar("Model", bound=BaseModel)
# A list of a hundred thousand wrong entries is told of by its first ones and a count.
MOST_COMPLAINTS = 50


class RunConfig(Frozen):
    """What a run computes. How it is executed is `ExecutionSettings`."""

    pool: PoolSettings = Field(title="Pool", description="The candidate samples.")
    target: TargetSettings | None = Field(default=None, title="Target", description="The task tuned for.")
    targets: tuple[TargetSettings, ...] = Field(
        default=(),
        title="Targets",
        description="Several targets in place of one; they share every gradient and get a version each.",
    )
    model: ModelSettings = Field(title="Model", description="The base model and its adapter.")
    mode: Literal["dynamic", "static"] = Field(
        default="dynamic",
        title="Mode",
        description="dynamic: select again before each epoch. static: select once.",
    )
    warmup: WarmupSettings = Field(default=WarmupSettings(), title="Warmup")
    features: FeatureSettings = Field(default=FeatureSettings(), title="Features")
    clusters: ClusterSettings = Field(default=ClusterSettings(), title="Clusters")
    selection: SelectionSettings = Field(default=SelectionSettings(), title="Selection")
    finetune: FinetuneSettings = Field(default=FinetuneSettings(), title="Fine-tuning")
    evaluate: EvaluateSettings = Field(default=EvaluateSettings(), title="Evaluation")
    compare: CompareSettings = Field(default=CompareSettings(), title="Comparison")
    reselect: ReselectSettings = Field(default=ReselectSettings(), title="Re-selection")
    seed: int = Field(default=0, ge=0, title="Seed", description="The seed of everything random.")

    @model_validator(mode="after")
    def _distinct_targets(self) -> "RunConfig":
        if self.target and self.targets:
            raise ValueError(
                f"both target ({self.target.name}) and targets ({_names(self.targets)}) are given; "
                "move the one into the list, or set target: null"
            )
        if not self.all_targets:
            raise ValueError("no target: give `target: {name: ..., validation: ..., test: ...}`")
        names = [target.name for target in self.targets]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"several targets are named {twice[0]!r} (targets: {_names(self.targets)}); "
                "versions and measures are told apart by the name, so give each target its own"
            )
        return self

    @property
    def all_targets(self) -> tuple[TargetSettings, ...]:
        """The targets of this run, one or more, in their order."""
        return (self.target,) if self.target else self.targets


def load_config(
    path: Path, overrides: Sequence[str] = (), *, variables: Mapping[str, str] | None = None
) -> tuple[RunConfig, ExecutionSettings]:
    """Load a configuration file, with its relative paths made absolute against its folder.

    Args:
        path: a YAML file.
        overrides: texts of the form `key.path=value`; the value is read as YAML.
        variables: values for `$NAME` and `${NAME}` in paths, as a rule the environment.

    Returns:
        What to compute, and how to execute it.

    Raises:
        InvalidConfig: the file is absent, no YAML mapping, or has an unknown key or a value out of range.
    """
    return config_of(_read_tree(path), path, overrides, variables=variables)


def config_of(
    tree: dict[str, Any],
    path: Path,
    overrides: Sequence[str] = (),
    *,
    variables: Mapping[str, str] | None = None,
) -> tuple[RunConfig, ExecutionSettings]:
    """Return the configuration that a file of this content would be, as `load_config` does; `tree` changes.

    A section of which nothing is set, which YAML reads as null, has its defaults.

    Raises:
        InvalidConfig: an unknown key or a value out of range.
    """
    for override in overrides:
        set_value(tree, override)
    execution = tree.pop("execution", None) or {}
    _drop_empty_sections(tree, RunConfig)
    _absolute_paths(tree, path.resolve().parent, variables or {})
    return validated(RunConfig, tree, where=str(path)), validated(
        ExecutionSettings, execution, where=f"{path}: execution"
    )


def set_value(tree: dict[str, Any], override: str) -> None:
    """Put the value of a text `key.path=value`, read as YAML, in its place in a configuration.

    Raises:
        InvalidConfig: the text is not of that form, or leads through something that is no section.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise InvalidConfig(f"--set {override!r} is not of the form key.path=value")
    *parents, leaf = key.split(".")
    node: dict[str, Any] = tree
    for name in parents:
        child = node.get(name)
        if child is None:  # absent, or a section of which nothing is set
            child = node[name] = dict[str, Any]()
        if not isinstance(child, dict):
            raise InvalidConfig(f"--set {override!r}: {name} is {child!r}, not a section")
        node = cast("dict[str, Any]", child)
    node[leaf] = parse_yaml(text, where=f"--set {override[:200]!r}: the value")


def validated(kind: type[Model], tree: object, *, where: str) -> Model:
    """Return `tree` as a model of the given kind, or raise one readable error.

    Raises:
        InvalidConfig: names each key that is unknown, missing or out of range, with the value seen.
    """
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        found = complaints(kind, error)
        more = f"; and {len(found) - MOST_COMPLAINTS} more" if len(found) > MOST_COMPLAINTS else ""
        raise InvalidConfig(f"{where}: " + "; ".join(found[:MOST_COMPLAINTS]) + more) from error


def config_digest(config: RunConfig) -> str:
    """Return the fingerprint of a resolved configuration."""
    return fingerprint(config.model_dump(mode="json"))


def _names(targets: Sequence[TargetSettings]) -> str:
    return ", ".join(target.name for target in targets)


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CHARS + 1)
    except FileNotFoundError as error:
        raise InvalidConfig(f"{path} does not exist; give the path of a configuration file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfig(f"{path} cannot be read: {error}") from error
    tree = parse_yaml(text, where=str(path))
    if not isinstance(tree, dict):
        raise InvalidConfig(
            f"{path} holds {type(tree).__name__}; a configuration is a mapping with pool, target, model"
        )
    return cast("dict[str, Any]", tree)


def _drop_empty_sections(tree: dict[str, Any], kind: type[BaseModel]) -> None:
    for name, field in kind.model_fields.items():
        section = field.annotation
        if not isinstance(section, type) or not issubclass(section, BaseModel):
            continue
        value = tree.get(name)
        if isinstance(value, dict):
            _drop_empty_sections(cast("dict[str, Any]", value), section)
        elif name in tree and value is None and not field.is_required():
            del tree[name]


def _absolute_paths(tree: dict[str, Any], folder: Path, variables: Mapping[str, str]) -> None:
    pool, several = tree.get("pool"), tree.get("targets")
    sources = pool.get("sources") if isinstance(pool, dict) else None
    for source in sources if isinstance(sources, list) else []:
        _absolute(source, "path", folder, variables)
    for target in [tree.get("target"), *(several if isinstance(several, list) else [])]:
        _absolute(target, "validation", folder, variables)
        _absolute(target, "test", folder, variables)
    model = tree.get("model")
    for section, key in (("model", "base"), ("selection", "proxy_model")):
        _absolute_model(tree, section, key, folder=folder, variables=variables)
    if isinstance(model, dict) and _names_file(template := model.get("chat_template"), folder):
        model["chat_template"] = str((folder / template).absolute())


def _absolute_model(
    tree: dict[str, Any], section: str, key: str, *, folder: Path, variables: Mapping[str, str]
) -> None:
    settings = tree.get(section)
    if isinstance(settings, dict) and isinstance(settings.get(key), str):
        base = _expanded(settings[key], variables, place=f"{section}.{key}")
        # a base may be a hub id: only an existing folder is a path
        try:
            settings[key] = str((folder / base).absolute()) if (folder / base).is_dir() else base
        except OSError as error:  # longer than a path can be
            raise InvalidConfig(f"{section}.{key}: {base[:80]!r} is no path ({error.strerror})") from error


def _names_file(text: object, folder: Path) -> TypeGuard[str]:
    """Tell whether a chat template is the path of a file rather than a Jinja text."""
    try:
        return isinstance(text, str) and "{" not in text and (folder / text).is_file()
    except OSError:  # longer than a path can be
        return False


def _absolute(section: object, key: str, folder: Path, variables: Mapping[str, str]) -> None:
    if isinstance(section, dict) and isinstance(section.get(key), str):
        path = Path(_expanded(section[key], variables, place=key))
        try:
            path = path.expanduser()
        except RuntimeError as error:  # ~name of nobody
            raise InvalidConfig(
                f"{key}: {str(path)[:80]!r} is in no known home folder; write it out"
            ) from error
        section[key] = str((folder / path).absolute())


def _expanded(text: str, variables: Mapping[str, str], *, place: str) -> str:
    template = Template(text)
    try:
        _refuse_secrets(template.get_identifiers(), text, place)
        return template.substitute(variables)
    except KeyError as error:
        name = error.args[0]
        raise InvalidConfig(f"{place}: {text} names a variable that is not set; export {name}") from error
    except ValueError as error:
        raise InvalidConfig(f"{place}: {text} has a $ that names no variable; write $$ for one") from error


def _refuse_secrets(names: Iterable[str], text: str, place: str) -> None:
    if secret := next(filter(SECRET.search, names), None):
        raise InvalidConfig(
            f"{place}: {text} names {secret}, which holds a secret by its name, and a path is kept in tables "
            "and shown in reports; give the path itself, or a variable of another name"
        )
