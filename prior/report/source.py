"""Inputs of a report: a finished evaluation, and the evaluated prior or predictions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ...pipeline.compute.device import resolve
from ...pipeline.compute.stage import ProgressCallback, no_progress
from ...pipeline.errors import InputError
from ...pipeline.read.dataset import EmbeddingBatch, EmbeddingDataset
from ...pipeline.settings import parse_settings
from ..evaluate.folder import read_metrics, read_rows, require_whole
from ..evaluate.predictors import GivenPredictions, Predictor, PriorPredictor, read_predictions
from ..evaluate.rows import BLOCK_ROWS
from ..evaluate.scoring import GIVEN
from ..evaluate.settings import EvaluateSettings
from ..evaluate.subject import PriorSource, Subject, find_subject
from ..sampling.settings import SampleSettings


class ReportSource:
    """Inputs of a report: a finished evaluation, and the prior or predictions that were evaluated.

    See `write_report` for the arguments. A prior or file of predictions that cannot be found does not raise an error.
    In that case, `subject` is None and `no_subject` contains the reason.

    Raises:
        InputError: there is no finished evaluation, or the prior or predictions differ from those that were evaluated.
    """

    def __init__(
        self,
        evaluation: str,
        prior: str | None = None,
        embeddings: str | None = None,
        *,
        config: str | None = None,
        function_version: str | None = None,
    ) -> None:
        require_whole(evaluation)
        self.evaluation = evaluation
        """Evaluation folder."""
        self.metrics = read_metrics(evaluation)
        """Content of `metrics.json`."""
        if prior is None:
            evaluated = self.metrics["subject"]
            prior, config = evaluated["path"], config or evaluated.get("config")
            function_version = function_version or evaluated.get("function_version")
        self.prior = PriorSource(str(prior), config, function_version)
        """Location of the evaluated prior or predictions."""
        self.embeddings: str = embeddings or self.metrics["embeddings"]["path"]
        """Folder of the embeddings."""
        self.splits: dict[str, dict[str, Any]] = self.metrics["splits"]
        """Results of each split: the object `splits` in `metrics.json`."""
        self.rows = {split: read_rows(evaluation, split) for split in self.splits}
        """Table of per-row metrics for each split."""
        self.first_split = "test" if "test" in self.splits else next(iter(self.splits))
        """Split for the embedding plots and the gallery: `test` if it was evaluated, otherwise the first split."""
        self.main: dict[str, Any] = self.splits[self.first_split]["predictors"][0]
        """Entry of `metrics.json` for the evaluated prior or predictions on `first_split`."""
        self.is_given: bool = self.main["name"] == GIVEN
        """True if given predictions were evaluated instead of a prior."""
        self.subject, self.no_subject = self._find_subject()

    def _find_subject(self) -> tuple[Subject | None, str]:
        """Find the prior or predictions that were evaluated.

        Returns:
            The prior or predictions and an empty string, or None and the reason why they are missing.

        Raises:
            InputError: the files at `prior.path` differ from those that were evaluated.
        """
        try:
            subject = find_subject(self.prior, None)
        except InputError as error:
            return None, f"{error}."
        evaluated = self.metrics["subject"]
        if subject.content != evaluated["content"]:
            raise InputError(
                f"{self.prior.path} is not what {self.evaluation} is of: that was {evaluated['path']} "
                f"({evaluated['kind']}, content {evaluated['content'][:12]}, not "
                f"{subject.content[:12] or 'yet known'}); name it with --prior, or run `priorkit evaluate` again"
            )
        return subject, ""

    def predicted(
        self, dataset: EmbeddingDataset, rows: np.ndarray, progress: ProgressCallback = no_progress
    ) -> tuple[np.ndarray | None, str]:
        """Return one predicted embedding of norm 1 for each row.

        Args:
            dataset: embeddings.
            rows: row numbers of the N rows, `[N]`.
            progress: called before each block of rows and at the end.

        Returns:
            The predictions, `[N, D]` (D is the embedding dimension), and an empty string; or None and the reason why no
            predictions are available.
        """
        if "broken" in self.main:
            return None, f"{self.main['name']} is broken: {self.main['broken']}."
        if self.subject is None:
            return None, self.no_subject
        predictor, read = self._predictor(self.subject, dataset)
        ids, drawn = dataset.row_ids[rows], []
        for start in range(0, len(rows), BLOCK_ROWS):
            progress(start, len(rows), "")
            part = slice(start, start + BLOCK_ROWS)
            drawn.append(predictor(read(rows[part]), ids[part])[:, 0])
        progress(len(rows), len(rows), "")
        predicted = np.concatenate(drawn)
        return (predicted, "") if np.isfinite(predicted).all() else (None, "some are not finite.")

    def _predictor(
        self, subject: Subject, dataset: EmbeddingDataset
    ) -> tuple[Predictor, Callable[[np.ndarray], EmbeddingBatch]]:
        """Create the evaluated predictor, and return it with a function that reads rows in the form that it takes.

        The predictor of a prior draws one embedding per row.
        """
        if subject.is_predictions:
            return GivenPredictions(read_predictions(subject.source.path, dataset)), dataset.take
        settings = resolve(EvaluateSettings(), "evaluate")
        torch.set_num_threads(settings.threads)
        sample = parse_settings(SampleSettings, self.main["sample"], "metrics.json")
        subject.check(dataset, [sample], [self.main["weights"]])
        prior = subject.source.load(self.main["weights"], settings.device)
        return PriorPredictor(prior, sample, 1, self.metrics["seed"]), functools.partial(prior.read, dataset)
