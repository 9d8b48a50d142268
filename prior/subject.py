"""What is evaluated: a prior that was trained here, another one, or predictions that were made elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from ..pipeline.config import ReadSettings
from ..pipeline.errors import InputError, SettingsError
from ..pipeline.read import EmbeddingDataset
from ..pipeline.shards import Manifest, differing_files, fingerprint, read_manifest, require_manifest
from ..pipeline.storage import Store
from .checkpoint import CONFIG_NAME, WEIGHTS_NAME, load_folder
from .config import SampleSettings
from .job import STAGE
from .load import load_prior
from .training_folder import RECORD

PREDICTIONS_SUFFIX = ".npy"


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and on which splits of the rows."""

    path: str
    read: ReadSettings
    content: str
    """Names what it holds: other content is another subject; empty of a training that has not ended."""
    trained: Manifest | None = None
    """Of a prior that was trained here."""

    @property
    def is_predictions(self) -> bool:
        return self.path.endswith(PREDICTIONS_SUFFIX)

    @property
    def parameters(self) -> float:
        """Of the network, by the size of its file; 0 where there is none."""
        return 0 if self.is_predictions else (Store(self.path).size(WEIGHTS_NAME) or 0) / 4

    def require_finished(self) -> None:
        """InputError if its training has not ended."""
        if not self.content:
            raise InputError("the prior's training has not ended; run `priorkit train` again, it goes on where it was")

    def check(self, dataset: EmbeddingDataset, samples: Sequence[SampleSettings], weights: Sequence[str]) -> None:
        """Check, before any work, that it is whole, fits the embeddings, and can be drawn from in all these ways.

        Raises:
            InputError: it is damaged, of another CLIP, or lacks weights.
            SettingsError: it cannot be sampled so.
        """
        if self.is_predictions:
            return
        if self.trained is not None and (bad := differing_files(Store(self.path), self.trained.shards[RECORD])):
            raise InputError(f"{self.path}/{bad[0]} differs from what was trained; restore it, or train again")
        prior = load_folder(self.path)
        config = prior.config
        for sample in samples:
            prior.check(sample)
        for name in ("online", "best"):
            if name in weights:
                load_prior(self.path, weights=name)
        if config.embed_dim != dataset.embed_dim:
            raise InputError(
                f"{dataset.store.url} holds embeddings of {dataset.embed_dim}, {self.path} predicts {config.embed_dim}"
            )
        wanted, there = config.clip.get("weights_sha256"), dataset.clip_if_known.get("weights_sha256")
        if wanted is not None and there is not None and wanted != there:
            raise InputError(f"{dataset.store.url} was embedded by another CLIP than the prior was trained with")


def find_subject(path: str, read: ReadSettings | None) -> Subject:
    """Find what is at `path`, without loading it.

    Raises:
        InputError: nothing is there that could be evaluated.
        SettingsError: `read` would mix the rows that it was trained on with others.
    """
    store = Store(path)
    if path.endswith(PREDICTIONS_SUFFIX):
        return Subject(path, read or ReadSettings(), _hash([path], path))
    if read_manifest(store) is None and store.size(CONFIG_NAME) is not None:
        names = [store.path(name) for name in (CONFIG_NAME, WEIGHTS_NAME)]
        return Subject(path, read or ReadSettings(), _hash(names, path))
    trained = require_manifest(store, STAGE)
    own = ReadSettings(**trained.settings["read"])
    if read is not None and read.splits() != own.splits():
        raise SettingsError(
            f"read={read.splits()}: {path} was trained with {own.splits()}; other splits would mix in rows that "
            "it was trained on; use the same"
        )
    content = fingerprint(trained.shards[RECORD].content()) if RECORD in trained.shards else ""
    return Subject(path, own, content, trained)


def _hash(names: list[str], path: str) -> str:
    digest = hashlib.sha256()
    for name in names:
        folder, _, file_name = name.rpartition("/")
        try:
            with Store(folder or ".").open(file_name) as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise InputError(f"{path}: {name} cannot be read ({error})") from error
    return digest.hexdigest()
