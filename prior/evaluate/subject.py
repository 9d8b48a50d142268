"""What is evaluated: a prior that was trained here, another one, or predictions that were made elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...pipeline.clip.identity import compare_clips
from ...pipeline.contract.hashing import hash_file
from ...pipeline.contract.manifest import Manifest, differing_files, fingerprint, read_manifest, require_manifest
from ...pipeline.contract.storage import Store, open_location
from ...pipeline.errors import InputError, SettingsError
from ...pipeline.read.dataset import EmbeddingDataset
from ...pipeline.read.settings import ReadSettings
from ...pipeline.settings import parse_settings
from ..interchange.load import is_checkpoint, load_prior, read_config
from ..interchange.pth import find_pth
from ..model.config import TrainedOn
from ..model.folder import CONFIG_NAME, WEIGHTS_NAME, load_config
from ..model.prior import Prior
from ..model.settings import WeightsName
from ..model.train_manifest import RECORD, STAGE
from ..sampling.settings import SampleSettings

PREDICTIONS_SUFFIX = ".npy"
Kind = Literal["prior, trained here", "prior", "checkpoint", "predictions"]
TrainingRows = Literal["held out", "of other embeddings", "unknown"]
SAID_OF_TRAINING_ROWS: dict[TrainingRows, str] = {
    "of other embeddings": "It was trained on other embeddings: where images are in both, it may be evaluated on rows "
    "that it was trained on.",
    "unknown": "On which rows it was trained is not known: if these are among them, its scores are too good.",
}
"""What a reader must be told."""


@dataclass(frozen=True)
class PriorSource:
    """Where a prior is and how it is loaded, by the arguments of `load_prior`; or where predictions are."""

    path: str
    config: str | None = None
    function_version: str | None = None

    @property
    def is_predictions(self) -> bool:
        return self.path.endswith(PREDICTIONS_SUFFIX)

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is one of DALLE2-pytorch's; SettingsError if the options do not belong to what it is."""
        return is_checkpoint(self.path, config=self.config, function_version=self.function_version)

    def load(self, weights: WeightsName = "ema", device: str = "cpu") -> Prior:
        """The prior, with weights of that name."""
        return load_prior(
            self.path, device, config=self.config, weights=weights, function_version=self.function_version
        )


@dataclass(frozen=True)
class Subject:
    """What is evaluated, and on which splits of the rows."""

    source: PriorSource
    kind: Kind
    read: ReadSettings
    content: str
    """Names what it holds: other content is another subject; empty of a training that has not ended."""
    trained_on: TrainedOn | None = None
    """Its training rows; None where they are not known."""
    trained: Manifest | None = None
    """Of a prior that was trained here."""

    @property
    def is_predictions(self) -> bool:
        return self.source.is_predictions

    def parameters(self, weights: WeightsName) -> float:
        """Of the network of a prior; of a folder by the size of its file."""
        if self.kind == "checkpoint":  # which holds its weights several times
            return sum(value.numel() for value in self.source.load(weights).network.parameters())
        return (Store(self.source.path).size(WEIGHTS_NAME) or 0) / 4

    def require_finished(self) -> None:
        """InputError if its training has not ended."""
        if not self.content:
            raise InputError(
                f"{self.source.path}: the prior's training has not ended; run `priorkit train` again, it goes on where "
                "it was, and can be evaluated after its last step"
            )

    def training_rows(self, dataset: EmbeddingDataset) -> TrainingRows:
        """What is known of its training rows among those that it is evaluated on.

        Raises:
            SettingsError: the dataset's splits would mix the rows that it was trained on with others.
        """
        if self.trained_on is None:
            return "unknown"
        if self.trained_on.embeddings != dataset.content_fingerprint:
            return "of other embeddings"
        own = _read_settings(self.trained_on, self.source.path)
        if dataset.settings.splits() != own.splits():
            raise SettingsError(
                f"read={dataset.settings.splits()}: {self.source.path} was trained with {own.splits()}; other splits "
                "would mix in rows that it was trained on; use the same"
            )
        return "held out"

    def described(self, dataset: EmbeddingDataset) -> dict[str, Any]:
        """As `metrics.json` has it."""
        source = self.source
        loaded = {"config": source.config, "function_version": source.function_version}
        return {
            "path": source.path,
            "kind": self.kind,
            **(loaded if self.kind == "checkpoint" else {}),
            "content": self.content,
            "training_rows": self.training_rows(dataset),
        }

    def check(
        self, dataset: EmbeddingDataset, samples: Sequence[SampleSettings], weights: Sequence[WeightsName]
    ) -> None:
        """Check, before any work, that it is whole, fits the embeddings, and can be drawn from in all these ways.

        Raises:
            InputError: it is damaged, of another CLIP, or lacks weights.
            SettingsError: it cannot be sampled so.
        """
        if self.is_predictions:
            return
        path = self.source.path
        if self.trained is not None and (bad := differing_files(Store(path), self.trained.shards[RECORD])):
            raise InputError(f"{path}/{bad[0]} differs from what was trained; restore it, or train again")
        for name in weights:
            prior = self.source.load(name)
        config = prior.config
        for sample in samples:
            prior.check(sample)
        if config.embed_dim != dataset.embed_dim:
            raise InputError(
                f"{dataset.store.url} holds embeddings of {dataset.embed_dim}, {path} predicts {config.embed_dim}"
            )
        if prior.token_states_used and dataset.token_width != config.token_width:
            stored = "no token states" if dataset.token_width is None else f"token states of {dataset.token_width}"
            raise InputError(
                f"{dataset.store.url} stores {stored}, {path} takes those of {config.token_width}; embed with "
                "token_states: true and the CLIP that it was trained with"
            )
        there = dataset.clip_if_known
        if compare_clips(config.clip, config.clip_settings, there, {}) == "other":
            raise InputError(f"{dataset.store.url} was embedded by another CLIP than the prior was trained with")


def find_subject(source: PriorSource, read: ReadSettings | None) -> Subject:
    """Find what is at a place, without loading it.

    Args:
        read: how rows are split; None for the way of its training, where that is known.

    Raises:
        InputError: nothing is there that could be evaluated.
        SettingsError: an option is missing, or of no meaning for what is there.
    """
    path = source.path
    if source.is_checkpoint:
        assert source.config is not None
        loaded = [_sha256(*find_pth(path), path), read_config(source.config), source.function_version]
        return Subject(source, "checkpoint", read or ReadSettings(), fingerprint(loaded))
    if source.is_predictions:
        return Subject(source, "predictions", read or ReadSettings(), _sha256(*open_location(path), path))
    store = Store(path)
    if read_manifest(store) is None and store.size(CONFIG_NAME) is not None:
        known = load_config(store).trained_on
        files = {name: _sha256(store.fs, store.path(name), path) for name in (CONFIG_NAME, WEIGHTS_NAME)}
        kind: Kind = "prior"
        trained = None
    else:
        trained, kind = require_manifest(store, STAGE), "prior, trained here"
        known = TrainedOn(embeddings=trained.settings["embeddings"]["sha256"], read=trained.settings["read"])
        record = trained.shards.get(RECORD)
        files = {} if record is None else {name: record.files[name].sha256 for name in (CONFIG_NAME, WEIGHTS_NAME)}
    chosen = read or (ReadSettings() if known is None else _read_settings(known, path))
    return Subject(source, kind, chosen, fingerprint(files) if files else "", known, trained)


def _read_settings(trained_on: TrainedOn, path: str) -> ReadSettings:
    return parse_settings(ReadSettings, trained_on.read, f"{path}: what it was trained on")


def _sha256(fs: Any, location: str, path: str) -> str:
    try:
        with fs.open(location, "rb") as file:
            return hash_file(file)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
