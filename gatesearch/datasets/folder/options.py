"""What a study says of its folder: the keys of `[data]` that belong to this data set."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from gatesearch.datasets.folder.fit import Fit, Size
from gatesearch.errors import UsageError
from gatesearch.strict import Strict
from gatesearch.study import Study
from gatesearch.study.validation import validated
from gatesearch.tasks import Task, build_tasks


class Fractions(Strict):
    """Shares of the frames that are drawn for two parts; the rest is to train on."""

    validation: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _leaves_frames(self) -> "Fractions":
        if self.validation + self.test >= 1:
            raise ValueError(
                "fractions must leave frames to train on, found validation + test = "
                f"{self.validation + self.test:g}; lower one"
            )
        return self


class FolderOptions(Strict):
    """Keys of `[data]`.

    All files are relative to the folder of the study's file.

    Attributes:
        images: Pattern of the images (`folder.patterns`); may be left out where the table has a
            column `image`.
        table: CSV or Parquet with a row per frame, in place of all files that `images` matches:
            its column `image` holds their paths, or its column `id` their ids; its column `split`,
            if there is one, says `train`, `validation` or `test`.
        train: List of the frames to train on: a file with an id or image path per line.
        test: The same for the frames on which results are measured. (That of the frames on which
            choices are made is `validation`, which may also be a number of frames to take from
            those to train on.)
        fractions: Shares of the parts for which there is no list.
        split_seed: Seed by which these are drawn.
        group: Frames of one group are kept in one part: a pattern of the id as `{group}_*`, or
            a column as `table.csv:patient`.
        fit: How frames get the protocol's size (`folder.fit`).
    """

    images: str = ""
    table: str = ""
    train: str = ""
    test: str = ""
    fractions: Fractions = Fractions()
    split_seed: int = Field(default=0, ge=0, le=2**63 - 1)
    group: str = ""
    fit: Fit = "stretch"

    @model_validator(mode="after")
    def _names_images(self) -> "FolderOptions":
        if not self.images and not self.table:
            raise ValueError(
                "images must name the files of the images, as 'photos/*.jpg', or table a CSV with "
                "a column image; found neither"
            )
        return self


@dataclass(frozen=True)
class FolderSource:
    """A folder of images with their labels, as a study describes it.

    Attributes:
        name: Name of the study.
        root: Folder of the study's file.
        options: Keys of `[data]`.
        validation: Key of `[data]`: a list of the frames of the validation part, a number of frames
            that are taken from the training part when it is read, or 0 for a share of all.
        tasks: Task name -> task.
        labels: Task name -> its `label`: a pattern, or columns of a table.
        class_names: Task name -> names of its classes; empty for none.
        size: Height and width of the protocol, pixels.
    """

    name: str
    root: Path
    options: FolderOptions
    validation: str | int
    tasks: Mapping[str, Task]
    labels: Mapping[str, str]
    class_names: Mapping[str, tuple[str, ...]]
    size: Size


def source_of(study: Study) -> FolderSource:
    """Read what a study says of its folder.

    Raises:
        UsageError: A key or value that is not allowed, a task without `label`, or a study without
            a file.
    """
    if study.folder is None:
        raise UsageError(
            f"the files of {study.name} lie beside its study file, which is not known here; run a "
            "command with --study FILE.toml where they are"
        )
    where = f"study {study.name}, data"
    options: FolderOptions = validated(FolderOptions, study.data.further, where=where)
    bare = [name for name, spec in study.tasks.items() if not spec.label]
    if bare:
        raise UsageError(
            f"tasks.{bare[0]}.label must say where the labels lie, as 'masks/{{id}}.png' or "
            "'table.csv:age', found none"
        )
    return FolderSource(
        name=study.name,
        root=study.folder,
        options=options,
        validation=study.data.validation,
        tasks=build_tasks(study.tasks),
        labels={name: spec.label for name, spec in study.tasks.items()},
        class_names={name: spec.class_names for name, spec in study.tasks.items()},
        size=study.protocol.size,
    )
