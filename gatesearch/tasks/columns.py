"""Kinds whose labels are several values per image: attributes, values, points."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from gatesearch.tasks.class_scores import check_different
from gatesearch.tasks.task import Kind

MOST_COLUMNS = 2**12


class Columns(Kind):
    """The options of a kind with several values per image.

    Attributes:
        count: Number of values, in the order of the columns; the number of names if these are
            given.
        names: Their names; empty for numbers from 0.
    """

    count: int = Field(default=1, ge=1, le=MOST_COLUMNS)
    names: Annotated[tuple[str, ...], Field(max_length=MOST_COLUMNS)] = ()

    @model_validator(mode="before")
    @classmethod
    def _count_names(cls, raw: object) -> object:
        if isinstance(raw, dict) and raw.get("names") and "count" not in raw:
            names = raw["names"]
            return {**raw, "count": len(names)} if isinstance(names, list | tuple) else raw
        return raw

    @model_validator(mode="after")
    def _one_name_each(self) -> Self:
        if self.names and len(self.names) != self.count:
            raise ValueError(
                f"names must have one name per value, {self.count}, found {len(self.names)}"
            )
        check_different("names", self.names)
        return self

    @property
    def channels(self) -> int:
        """One output, or one map, per value."""
        return self.count

    @property
    def name_list(self) -> tuple[str, ...]:
        """Names of the values, by number where they have none."""
        return self.names or tuple(map(str, range(self.count)))

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the values, where they have any."""
        return self.names
