"""The base of every table that is read from a file: unknown keys are refused, values are frozen."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A table whose keys are all known."""

    # Schemas are built on first use: `--help` must not wait for them.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
