"""The base of all models that are read from files."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    # Schemas are built on first use: `--help` must not wait for them.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
