"""Settings for reading embeddings: splits, row order and prefetching."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
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

    @model_validator(mode="after")
    def _some_rows_train(self) -> Self:
        """Check that the validation and test fractions add up to less than 1, so that rows are left to train on."""
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must be below 1, or nothing is left to train on")
        return self

    def splits(self) -> dict[str, float]:
        """Return the settings that determine the split of a row, keyed by name."""
        return {"validation_fraction": self.validation_fraction, "test_fraction": self.test_fraction}
