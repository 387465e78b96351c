"""The model of a run, named by what it holds rather than by where it lies."""

from typing import Literal

from clusterucb_core.artifacts import fingerprint
from clusterucb_core.features.projections import ProjectionName
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.chat import ChatFormat, chat_format
from clusterucb_core.lm.loading import load_tokenizer, model_fingerprint, resolve_dtype
from clusterucb_core.lm.lora import count_parameters
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.lm.templates import read_template
from clusterucb_core.records import ArtifactRef
from clusterucb_core.workspace import StageSpec, location


class ModelRef(Frozen):
    """A base model with its adapter settings: `digest` covers weights, tokenizer, template and adapter."""

    settings: ModelSettings = location()  # pyright: ignore[reportAssignmentType]
    digest: str
    n_parameters: int
    n_lora_parameters: int


class CheckpointRef(Frozen):
    """One checkpoint of a training artifact."""

    training: ArtifactRef
    index: int


class FeatureSpace(StageSpec):
    """What makes two features comparable: model, checkpoint, kind of gradient, projection.

    `kind` is `adam` for pool samples (the gradient seen through the optimiser) and `plain` for targets.
    """

    stage: str = "features"
    version: int = 1
    model: ModelRef
    checkpoint: CheckpointRef
    kind: Literal["adam", "plain"]
    projection: ProjectionName
    projection_dim: int
    seed: int


def resolve_model(settings: ModelSettings, device: str) -> ModelRef:
    """Return the model with its data type resolved and its content digested.

    Raises:
        InvalidModel: the base model cannot be found or read.
        InvalidConfig: the chat template is neither Jinja nor a readable file.
    """
    resolved = resolve_dtype(settings, device)
    total, lora = count_parameters(resolved)
    content = resolved.model_dump(mode="json", exclude={"base"})
    # the configuration may name a file: what counts is the template in it
    content["chat_template"] = read_template(resolved.chat_template)
    digest = fingerprint(model_fingerprint(resolved.base), content)
    return ModelRef(settings=resolved, digest=digest, n_parameters=total, n_lora_parameters=lora)


def open_chat(model: ModelRef) -> ChatFormat:
    """Return the chat format of a model: its configured template, its tokenizer's, or the plain default."""
    return chat_format(load_tokenizer(model.settings), model.settings.chat_template)
