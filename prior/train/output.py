"""What a training keeps in the prior's folder: its log, its checkpoints, the best weights, and in the end the prior."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from ...pipeline.contract.commit import ShardCommit
from ...pipeline.contract.manifest import ShardRecord
from ...pipeline.contract.storage import Store
from ..model.config import PriorConfig
from ..model.folder import TrainState, clear_states, load_state, save_best, save_prior, save_state
from ..network.interface import Network
from ..objective.normaliser import EmbeddingNormaliser

RECORD = "prior"
LOG_NAME = "metrics.jsonl"


class TrainingFolder:
    """The folder of a prior while it is trained, which one process writes.

    Args:
        fingerprint: of settings and embeddings; checkpoints of others are passed over.
        keep: newest checkpoints that are kept.
        best_since: step after which validation losses are comparable with those to come.
    """

    def __init__(self, store: Store, fingerprint: str, keep: int, best_since: int = 0) -> None:
        self._store, self._fingerprint, self._keep, self._best_since = store, fingerprint, keep, best_since
        self._log: list[dict[str, Any]] = []
        self._best = math.inf

    def restore(self) -> TrainState | None:
        """The newest checkpoint, and the log up to it; None where there is none.

        Raises:
            InputError: all checkpoints are damaged.
        """
        store = self._store
        state = load_state(store, self._fingerprint)
        if state is None or store.size(LOG_NAME) is None:
            # every checkpoint follows a log; one without is what a killed --overwrite left of the old training
            clear_states(store)
            return None
        with store.open(LOG_NAME) as file:
            lines = [json.loads(line) for line in file.read().splitlines()]
        self._log = [line for line in lines if line["step"] <= state.step]
        # weights of a later validation may lie there: the same will be found, and written, again
        self._best = min(
            (
                line["validation_loss"]
                for line in self._log
                if "validation_loss" in line and line["step"] > self._best_since
            ),
            default=math.inf,
        )
        return state

    def note(self, step: int, values: Mapping[str, float], learning_rate: float) -> None:
        """Add a line to the log."""
        self._log.append({"step": step, **values, "learning_rate": learning_rate})

    def keep_if_best(self, average: Network, step: int, validation_loss: float) -> None:
        """Keep averaged weights if they did better in validation than all before."""
        if validation_loss < self._best:
            self._best = validation_loss
            save_best(self._store, average, step, validation_loss, self._fingerprint)

    def save(self, state: TrainState) -> None:
        """Log first, then checkpoint: a log that runs ahead is cut at the next start, one that lags has a gap."""
        with self._store.create(LOG_NAME) as file:
            file.write(self._lines())
        save_state(self._store, state, self._fingerprint, self._keep)

    def publish(
        self, config: PriorConfig, average: Network, normaliser: EmbeddingNormaliser, *, input: str, rows: int
    ) -> ShardRecord:
        """Write the prior and its record: from here on it exists.

        Args:
            input: fingerprint of the embeddings.
            rows: of the training split.
        """
        commit = ShardCommit(self._store, RECORD, input=input, settings=self._fingerprint)
        save_prior(commit.create, config, average, normaliser)
        with commit.create(LOG_NAME) as file:
            file.write(self._lines())
        return commit.commit(rows=rows)

    def _lines(self) -> bytes:
        return "".join(json.dumps(line) + "\n" for line in self._log).encode()
