"""The model of a run, named by what it holds rather than by where it lies."""

from pathlib import Path
from typing import Literal

from clusterucb_core.artifacts import fingerprint, open_artifact
from clusterucb_core.errors import InvalidModel
from clusterucb_core.features.projections import ProjectionName
from clusterucb_core.frozen import Frozen
from clusterucb_core.lm.chat import ChatFormat, chat_format
from clusterucb_core.lm.loading import (
    load_tokenizer,
    model_fingerprint,
    position_limit,
    resolve_dtype,
    runs_own_code,
)
from clusterucb_core.lm.lora import count_base_parameters, count_parameters
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
    """What makes two features comparable: model, checkpoint, kind of feature, projection.

    `kind` is `adam` for the gradients of pool samples (seen through the optimiser), `plain` for those of
    targets; `states` for mean final hidden states of either and `forward` for what the output head tells of
    them, which take no gradient. Without a checkpoint the features are those of the base model.
    """

    stage: str = "features"
    version: int = 2
    model: ModelRef
    checkpoint: CheckpointRef | None
    kind: Literal["adam", "plain", "forward", "states"]
    projection: ProjectionName
    projection_dim: int
    seed: int

    @property
    def has_gradients(self) -> bool:
        """Whether its features are gradients."""
        return self.kind in ("adam", "plain")


def resolve_model(settings: ModelSettings, device: str) -> ModelRef:
    """Return the model with its data type resolved and its content digested.

    Raises:
        InvalidModel: the base model cannot be found or read.
        InvalidConfig: the chat template is neither Jinja nor a readable file.
    """
    resolved = resolve_dtype(settings, device)
    total, lora = count_parameters(resolved)
    # without foreign code a model is named as it was before there was a setting for it
    left_out = {"base"} if resolved.trusted_code else {"base", "trusted_code"}
    content = resolved.model_dump(mode="json", exclude=left_out)
    # the configuration may name a file: what counts is the template in it
    content["chat_template"] = read_template(resolved.chat_template)
    digest = fingerprint(model_fingerprint(resolved.base), content)
    return ModelRef(settings=resolved, digest=digest, n_parameters=total, n_lora_parameters=lora)


def resolve_proxy(settings: ModelSettings, base: str, device: str) -> ModelRef:
    """Return a smaller model that stands in for the model of a run, without an adapter.

    It keeps the run's precision and length limit, as far as it reads so much, and has a template of its own.

    Args:
        settings: of the model that it stands in for.
        base: folder or hub id of the proxy.
        device: a resolved device name.

    Raises:
        InvalidModel: the proxy cannot be found or read.
    """
    own = settings.model_copy(update={"base": base, "chat_template": None})
    try:
        positions = position_limit(own)
        length = own.max_length if positions is None else min(own.max_length, positions)
        resolved = resolve_dtype(own.model_copy(update={"max_length": length}), device)
        trusted = {"trusted_code"} if runs_own_code(own) else set[str]()
        content = resolved.model_dump(mode="json", include={"dtype", "max_length"} | trusted)
        digest = fingerprint("proxy", model_fingerprint(base), content)
        return ModelRef(
            settings=resolved,
            digest=digest,
            n_parameters=count_base_parameters(resolved),
            n_lora_parameters=0,
        )
    except InvalidModel as error:
        raise InvalidModel(str(error).replace("model.base", "selection.proxy_model")) from error


def checkpoint_folder(checkpoint: CheckpointRef) -> Path:
    """Return the folder of a checkpoint, whose files are what the training wrote.

    Raises:
        MissingArtifact: the training is gone.
        StaleArtifact: a file of the checkpoint is not what was written.
    """
    name = f"checkpoint-{checkpoint.index}"
    return open_artifact(checkpoint.training, name) / name


def open_chat(model: ModelRef) -> ChatFormat:
    """Return the chat format of a model: its configured template, its tokenizer's, or the plain default."""
    return chat_format(load_tokenizer(model.settings), model.settings.chat_template)
