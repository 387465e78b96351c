"""The base of every configuration and reference record: immutable, with no unknown keys."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable pydantic model that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")
