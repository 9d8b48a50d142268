"""Settings for reading embeddings: splits, row order and prefetching."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator
from typing_extensions import Self

from ..settings import Settings


class ReadSettings(Settings):
    """Settings that determine the split of each row, and the order in which rows are read."""

    runtime_fields: ClassVar[frozenset[str]] = frozenset({"read_threads"})

    validation_fraction: float = Field(default=0.01, ge=0, lt=1)
    """Fraction of images used for validation during training. All rows with the same image are in the same split."""
    test_fraction: float = Field(default=0.05, ge=0, lt=1)
    """Fraction of images reserved for the final evaluation. All rows with the same image are in the same split."""
    block_rows: int = Field(default=4096, ge=1)
    """Number of consecutive rows of a shard that are read together. The default is the size of the row groups in the
    metadata that `embed` writes."""
    shuffle_window: int = Field(default=32_768, ge=1)
    """Number of rows, from randomly chosen blocks, that are shuffled together as one window. Two windows are held in
    memory. At the default size and 768 dimensions, they take 200 MB."""
    captions: Literal["all", "one"] = "all"
    """Captions to read per image in each epoch: `all` of them, or `one`, which is chosen at random in every epoch."""
    read_threads: int = Field(default=4, ge=1)
    """Number of threads that prefetch blocks. More threads hide the latency of remote storage."""
    group_column: str | tuple[str, ...] | None = None
    """Metadata column, or several, whose equal values keep rows in one split, in addition to the image. Use it for
    variants of one thing, such as the frames of a video or the captions, crops and products of a family. With several
    columns, rows that agree in any of them are together. Null and empty values keep no rows together."""

    @model_validator(mode="after")
    def _some_rows_train(self) -> Self:
        """Check that the validation and test fractions add up to less than 1, so that rows are left to train on."""
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1, or nothing is left to train on")
        return self

    @property
    def group_columns(self) -> tuple[str, ...]:
        """Names of the columns in `group_column`; empty if there are none."""
        columns = self.group_column or ()
        return (columns,) if isinstance(columns, str) else columns

    @field_validator("group_column")
    @classmethod
    def _require_distinct_columns(cls, value: str | tuple[str, ...] | None) -> str | tuple[str, ...] | None:
        columns = (value,) if isinstance(value, str) else value or ()
        if "" in columns or len(set(columns)) < len(columns):
            raise ValueError("each column needs a name, and may be named once")
        return columns or None

    def identity(self) -> dict[str, Any]:
        """Return the settings that affect the output, without `group_column` if it is unset.

        Settings from before this field existed therefore keep their fingerprint.
        """
        dumped = super().identity()
        del dumped["group_column"]
        return {**dumped, "group_column": list(self.group_columns)} if self.group_columns else dumped

    def splits(self) -> dict[str, Any]:
        """Return the settings that determine the split of a row, keyed by name."""
        fractions = {"validation_fraction": self.validation_fraction, "test_fraction": self.test_fraction}
        return {**fractions, "group_column": list(self.group_columns)} if self.group_columns else fractions
